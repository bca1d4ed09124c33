"""Remote teachers over real HTTP: exact where they say so, certified where not, and every liar named."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from limbeck.config.teacher import SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.bake_probe import ProbeFile, ProbeSequence
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError, DataError, RecipeError, TeacherError
from limbeck.records import Failure, Prompt, Rollout, Sampling, TokenScores, TopKScores
from limbeck.teachers.connect import remote_teacher
from limbeck.teachers.remote import RemoteTeacher
from limbeck.teachers.routed import RoutedTeacher
from tests.fake_server import FakeServer

V = 99
TEXTS = [tuple(int(i) for i in np.random.default_rng(n).integers(0, V, 20 + n)) for n in range(4)]
KINDS = {"sglang": SGLangTeacherConfig, "vllm": VLLMTeacherConfig}
both = pytest.mark.parametrize("kind", sorted(KINDS))


def rollouts(temperature: float, count: int = 6) -> list[Rollout]:
    out = []
    for n in range(count):
        rng = np.random.default_rng(100 + n)
        prompt, response = 3 + n, 2 * n  # the first response is empty
        ids = rng.integers(0, V, prompt + response)
        trained = np.arange(len(ids)) >= prompt
        if response > 4:
            trained[prompt + 2] = False  # a tool's token in the middle
        out.append(
            Rollout(
                Prompt(f"p{n}", tuple(int(i) for i in ids[:prompt])), 0, ids, trained,
                np.zeros(int(trained.sum()), np.float32), 0, "stop", Sampling(temperature, 32),
            )
        )  # fmt: skip
    return out


def teacher_of(server: FakeServer, kind: str, support: int = 5, **options: Any) -> RemoteTeacher:
    given = {"retry_seconds": 60.0, "timeout": 60.0, "top_logprobs": 60, "max_rescale_dropped": 0.5} | options
    section = KINDS[kind](url=given.pop("url", server.url), **given)
    return remote_teacher("t", section, V, V, support)


async def prove(teacher: RemoteTeacher, temperature: float, tokenizer: Any = None) -> dict[str, Any]:
    ids = continuations(TEXTS[-1], V)
    return {v.probe: v for v in await prove_remote(teacher, TEXTS, ids, temperature, tokenizer)}


def assert_scores_are_the_truth(server: FakeServer, teacher: RemoteTeacher, marked, given, atol: float) -> None:
    """Within `atol`, or within each position's own certificate where it has one."""
    for rollout, scores in zip(given, marked, strict=True):
        assert isinstance(scores, TokenScores | TopKScores), scores
        count = len(rollout.response_ids)
        if not count:
            continue
        start = len(rollout.prompt.token_ids)
        truth = server.truth(rollout.token_ids, start, rollout.sampling.temperature)[rollout.trained[start:]]
        sampled = truth[np.arange(count), rollout.response_ids]
        of_sampled = scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs
        known = np.ones(count, bool) if scores.known is None else scores.known
        bound = np.full(count, atol) if scores.errors is None else scores.errors
        assert (np.abs(of_sampled - sampled)[known] <= bound[known]).all()
        if isinstance(scores, TopKScores):
            best = np.sort(truth, axis=1)[:, ::-1][:, : teacher.support]
            assert (np.abs(scores.logprobs - best)[known] <= bound[known, None]).all()
            np.testing.assert_allclose(np.take_along_axis(truth, scores.ids, axis=1)[known], best[known], atol=1e-5)
        assert np.isnan(of_sampled[~known]).all()


# --- Honest servers -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("support", [0, 5])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
async def test_a_server_that_scores_at_t_is_taken_as_native(kind: str, support: int, temperature: float) -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = teacher_of(server, kind, support)
        verdicts = await prove(teacher, temperature)
        assert teacher.method == "native"
        assert verdicts["method native"].ok
        given = rollouts(temperature)
        assert_scores_are_the_truth(server, teacher, await teacher.score(given), given, 1e-5)
        await teacher.close()


@both
@pytest.mark.parametrize("support", [0, 5])
@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.3])
async def test_a_stock_server_is_found_out_and_rescaled_within_its_certificate(
    kind: str, support: int, temperature: float
) -> None:
    async with FakeServer() as server:
        teacher = teacher_of(server, kind, support)
        verdicts = await prove(teacher, temperature)
        assert teacher.method == "rescale"
        assert "did not acknowledge" in verdicts["method native"].measured
        given = rollouts(temperature)
        marked = await teacher.score(given)
        assert_scores_are_the_truth(server, teacher, marked, given, 0.0)
        bounds = np.concatenate([s.errors for s in marked if s.errors is not None])
        assert bounds[bounds <= 0.02].size > 0
        await teacher.close()


async def test_temperature_one_needs_no_method() -> None:
    async with FakeServer() as server:
        teacher = teacher_of(server, "sglang")
        await prove(teacher, 1.0)
        assert teacher.method == "plain"
        given = rollouts(1.0)
        assert_scores_are_the_truth(server, teacher, await teacher.score(given), given, 1e-5)
        await teacher.close()


async def test_only_the_response_is_asked_for() -> None:
    async with FakeServer() as server:
        teacher = teacher_of(server, "sglang")
        given = rollouts(1.0)[3]
        await teacher.score([given])
        assert server.bodies[-1]["logprob_start_len"] == len(given.prompt.token_ids) - 1
        assert server.bodies[-1]["sampling_params"]["max_new_tokens"] == 0
        await teacher.close()


async def test_a_baked_server_is_proven_by_its_probe_file(tmp_path) -> None:
    async with FakeServer(temperature=0.7) as server:
        rows = [server.truth(list(t), 1, 0.7)[np.arange(len(t) - 1), t[1:]] for t in TEXTS]
        probe = [ProbeSequence(t, 1, tuple(map(float, r))) for t, r in zip(TEXTS, rows, strict=True)]
        ProbeFile(0.7, "m", V, ("norm",), {}, probe).write(tmp_path)
        teacher = teacher_of(server, "vllm", baked=str(tmp_path))
        await prove(teacher, 0.7)
        assert teacher.method == "baked"
        given = rollouts(0.7)
        assert_scores_are_the_truth(server, teacher, await teacher.score(given), given, 1e-5)
        for t in (0.5, 1.0):  # another run's temperature: neither taken as baked nor rescaled from
            with pytest.raises(ContractError, match=r"baked for temperature 0\.7"):
                await prove(teacher_of(server, "vllm", baked=str(tmp_path), temperature_method="baked"), t)
        with pytest.raises(ContractError, match=r"method rescale: the server holds a checkpoint baked for"):
            await prove(teacher_of(server, "vllm", baked=str(tmp_path)), 0.5)
        server.temperature = 1.0
        with pytest.raises(ContractError, match="away from the probe file"):
            await prove(teacher_of(server, "vllm", baked=str(tmp_path), temperature_method="baked"), 0.7)


# --- Liars --------------------------------------------------------------------------------------------


@both
async def test_a_server_that_acknowledges_t_and_ignores_it_is_caught_by_the_ratio(kind: str) -> None:
    async with FakeServer(knows_temperature=True, ignores_temperature=True) as server:
        with pytest.raises(ContractError, match=r"(?s)does not score at temperature 0.7.*limbeck bake") as caught:
            await prove(teacher_of(server, kind, temperature_method="native"), 0.7)
        assert [v.probe for v in caught.value.verdicts if not v.ok] == ["method native"]


@both
@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"shift": 1}, "shifted by one"),
        ({"shift": -1}, "shifted by one"),
        ({"shift": 1, "shifts_tops": True}, "shifted by one"),
        ({"truncates": 1}, "entries"),
        ({"other_ids": True}, "another tokenizer"),
        ({"clamps": True}, "stands for a probability of 0"),
        ({"nan": True}, "log-prob of nan"),
        ({"noise": 0.3}, "moved by|differs by"),
    ],
)
async def test_every_lie_is_named_before_training(kind: str, lie: dict[str, Any], says: str) -> None:
    async with FakeServer(**lie) as server:
        with pytest.raises(ContractError, match=says) as caught:
            await prove(teacher_of(server, kind), 0.7)
        assert not caught.value.verdicts[-1].ok


@both
async def test_another_tokenizer_is_caught_by_its_splitting(kind: str) -> None:
    class Ours:
        def __call__(self, text: str) -> Any:
            return type("Encoding", (), {"input_ids": [ord(c) % V for c in text]})

    async with FakeServer(tokenizer=lambda text: [ord(c) % V for c in text]) as server:
        assert "tokenizer" in await prove(teacher_of(server, kind), 0.7, Ours())
    async with FakeServer(tokenizer=lambda text: [len(w) for w in text.split()]) as server:
        with pytest.raises(ContractError, match="splits"):
            await prove(teacher_of(server, kind), 0.7, Ours())


@both
@pytest.mark.parametrize("drift", ["weights", "temperature", "name"])
async def test_a_server_that_changes_mid_run_stops_the_step(kind: str, drift: str) -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = teacher_of(server, kind)
        await prove(teacher, 0.7)
        await teacher.score(rollouts(0.7))
        if drift == "weights":
            server.set_weights(5)
        elif drift == "temperature":
            server.ignores_temperature = True
        else:
            server.model = "teacher-v2"
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(rollouts(0.7))
        await teacher.close()


async def test_a_change_while_answers_come_in_is_not_trained_on() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = teacher_of(server, "sglang")
        await prove(teacher, 0.7)
        server.drifts_after = server.requests + 2
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(rollouts(0.7))
        await teacher.close()


async def test_replicas_that_differ_are_refused() -> None:
    async with FakeServer(knows_temperature=True) as one, FakeServer(knows_temperature=True, seed=1) as two:
        with pytest.raises(ContractError, match="replicas"):
            await prove(teacher_of(one, "sglang", url=(one.url, two.url)), 0.7)


async def test_rescaling_that_cannot_be_certified_is_refused_with_the_remedies() -> None:
    async with FakeServer(scale=0.5) as server:  # flat: twenty tokens say little
        with pytest.raises(ContractError, match=r"(?s)rescale: top 20.*left out.*limbeck serve.*limbeck bake"):
            await prove(teacher_of(server, "sglang", top_logprobs=20, max_rescale_dropped=0.05), 2.0)


# --- Faults -------------------------------------------------------------------------------------------


async def scored_through(kind: str, **faults: Any) -> tuple[list[Any], FakeServer, RemoteTeacher]:
    async with FakeServer() as server:
        teacher = teacher_of(server, kind, timeout=2.0, retry_seconds=90.0)
        await prove(teacher, 0.7)
        for name, value in faults.items():
            setattr(server, name, value)
        marked = await teacher.score(rollouts(0.7))
        await teacher.close()
        return marked, server, teacher


def same(a: list[Any], b: list[Any]) -> bool:
    return all(
        np.array_equal(getattr(x, f), getattr(y, f), equal_nan=True)
        for x, y in zip(a, b, strict=True)
        if isinstance(x, TopKScores)
        for f in ("ids", "logprobs", "logprobs_of_sampled", "known")
    )


@both
async def test_drops_delays_cuts_and_corruption_cost_time_and_nothing_else(kind: str) -> None:
    calm, _, _ = await scored_through(kind)
    faults = {"drop": 0.15, "delay": 0.1, "cut": 0.15, "corrupt": 0.3, "fail": 0.1, "busy": 0.1, "digest": True}
    stormy, _, teacher = await scored_through(kind, **faults)
    assert teacher.pool.counts.retries > 3
    assert same(calm, stormy)


@both
async def test_garbled_json_without_a_digest_is_asked_for_again(kind: str) -> None:
    calm, _, _ = await scored_through(kind)
    stormy, _, teacher = await scored_through(kind, corrupt=0.4)
    assert teacher.pool.counts.retries > 0
    assert same(calm, stormy)


async def test_a_server_that_comes_back_is_waited_for() -> None:
    async with FakeServer() as server:
        teacher = teacher_of(server, "sglang", retry_seconds=20.0)
        await prove(teacher, 0.7)
        calm = await teacher.score(rollouts(0.7))
        await server.stop()

        async def later() -> None:
            await asyncio.sleep(0.5)
            await server.start()

        marked, _ = await asyncio.gather(teacher.score(rollouts(0.7)), later())
        assert same(calm, marked)
        await teacher.close()


async def test_a_server_that_stays_down_stops_the_step_once_and_not_per_response() -> None:
    import time

    async with FakeServer() as server:
        teacher = teacher_of(server, "sglang", retry_seconds=1.0, max_concurrency=2)
        await prove(teacher, 0.7)
        await server.stop()
        start = time.monotonic()
        with pytest.raises(TeacherError, match="cannot be probed"):
            await teacher.score(rollouts(0.7, 12))
        assert time.monotonic() - start < 12  # and not 1 s for each of the twelve, several times over
        await teacher.close()


async def test_an_answer_that_never_ends_is_given_up_though_bytes_keep_coming() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = teacher_of(server, "sglang", timeout=0.5, retry_seconds=0.1)
        teacher.method = "native"
        server.drip = 0.05  # every byte within the timeout, the whole of it in half a minute
        marked = await asyncio.wait_for(teacher.score(rollouts(0.7)[1:2]), 20)
        assert isinstance(marked[0], Failure)
        assert marked[0].kind == "timeout"
        await teacher.close()


async def test_one_dead_replica_of_two_is_passed_over() -> None:
    async with FakeServer() as one, FakeServer() as two:
        teacher = teacher_of(one, "sglang", url=(one.url, two.url), retry_seconds=10.0)
        await prove(teacher, 0.7)
        calm = await teacher.score(rollouts(0.7))
        await one.stop()
        assert same(calm, await teacher.score(rollouts(0.7)))
        await one.start()
        one.set_weights(9)  # comes back as another model
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(rollouts(0.7))
        await teacher.close()


async def test_a_failed_response_is_a_failure_and_never_a_number() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = teacher_of(server, "sglang")
        await prove(teacher, 0.7)
        teacher.anchor = None
        server.truncates = 1
        marked = await teacher.score(rollouts(0.7)[1:])
        assert all(isinstance(m, Failure) and m.kind == "short" for m in marked)
        await teacher.close()


async def test_too_many_uncertain_positions_stop_the_step() -> None:
    async with FakeServer(scale=0.5) as server:
        teacher = teacher_of(server, "sglang", top_logprobs=5, max_rescale_dropped=0.1)
        teacher.method = "rescale"
        with pytest.raises(TeacherError, match="max_rescale_dropped"):
            await teacher.score(rollouts(1.5))
        await teacher.close()


async def test_k_above_the_vocabulary_never_reaches_the_server() -> None:
    async with FakeServer() as server:
        teacher = teacher_of(server, "sglang", support=V + 1)
        with pytest.raises(ValueError, match="vocabulary of 99"):
            await teacher.score(rollouts(1.0))
        assert server.requests == 0
        await teacher.close()


async def test_the_bearer_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_TOKEN", "open sesame")
    async with FakeServer(knows_temperature=True, token="open sesame") as server:
        await prove(teacher_of(server, "sglang", token_env="TEACHER_TOKEN"), 0.7)
        with pytest.raises(ContractError, match="token_env"):
            await prove(teacher_of(server, "sglang"), 0.7)
        monkeypatch.delenv("TEACHER_TOKEN")
        with pytest.raises(RecipeError, match=r"teacher\.token_env.*no such variable"):
            teacher_of(server, "sglang", token_env="TEACHER_TOKEN")


# --- Several ------------------------------------------------------------------------------------------


async def test_each_prompt_is_marked_by_its_own_teacher() -> None:
    from dataclasses import replace

    async with FakeServer(knows_temperature=True) as one, FakeServer(knows_temperature=True, seed=7) as two:
        members = {"a": teacher_of(one, "sglang"), "b": teacher_of(two, "vllm")}
        for member in members.values():
            member.method = "native"
        routed = RoutedTeacher(members, default="a")
        given = [
            replace(r, prompt=replace(r.prompt, teacher=name))
            for r, name in zip(rollouts(0.7)[1:], [None, "b", "a", "b", None], strict=True)
        ]
        marked = await routed.score(given)
        for rollout, scores, server in zip(given, marked, [one, two, one, two, one], strict=True):
            assert_scores_are_the_truth(server, members["a"], [scores], [rollout], 1e-5)
        with pytest.raises(DataError, match="names the teacher 'c'"):
            routed.check_routes([replace(given[0].prompt, teacher="c")])
        with pytest.raises(DataError, match=r"no teacher\.default"):
            RoutedTeacher(members, None).check_routes([given[0].prompt])
        await routed.close()
