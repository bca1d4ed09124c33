"""A name that is no folder here and that the hub does not give."""

from __future__ import annotations

import pytest

from limbeck.errors import ModelError
from limbeck.models.loading import load_tokenizer, read_config


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_name_that_is_nowhere_is_no_fault_of_its_files() -> None:
    for load in (lambda: read_config("nope", "nope"), lambda: load_tokenizer("nope")):
        with pytest.raises(ModelError, match="there is no folder 'nope' here, and the hub does not give") as caught:
            load()
        assert "./nope" in str(caught.value)
        assert "config.json that came with" not in str(caught.value)
