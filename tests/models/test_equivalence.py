"""What the proofs find: fast ways that are not the model's own, wherever in the context, and rows that see others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import transformers
from torch import Tensor

from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import depends_on_batch, rope_switches_at
from tests import tiny

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}


def lm_of(config: transformers.PretrainedConfig) -> CausalLM:
    return CausalLM("m", tiny.build(config), tiny.character_tokenizer(), tiny.VOCABULARY)


def phi3(**more: object) -> CausalLM:
    control = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    given = {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE, **more}
    return lm_of(transformers.Phi3Config(**tiny.GATED, vocab_size=tiny.VOCABULARY, **control, **given))


@pytest.mark.parametrize("build", [phi3, lambda: lm_of(tiny.config_of("llama", rope_parameters=dict(LONGROPE)))])
def test_frequencies_of_the_longest_row_are_told_by_name(build: Callable[[], CausalLM]) -> None:
    lm = build()
    assert rope_switches_at(lm) == 16
    assert "more than 16 tokens, and its context is 64" in str(depends_on_batch(lm))


def test_a_context_within_the_first_frequencies_depends_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = phi3()
    monkeypatch.setattr(type(lm), "context", property(lambda self: 16))
    assert depends_on_batch(lm) is None


def test_dynamic_frequencies_change_beyond_the_context_only() -> None:
    lm = lm_of(tiny.config_of("llama", rope_parameters=dict(DYNAMIC)))
    assert rope_switches_at(lm) == tiny.CONTEXT
    assert depends_on_batch(lm) is None


def test_frequencies_of_the_longest_row_are_found_without_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.models import equivalence

    monkeypatch.setattr(equivalence, "rope_switches_at", lambda lm: None)
    assert "with a longer row beside it" in str(depends_on_batch(phi3()))


def test_rows_that_see_the_mean_of_their_batch_are_found() -> None:
    lm = tiny.fresh("llama")

    def mixed(module: object, args: object, out: Tensor) -> Tensor:
        return out + 0.1 * out.mean(dim=(0, 1), keepdim=True)

    lm.model.base_model.layers[0].mlp.register_forward_hook(mixed)
    assert "with a longer row beside it" in str(depends_on_batch(lm))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_of_the_families_depend_on_nothing(family: str) -> None:
    assert depends_on_batch(tiny.lm_of(family)) is None
