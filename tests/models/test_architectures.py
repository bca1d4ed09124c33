"""Every causal language model of the installed transformers is either computed rightly or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.models import sweep, tiny_configs

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
EQUAL = (
    "llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3_text", "mistral", "ministral", "ministral3",
    "phi3", "phi3+longrope", "phimoe", "phimoe+window", "olmo2", "gpt_oss", "deepseek_v3", "glm4", "granite", "cohere",
    "gpt2", "opt",
)  # fmt: skip
REFUSED = {
    "bart": "nats off",  # counts the places of a padded row for positions
    "bert": "not causal",
    "llama4_text": "attn_temperature_tuning",
    "mamba": "recurrent",
    "openai-gpt": "kept 0 of 5 tokens in its key-value cache",
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi3+longrope", "gpt_oss"])
def test_the_three_ways_agree_with_transformers(name: str) -> None:
    """A few families in every run of the tests; the others in the sweep."""
    verdict = sweep.measure(name)
    assert (verdict.refused, verdict.wrong) == ("", "")
    assert verdict.update


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_with_the_reason(name: str) -> None:
    verdict = sweep.measure(name)
    assert REFUSED[name] in verdict.refused
    assert tiny_configs.class_of(name) in verdict.refused
    assert "\n" not in verdict.refused


def test_a_difference_of_a_thousandth_of_a_nat_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sweep.three_ways.alone
    monkeypatch.setattr(sweep.three_ways, "alone", lambda *args: [values + 2e-3 for values in plain(*args)])
    assert {"sampler", "learner", "teacher"} <= set(sweep.measure("llama").wrong.replace(",", "").split())


@pytest.mark.slow
def test_every_architecture_is_equal_or_refused_and_the_page_says_so() -> None:
    verdicts = [sweep.measure(name) for name in tiny_configs.names()]
    assert {verdict.name: verdict.wrong for verdict in verdicts if verdict.wrong} == {}
    equal = {verdict.name for verdict in verdicts if not verdict.refused}
    assert set(EQUAL) <= equal
    assert len(equal) >= 50
    for verdict in verdicts:
        assert "\n" not in verdict.refused, verdict
    if f"transformers {transformers.__version__} " not in PAGE.read_text():
        pytest.skip(f"the page is of another transformers than {transformers.__version__}")
    assert PAGE.read_text() == sweep.page(verdicts), "out of date: run scripts/make_architectures.py"
