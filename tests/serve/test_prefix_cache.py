"""A prefix that returns is computed once, and no answer is another for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.models.causal_lm import CausalLM
from limbeck.records import request_of
from limbeck.serve.limits import Asked
from limbeck.serve.prefix_cache import BLOCK, Known, PrefixCache
from limbeck.serve.scorer import Scorer
from tests import tiny

V, CONTEXT = tiny.VOCABULARY, 512
BYTES = 2 * 2 * 2 * 8 * 4 + 32 * 4  # of a token: layers, keys and values, heads, width; and its state


def long_model(family: str) -> CausalLM:
    config = tiny.config_of(family)
    config.max_position_embeddings = CONTEXT
    return replace(tiny.fresh(family), model=tiny.build(config))


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return long_model("llama")


def ids(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(5, V, count)]


def workload() -> list[Asked]:
    """Samples of prompts that share a beginning, turns that grow, one block after others, and every kind of ask."""
    system, asked = ids(0, 70), []
    for prompt in (system + ids(1, 40), system + ids(2, 100), ids(3, BLOCK) + system[BLOCK:], ids(4, 9)):
        for sample in range(3):
            text = prompt + ids(10 + sample, 3 + 11 * sample)
            asked.append(Asked(request_of(text, len(prompt), 0.7, 5)))
            asked.append(Asked(request_of(text, 1, 1.3), (7, 8), hidden=sample % 2 == 0))  # as slime asks
            asked.append(
                Asked(request_of(text, len(prompt), 0.7, "full"), hidden_dtype="int8" if sample else "float32")
            )
            asked.append(Asked(request_of(text, len(text), 0.7)))  # nothing is scored
    turns = [ids(5, 150)]
    for turn in range(4):
        turns.append(turns[-1] + ids(20 + turn, 37))
        asked.append(Asked(request_of(turns[-1], len(turns[-2]), 0.7)))
    asked += [Asked(request_of(ids(6, n), max(1, n - 3), 1.0)) for n in (1, 2, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK)]
    return asked


def assert_close(one: Any, other: Any) -> None:
    for name in ("logprobs", "top_logprobs", "listed", "hidden"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, atol=5e-5)
    np.testing.assert_array_equal(one.top_ids, other.top_ids)
    assert (one.rounded is None) == (other.rounded is None)
    if one.rounded is not None:
        scale = np.abs(other.rounded.encoded.decode()).max()
        np.testing.assert_allclose(one.rounded.encoded.decode(), other.rounded.encoded.decode(), atol=scale / 100)
    assert one.temperature == other.temperature


@pytest.mark.parametrize(("family", "blocks"), [("llama", 1), ("llama", 1000), ("qwen2", 4), ("qwen3", 9)])
def test_cached_answers_are_the_uncached(family: str, blocks: int) -> None:
    lm = long_model(family)
    asked = workload()
    alone = Scorer(lm, batch_invariant=True).score(asked)
    scorer = Scorer(lm, budget=300, prefix_bytes=blocks * BLOCK * BYTES)
    assert scorer._cached is not None
    rng = np.random.default_rng(blocks)
    for _ in range(2):
        order = rng.permutation(len(asked))
        for part in np.array_split(order, 4):
            for index, result in zip(part, scorer.score([asked[i] for i in part]), strict=True):
                assert_close(result, alone[index])
            assert scorer._cached.cache.held <= scorer._cached.cache.most
    assert scorer._cached.cache.held > 0


class Fed:
    """Tokens that go through the model."""

    def __init__(self, lm: CausalLM) -> None:
        self.tokens = 0
        lm.model.get_input_embeddings().register_forward_hook(self.count)

    def count(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.tokens += output[..., 0].numel()

    def during(self, scorer: Scorer, asked: Sequence[Asked]) -> int:
        before = self.tokens
        scorer.score(asked)
        return self.tokens - before


@pytest.mark.parametrize("start", [1, 4 * BLOCK + 2])
def test_the_samples_of_a_prompt_compute_it_once(start: int) -> None:
    """Together or one after the other; also where scores of the prompt are asked for, as slime and miles do."""
    lm = long_model("llama")
    prompt, count = ids(0, 4 * BLOCK + 2), 6
    asked = [Asked(request_of(prompt + ids(1 + n, 20), start, 0.7)) for n in range(count)]
    own = 4 * BLOCK + 21  # of one, the last token left out
    scorer, fed = Scorer(lm), Fed(lm)
    assert fed.during(scorer, asked) == own + (count - 1) * 21
    assert fed.during(scorer, asked[:1]) == 21
    scorer = Scorer(lm)
    assert [fed.during(scorer, [one]) for one in asked] == [own, own, *[21] * (count - 2)]


def test_what_does_not_return_is_not_kept(lm: CausalLM) -> None:
    scorer = Scorer(lm)
    assert scorer._cached is not None
    scorer.score([Asked(request_of(ids(n, 200), 100, 0.7)) for n in range(10)])
    assert scorer._cached.cache.held == 0


def test_a_batch_invariant_server_keeps_nothing_and_neither_does_one_without_room(lm: CausalLM) -> None:
    assert Scorer(lm, batch_invariant=True)._cached is None
    assert Scorer(lm, prefix_bytes=0)._cached is None
    assert "GPT2" in str(Scorer(tiny.fresh("gpt2")).unshared)


def test_the_first_block_goes_last() -> None:
    one = Known(torch.zeros(1, 2, 1, BLOCK, 1), torch.zeros(BLOCK, 1))
    cache = PrefixCache(5 * one.size)
    first, second = (cache.names(np.array(ids(n, 3 * BLOCK + 2))) for n in range(2))
    cache.put(first, [one] * 3)
    cache.put(second, [one] * 3)
    assert [len(cache.find(names)) for names in (first, second)] == [2, 3]
    assert cache.held == 5 * one.size


def test_a_name_is_of_all_tokens_before_it() -> None:
    cache = PrefixCache(1)
    same = ids(1, BLOCK)
    one, other = (cache.names(np.array([*ids(n, BLOCK), *same, 5, 6])) for n in (2, 3))
    assert len({*one, *other}) == 4
    assert cache.names(np.array([*same, 1])) == []  # the last token is not fed, and one must be
