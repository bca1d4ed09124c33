"""What holds for every test.

One thread: at the sizes of a test it is the fastest number of them, and sums come out the same. Remote teachers wait
a thousandth of a second, not a fifth, before they first ask again: what is tested is that they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from limbeck.teachers import connect
from limbeck.wire.http import PoolSettings


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _quick_retries() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connect, "PoolSettings", partial(PoolSettings, first_wait=0.001))
        yield
