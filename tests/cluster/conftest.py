"""One Ray for all tests here that can share it: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    from limbeck.cluster.connect import connected

    with connected("local", {"cluster.samplers": 8}):
        yield
