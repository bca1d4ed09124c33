"""The in-process engine, held against what transformers says of the same tokens one row at a time.

Shape legend: L the whole sequence, S sampled tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from limbeck.config.engine import HFEngineConfig
from limbeck.engines.hf import LEAVE_SHARE, InProcessEngine
from limbeck.errors import EngineError, ModelError
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.decode import Decoder
from limbeck.records import Key, Prompt, Rollout, Sampled, SampleRequest, Sampling
from tests import tiny
from tests.sampling import sample_rollouts

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
TEMPERATURES = (0.5, 0.7, 1.0, 1.5)
STOPS = tuple(range(5, 25))  # a fifth of the characters: responses of very different lengths
WATCHED: list[list[tuple[int, int]]] = []  # see `forwards`
PROMPTS = tiny.prompts(9, 2, 14, 1, 9, 5, 3, 9, 12)


async def sample(
    lm: CausalLM,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    samples: int = 1,
    max_rows: int = 256,
    plain: bool = False,
) -> list[Rollout]:
    engine = InProcessEngine(lm, HFEngineConfig(max_rows=max_rows))
    if plain:
        engine.decoder = Decoder(lm)
    for shapes in WATCHED:
        shapes.clear()  # of the proof, which is made once a run
    rollouts = await sample_rollouts(engine, prompts, sampling, samples)
    assert len(rollouts) == len(prompts) * samples
    return rollouts


def by_name(rollouts: Sequence[Rollout]) -> dict[tuple[str, int], list[int]]:
    """Response tokens of each prompt's k-th sample."""
    named = {(rollout.prompt.id, rollout.key.sample): rollout.response_ids.tolist() for rollout in rollouts}
    assert len(named) == len(rollouts)
    return named


def assert_logprobs(lm: CausalLM, rollout: Rollout) -> None:
    """Log-probs are those of the plain model at the rollout's temperature."""
    theirs = tiny.logprobs_of_sampled(lm.model, rollout, rollout.sampling.temperature)
    assert_close(torch.from_numpy(rollout.logprobs).double(), theirs, atol=1e-4, rtol=0)


# What is sampled, and its log-probs


@pytest.mark.parametrize("temperature", TEMPERATURES)
@every_family
async def test_logprobs_are_the_models_own_at_the_temperature(family: str, temperature: float) -> None:
    lm = tiny.lm_of(family)
    for rollout in await sample(lm, PROMPTS, Sampling(temperature, 14, stop_ids=STOPS), samples=2):
        assert_logprobs(lm, rollout)


@every_family
async def test_greedy_takes_the_most_likely_token_every_time(family: str) -> None:
    lm = tiny.lm_of(family)
    for rollout in await sample(lm, PROMPTS[:4], Sampling(0.7, 8, greedy=True)):
        best_L = tiny.logprobs(lm.model, rollout.token_ids).argmax(dim=-1).numpy()
        assert rollout.response_ids.tolist() == best_L[rollout.trained[1:]].tolist()
        assert_logprobs(lm, rollout)


async def test_samples_follow_the_models_distribution() -> None:
    """Four thousand answers of one token, counted."""
    lm, count = tiny.lm_of("qwen2"), 4000
    prompt = Prompt("p", (30, 41, 52))
    rollouts = await sample(lm, [prompt], Sampling(0.7, 1), samples=count, max_rows=count)
    p_V = tiny.logprobs(lm.model, [*prompt.token_ids, 0], 0.7)[-1].exp().numpy()
    counts = np.bincount([rollout.response_ids[0] for rollout in rollouts], minlength=tiny.VOCABULARY)
    likely = p_V * count >= 5
    counts, expected = np.append(counts[likely], counts[~likely].sum()), np.append(p_V[likely], p_V[~likely].sum())
    statistic = ((counts - count * expected) ** 2 / (count * expected)).sum()
    freedom = len(counts) - 1
    assert statistic < freedom + 3.5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 12, "top_p": 0.8}], ids=str)
async def test_truncation_decides_what_is_drawn_and_leaves_the_log_probs_alone(cut: dict[str, float]) -> None:
    lm = tiny.lm_of("llama")
    sampling = Sampling(1.5, 10, **cut)
    for rollout in await sample(lm, PROMPTS, sampling):
        p_LV = tiny.logprobs(lm.model, rollout.token_ids, 1.5).exp().numpy()[rollout.trained[1:]]
        for p_V, token in zip(p_LV, rollout.response_ids, strict=True):
            assert token in naive_kept(p_V, **cut)
        assert_logprobs(lm, rollout)


def naive_kept(p_V: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    order = np.argsort(-p_V)[: top_k or None]
    before = np.cumsum(p_V[order] / p_V[order].sum()) - p_V[order] / p_V[order].sum()
    order = order[before < top_p]
    return order[p_V[order] >= min_p * p_V[order[0]]]


async def test_a_narrowed_vocabulary_is_all_there_is() -> None:
    lm = tiny.fresh()
    lm.vocabulary = 40
    for rollout in await sample(lm, tiny.prompts(5, 8), Sampling(1.5, 20), samples=4):
        assert rollout.response_ids.max() < 40
        theirs = tiny.logprobs_of_sampled(lm.model, rollout, 1.5, vocabulary=40)
        assert_close(torch.from_numpy(rollout.logprobs).double(), theirs, atol=1e-4, rtol=0)


# Nothing depends on the company a prompt is in


@every_family
async def test_a_sample_does_not_depend_on_the_batch(family: str) -> None:
    """Alone, in another order, in groups of another size, among other lengths: the same tokens."""
    lm, sampling = tiny.lm_of(family), Sampling(0.9, 14, stop_ids=STOPS, seed=3)
    together = by_name(await sample(lm, PROMPTS, sampling, samples=2))
    assert len({len(response) for response in together.values()}) > 3, "rows should finish at different times"
    for prompt in PROMPTS:
        assert by_name(await sample(lm, [prompt], sampling, samples=2)).items() <= together.items()
    for max_rows in (1, 3, 5):
        assert by_name(await sample(lm, PROMPTS[::-1], sampling, samples=2, max_rows=max_rows)) == together


@every_family
async def test_log_probs_do_not_depend_on_the_batch(family: str) -> None:
    lm, sampling = tiny.lm_of(family), Sampling(0.9, 14, stop_ids=STOPS, seed=4)
    together = await sample(lm, PROMPTS, sampling)
    for rollout in together:
        (alone,) = await sample(lm, [rollout.prompt], sampling)
        assert_close(alone.logprobs, rollout.logprobs, atol=1e-4, rtol=0)


async def test_the_kth_sample_does_not_depend_on_how_many_there_are() -> None:
    lm, sampling = tiny.lm_of("llama"), Sampling(1.0, 12, stop_ids=STOPS, seed=1)
    one, four = by_name(await sample(lm, PROMPTS, sampling, 1)), by_name(await sample(lm, PROMPTS, sampling, 4))
    assert one == {name: tokens for name, tokens in four.items() if name[1] == 0}
    assert four == by_name(await sample(lm, PROMPTS, sampling, 4, max_rows=3))


async def test_samples_differ_between_seeds_numbers_and_prompts_but_not_runs() -> None:
    lm, ids = tiny.lm_of("llama"), PROMPTS[0].token_ids
    prompts = [Prompt("a", ids), Prompt("b", ids)]
    runs = [by_name(await sample(lm, prompts, Sampling(1.0, 12, seed=seed), 3)) for seed in (0, 1)]
    assert len({tuple(tokens) for run in runs for tokens in run.values()}) == 2 * 2 * 3
    assert by_name(await sample(lm, prompts, Sampling(1.0, 12, seed=0), 3)) == runs[0]


# Order, ends and versions


async def test_answers_stand_in_the_order_of_the_questions() -> None:
    lm = tiny.lm_of("llama")
    rollouts = await sample(lm, PROMPTS, Sampling(1.0, 3), samples=3, max_rows=4)
    assert [(r.prompt, r.key.sample) for r in rollouts] == [(prompt, k) for prompt in PROMPTS for k in range(3)]
    for rollout in rollouts:
        prefix = len(rollout.prompt.token_ids)
        assert tuple(rollout.token_ids[:prefix]) == rollout.prompt.token_ids
        assert rollout.trained.tolist() == [False] * prefix + [True] * 3
        assert rollout.logprobs.dtype == np.float32
        assert rollout.sampling == Sampling(1.0, 3)


async def test_no_prompts_no_answers() -> None:
    assert await sample(tiny.lm_of("llama"), [], Sampling(1.0, 3), samples=4) == []


async def test_a_response_ends_with_its_first_stop_token_or_at_max_tokens() -> None:
    """Whatever the stop ids, a response is that without any, cut after the first of them."""
    lm = tiny.lm_of("llama")
    free = by_name(await sample(lm, PROMPTS, Sampling(1.0, 16, seed=2), 3))
    ends = []
    for stop_ids in ((), STOPS[:1], STOPS, tuple(range(tiny.VOCABULARY))):
        for rollout in await sample(lm, PROMPTS, Sampling(1.0, 16, stop_ids=stop_ids, seed=2), 3):
            whole = free[rollout.prompt.id, rollout.key.sample]
            cut = next((i for i, token in enumerate(whole) if token in stop_ids), None)
            assert rollout.response_ids.tolist() == (whole if cut is None else whole[: cut + 1])
            assert rollout.finish == ("length" if cut is None else "stop")
            assert len(rollout.logprobs) == len(rollout.response_ids)
            ends.append(rollout.finish)
    assert set(ends) == {"stop", "length"}


async def test_a_stop_token_at_the_very_last_place_is_a_stop() -> None:
    lm = tiny.lm_of("llama")
    (free,) = await sample(lm, PROMPTS[:1], Sampling(1.0, 6))
    last = int(free.response_ids[-1])
    assert last not in free.response_ids[:-1]
    (rollout,) = await sample(lm, PROMPTS[:1], Sampling(1.0, 6, stop_ids=(last,)))
    assert (rollout.finish, len(rollout.response_ids)) == ("stop", 6)


async def test_rollouts_carry_the_version_of_the_policy_that_sampled_them() -> None:
    engine = InProcessEngine(tiny.lm_of("llama"), HFEngineConfig())
    for version in (0, 7):
        await engine.load(LocalPolicy(engine.lm, version))
        (rollout,) = await sample_rollouts(engine, PROMPTS[:1], Sampling(1.0, 2))
        assert rollout.versions.tolist() == [version] * 2


# Models that cannot be decoded this way


async def test_a_model_that_does_not_use_a_cache_is_refused() -> None:
    """GPT-1 takes no cache and says nothing: each token would be sampled as if it were the first."""
    config = transformers.OpenAIGPTConfig(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    lm = CausalLM("gpt-1", tiny.build(config), tiny.character_tokenizer(), tiny.VOCABULARY)
    with pytest.raises((ModelError, EngineError), match="OpenAIGPTLMHeadModel"):
        await sample(lm, tiny.prompts(6, 6), Sampling(1.0, 4))


# What it costs


@contextmanager
def forwards(lm: CausalLM) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens a row) of every pass of sampling through the model, in order."""
    shapes: list[tuple[int, int]] = []
    hook = lm.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: shapes.append((*args[0].shape, 1)[:2])
    )
    WATCHED.append(shapes)
    yield shapes
    WATCHED.remove(shapes)
    hook.remove()


async def test_a_prompt_is_computed_once_for_all_of_its_samples() -> None:
    lm = tiny.lm_of("llama")
    with forwards(lm) as shapes:
        await sample(lm, tiny.prompts(9, 4, 6), Sampling(1.0, 4), samples=5)
    assert shapes == [(3, 9), (15, 1), (15, 1), (15, 1)]


async def test_prompts_of_like_length_share_a_group_and_rows_are_bounded() -> None:
    lm = tiny.lm_of("llama")
    with forwards(lm) as shapes:
        await sample(lm, tiny.prompts(20, 5, 20, 5, 20, 5), Sampling(1.0, 2), samples=2, max_rows=7)
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert prefills == [(3, 5), (3, 20)], "no prompt is computed twice, or padded to a longer one"
    assert max(rows for rows, _ in shapes) <= 7


async def test_more_samples_than_rows_are_decoded_in_turns() -> None:
    lm = tiny.lm_of("llama")
    with forwards(lm) as shapes:
        await sample(lm, tiny.prompts(6, 6), Sampling(1.0, 3), samples=5, max_rows=3)
    decoded = [rows for rows, width in shapes if width == 1]
    assert max(decoded) <= 3
    assert sum(decoded) == 2 * 5 * 2  # two passes for each of ten responses of three tokens


@every_family
async def test_finished_rows_leave_the_batch(family: str) -> None:
    lm = tiny.lm_of(family)
    prompts = [prompt for prompt in PROMPTS if len(prompt.token_ids) > 1]
    with forwards(lm) as shapes:
        rollouts = await sample(lm, prompts, Sampling(1.0, 30, stop_ids=STOPS), samples=4)
    lengths = np.array([len(rollout.response_ids) for rollout in rollouts])
    decoded = [rows for rows, width in shapes if width == 1]
    assert len(decoded) == lengths.max() - 1, "decoding ends with the longest response"
    for step, rows in enumerate(decoded, start=1):
        running = int((lengths > step).sum())
        assert running <= rows
        assert rows - running < LEAVE_SHARE * rows, f"{rows - running} of {rows} rows had finished at token {step}"
    assert len(set(decoded)) > 3


async def test_the_weights_are_shared_not_copied() -> None:
    """A weight changed in place is what the next samples come from, and there is no second set."""
    lm, sampling = tiny.fresh(), Sampling(1.0, 10)
    engine = InProcessEngine(lm, HFEngineConfig())
    before = {name: p.data_ptr() for name, p in lm.model.named_parameters()}
    await sample_rollouts(engine, PROMPTS, sampling)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()).view(parameter.shape)))
    changed = [item for item in await sample_rollouts(engine, PROMPTS, sampling) if isinstance(item, Rollout)]
    assert by_name(changed) != by_name(await sample(tiny.lm_of("llama"), PROMPTS, sampling))
    for rollout in changed:
        assert_logprobs(lm, rollout)
    assert {name: p.data_ptr() for name, p in lm.model.named_parameters()} == before
    assert all(parameter.requires_grad for parameter in lm.model.parameters())


# States it is given and leaves


def with_dropout() -> CausalLM:
    """A GPT-2 that drops half of everything while training."""
    lm = tiny.fresh("gpt2")
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return lm


async def test_there_is_no_dropout_while_sampling_and_training_goes_on_after() -> None:
    lm, sampling = with_dropout(), Sampling(1.0, 10)
    quiet = by_name(await sample(lm, PROMPTS, sampling))
    lm.model.train()
    assert by_name(await sample(lm, PROMPTS, sampling)) == quiet
    assert all(module.training for module in lm.model.modules())
    lm.model.eval()
    await sample(lm, PROMPTS[:1], sampling)
    assert not any(module.training for module in lm.model.modules())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
async def test_gradient_checkpointing_does_not_change_samples() -> None:
    lm, sampling = tiny.fresh(), Sampling(1.0, 10)
    plain = by_name(await sample(lm, PROMPTS, sampling))
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.model.train()
    assert by_name(await sample(lm, PROMPTS, sampling)) == plain


async def test_bfloat16_compute_leaves_float32_weights_and_says_its_own_log_probs() -> None:
    lm = tiny.fresh()
    engine = InProcessEngine(lm, HFEngineConfig(), autocast=torch.bfloat16)
    for rollout in await sample_rollouts(engine, PROMPTS[:3], Sampling(1.0, 8)):
        assert isinstance(rollout, Rollout)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = tiny.logprobs_of_sampled(lm.model, rollout, 1.0)
        ours = torch.from_numpy(rollout.logprobs).double()
        assert_close(ours, theirs, atol=0.2, rtol=0)
        assert (ours - tiny.logprobs_of_sampled(lm.model, rollout, 1.0)).abs().max() > 1e-4
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("greedy", [False, True])
async def test_weights_that_are_not_finite_stop_sampling_with_the_prompts_name(greedy: bool) -> None:
    """One token's embedding is spoilt: the prompt that holds it is named, among others of other lengths."""
    lm = tiny.fresh()
    good = [Prompt(prompt.id, tuple(min(i, 98) for i in prompt.token_ids)) for prompt in PROMPTS]
    bad = Prompt("the-bad-one", (50, 99, 51))
    await sample(lm, [*good, bad], Sampling(1.0, 1, greedy=greedy))
    lm.model.train()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[99] = float("nan")
    with pytest.raises(EngineError, match=r"'the-bad-one'.*nan.*policy version 0.*learner\.lr"):
        await sample(lm, [*good[:4], bad, *good[4:]], Sampling(1.0, 1, greedy=greedy))
    assert lm.model.training, "training mode is restored after a failure too"


async def test_what_follows_a_stop_token_is_dropped() -> None:
    """A finished row is decoded on until enough others have finished; here that would be noise of NaN."""
    lm = tiny.fresh()
    first = [int(r.response_ids[0]) for r in await sample(lm, PROMPTS[:1], Sampling(1.5, 1), samples=8)]
    stop = next(token for token in first if first.count(token) == 1)  # one row of eight is too few to leave
    sampling = Sampling(1.5, 6, stop_ids=(stop,))
    clean = by_name(await sample(lm, PROMPTS[:1], sampling, samples=8))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[stop] = float("nan")
    with forwards(lm) as shapes:
        assert by_name(await sample(lm, PROMPTS[:1], sampling, samples=8)) == clean
    assert shapes[1] == (8, 1)


# The student's own most likely tokens


async def test_top_ids_are_the_models_by_rank_whatever_was_sampled() -> None:
    lm, sampling, prompt = tiny.lm_of("llama"), Sampling(1.5, 9, stop_ids=STOPS), PROMPTS[2]
    engine = InProcessEngine(lm, HFEngineConfig())
    await engine.load(LocalPolicy(lm))
    ids = np.array(prompt.token_ids)
    unit = [SampleRequest(Key("p", 0, k), ids, sampling, top) for k, top in enumerate((5, 0, 3, 5))]
    outside = 0
    for request, answer in zip(unit, await engine.sample(unit), strict=True):
        assert isinstance(answer, Sampled)
        if not request.top:
            assert answer.top_ids is None
            continue
        assert answer.top_ids is not None
        logp_LV = tiny.logprobs(lm.model, [*prompt.token_ids, *answer.token_ids.tolist()])[len(ids) - 1 :]
        assert answer.top_ids.tolist() == logp_LV.topk(request.top).indices.tolist()
        outside += sum(token not in top for token, top in zip(answer.token_ids, answer.top_ids, strict=True))
    assert outside > 0, "sampled tokens are not added to the list"


# Weights of a learner elsewhere


async def test_weights_that_are_not_shared_are_copied_on_load() -> None:
    theirs, ours = tiny.lm_of("llama"), tiny.fresh()
    with torch.no_grad():
        for parameter in ours.model.parameters():
            parameter.mul_(0.5)
    engine = InProcessEngine(ours, HFEngineConfig(), shared=False)
    await engine.load(LocalPolicy(theirs, 3))
    for rollout in await sample_rollouts(engine, PROMPTS[:3], Sampling(0.9, 6)):
        assert_logprobs(theirs, rollout)
        assert set(rollout.versions.tolist()) == {3}


async def test_weights_of_another_shape_or_name_are_refused() -> None:
    engine = InProcessEngine(tiny.fresh(), HFEngineConfig(), shared=False)
    with pytest.raises(EngineError, match="has a weight"):
        await engine.load(LocalPolicy(tiny.lm_of("gpt2")))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_a_shorter_turn_is_the_beginning_of_the_longer_one_whatever_is_in_its_unit(family: str) -> None:
    """gpt2 has no positions beyond its context: a row that ends there leaves, though others go on."""
    lm, key, long = tiny.fresh(family), Key("p"), Sampling(1.0, 12, seed=3)
    full = np.arange(5, 5 + tiny.CONTEXT - 4, dtype=np.int64) % tiny.VOCABULARY
    requests = [
        SampleRequest(key, np.array([9, 8, 7]), long),
        SampleRequest(key, np.array([9, 8, 7]), replace(long, max_tokens=5)),
        SampleRequest(key, full, replace(long, max_tokens=4)),
    ]
    engine = InProcessEngine(lm, HFEngineConfig())
    await engine.load(LocalPolicy(lm))
    whole, short, last = await engine.sample(requests)
    (alone,) = await engine.sample(requests[2:])
    assert (len(whole.token_ids), len(short.token_ids), len(last.token_ids)) == (12, 5, 4)  # type: ignore[union-attr]
    np.testing.assert_array_equal(short.token_ids, whole.token_ids[:5])  # type: ignore[union-attr]
    np.testing.assert_array_equal(last.token_ids, alone.token_ids)  # type: ignore[union-attr]
