"""The arithmetic of `benchmarks/steps/floors.py` against torch's own count of floating-point operations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from steps.cases import CASES, Case, Work, prompt_id, row_of
from steps.floors import Counts, Shape, causal_pairs, flops, moved_bytes

ROWS, LENGTH = 3, 7


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_forward_and_backward_are_what_torch_counts(model: LlamaForCausalLM) -> None:
    shape, tokens = Shape.of(model.config), torch.ones(ROWS, LENGTH, dtype=torch.int64)
    whole_square = ROWS * LENGTH**2  # eager attention computes the masked half too
    forward = shape.body(ROWS * LENGTH, whole_square) + shape.head(ROWS * LENGTH)

    assert counted(lambda: model(tokens)) == forward
    output = model(tokens).logits.sum()
    assert counted(output.backward) == 2 * forward


def test_weights_are_the_models(model: LlamaForCausalLM) -> None:
    norms = (2 * model.config.num_hidden_layers + 1) * model.config.hidden_size
    assert Shape.of(model.config).weights == sum(p.numel() for p in model.parameters()) - norms


def test_counts_walk_every_response() -> None:
    case = Case("x", "tiny", prompts=2, samples=2, prompt_tokens=3, new_tokens=5, shortest=1)
    counts, lengths = Counts.of(case), case.lengths()
    assert sorted(lengths) == [1, 2, 4, 5]
    assert counts.sampled == case.trained_tokens() == 12
    assert counts.fed_tokens == sum(counts.rows_at) == 8  # the last token of a response goes nowhere
    assert counts.rows_at == [3, 2, 2, 1]
    assert counts.prompt_pairs == 2 * (1 + 2 + 3)
    assert counts.fed_pairs == sum(4 + step for length in lengths for step in range(length - 1))
    assert causal_pairs(3, 5) == 4 + 5


def test_shared_prompts_are_counted_once() -> None:
    shape = Shape(layers=1, width=8, heads=2, kv_heads=1, head_width=4, inner=16, vocabulary=100)
    once = Counts.of(Case("x", "tiny", prompts=1, samples=8, prompt_tokens=100, new_tokens=2))
    apart = Counts.of(Case("y", "tiny", prompts=8, samples=1, prompt_tokens=100, new_tokens=2))
    ours, theirs = flops(once, shape, shape), flops(apart, shape, shape)
    assert theirs["prefill"] == 8 * ours["prefill"]
    assert theirs["loss"] == ours["loss"] == 4 * shape.head(16)
    assert ours["student_backward"] == 2 * ours["student_forward"] == 2 * ours["teacher"]
    assert moved_bytes(once, shape)["optimizer"] == 28 * shape.weights


def test_a_sample_finds_its_row_and_a_work_its_file(tmp_path: Path) -> None:
    case = CASES["b"]
    rows = [row_of(prompt_id(3, p), s, case) for p in range(case.prompts) for s in range(case.samples)]
    assert rows == list(range(case.rows)) == list(range(len(case.lengths())))
    work = Work(case, "student", "teacher", [["text"]], threads=2)
    assert Work.read(work.write(tmp_path / "work.json")) == work
