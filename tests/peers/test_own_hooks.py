"""slime's and miles's own hooks, unmodified, against `limbeck serve`: what the guides say of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from limbeck.serve.app import make_app
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from tests import tiny
from tests.fake_server import FakeServer, log_softmax
from tests.peers.checkouts import Arguments, load

pytestmark = pytest.mark.peers

T, K, PROMPT = 0.7, 6, 8
TOKENS = [int(i) for i in np.random.default_rng(1).integers(5, tiny.VOCABULARY, 20)]
LENGTH = len(TOKENS) - PROMPT


def teacher(temperature: float) -> np.ndarray:
    """[LENGTH, V] of the whole response."""
    rows = tiny.logprobs(tiny.lm_of("llama").model, TOKENS, temperature).numpy()
    return np.asarray(rows[PROMPT - 1 :])


async def answer(post: Callable[[str, dict[str, Any]], Any], **settings: Any) -> Any:
    """What `post` gives, with `limbeck serve` behind `http://teacher`."""
    app = make_app(Scorer(tiny.lm_of("llama")), ServeSettings(**settings), "tiny 0")
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http,
        httpx.AsyncClient() as network,
    ):

        async def to_either(url: str, payload: dict[str, Any], **_: Any) -> Any:
            client = http if url.startswith("http://teacher") else network
            reply = await client.post(url, json=payload)
            return reply.raise_for_status().json()

        return await post(to_either)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["only-student", "intersection", "only-teacher", "union", "xor"])
def test_which_of_miless_strategies_have_both_sides_at_one_temperature(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = load("LIMBECK_MILES", "miles.rollout.on_policy_distillation")
    sample = load("LIMBECK_MILES", "miles.utils.types").Sample(tokens=TOKENS, response_length=LENGTH)

    async def run() -> Any:
        async with FakeServer(vocabulary=tiny.VOCABULARY, echoes=False) as student:  # a stock server: at 1, always
            student_T, student_1 = (student.truth(TOKENS, PROMPT, t) for t in (T, 1.0))
            tops = np.argsort(-student_T, axis=1)[:, :K]  # of the sampled answer, at the sampling temperature
            sample.metadata["opd_student_top_logprobs"] = [
                [[float(row[i]), int(i), None] for i in top] for row, top in zip(student_T, tops, strict=True)
            ]
            args = Arguments(
                rm_url="http://teacher/generate", opd_log_prob_top_k=K, opd_top_k_strategy=strategy,
                opd_reward_weight_mode="student_p", sglang_router_ip="127.0.0.1", sglang_router_port=student.port,
            )  # fmt: skip

            async def post(to_either: Any) -> Any:
                monkeypatch.setattr(hook, "_post_json", lambda url, payload, timeout_secs=None: to_either(url, payload))
                return await hook.reward_func(args, sample)

            sample.reward = await answer(post, temperature=T)
            hook.post_process_rewards(args, [sample])
            return student_T, student_1

    student_T, _ = asyncio.run(run())
    expected = [
        penalty(strategy, s, q) for s, q in zip(student_T, log_softmax(teacher(1.0).astype(float), T), strict=True)
    ]
    difference = np.abs(sample.opd_reverse_kl.numpy() - expected).max()
    assert (difference < 1e-4) == (strategy in ("only-student", "intersection")), difference


def penalty(strategy: str, student: np.ndarray, scores: np.ndarray) -> float:
    """Theirs, with every log-prob at T."""
    ours, theirs = (set(np.argsort(-row)[:K].tolist()) for row in (student, scores))
    sets = {"only-student": ours, "only-teacher": theirs, "intersection": ours & theirs, "union": ours | theirs}
    ids = sorted(sets.get(strategy, ours ^ theirs))
    weights = np.exp(student[ids])
    weights = weights if strategy == "xor" or not ids else weights / weights.sum()
    return float((weights * (student[ids] - scores[ids])).sum())


@pytest.mark.parametrize(
    ("trainer", "settings", "sampled_at", "status"),
    [
        ("slime", {"temperature": T}, T, 200),
        ("slime", {"temperature": T}, 1.0, 400),
        ("slime", {}, T, 200),
        ("slime", {"temperature": T, "ignore_sampling_temperature": True}, 1.0, 200),
        ("miles", {"temperature": T}, T, 200),
        ("miles", {}, T, 400),
    ],
)
def test_their_own_hooks_are_answered_at_the_rollout_temperature_or_refused(
    trainer: str, settings: dict[str, Any], sampled_at: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = load(f"LIMBECK_{trainer.upper()}", f"{trainer}.rollout.on_policy_distillation")
    sample = load(f"LIMBECK_{trainer.upper()}", f"{trainer}.utils.types").Sample(tokens=TOKENS, response_length=LENGTH)
    args = Arguments(rm_url="http://teacher/generate", rollout_temperature=sampled_at)

    async def post(to_either: Any) -> Any:
        monkeypatch.setattr(hook.aiohttp, "ClientSession", lambda **_: Session(to_either))
        monkeypatch.setattr(hook.aiohttp, "ClientTimeout", lambda **_: None)
        return await hook.reward_func(args, sample)

    if status != 200:
        with pytest.raises(httpx.HTTPStatusError, match=f"{status}"):
            asyncio.run(answer(post, **settings))
        return
    sample.reward = asyncio.run(answer(post, **settings))
    hook.post_process_rewards(args, [sample])
    expected = log_softmax(teacher(1.0).astype(float), T)[np.arange(LENGTH), TOKENS[PROMPT:]]
    np.testing.assert_allclose(sample.teacher_log_probs.numpy(), expected, atol=1e-4)


class Session:
    """As much of aiohttp's as their hooks use, whether it is installed or not."""

    def __init__(self, to_either: Any) -> None:
        self.to_either = to_either

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def post(self, url: str, json: dict[str, Any]) -> Reply:
        return Reply(self.to_either(url, json))


class Reply:
    def __init__(self, body: Any) -> None:
        self.body = body

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def raise_for_status(self) -> None:
        """`json` does."""

    async def json(self) -> Any:
        return await self.body
