"""Remote teachers over real HTTP: exact where they say so, certified where not, and every liar named."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.assemble.proven import method_line
from limbeck.config.teacher import REMOTE_KINDS, SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.bake_probe import ProbeFile, ProbeSequence
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError, DataError, RecipeError, TeacherError
from limbeck.records import Failure, ModelInfo, Prompt, ScoreRequest, Support, TokenScores, TopKScores
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.connect import BACKENDS, connect
from limbeck.teachers.remote import Method, Proof, RemoteTeacher
from limbeck.teachers.routed import RoutedTeacher
from tests.fake_server import FakeServer

V = 99
INFO = ModelInfo("m", V)
TEXTS = [tuple(int(i) for i in np.random.default_rng(n).integers(0, V, 20 + n)) for n in range(4)]
KINDS = {"sglang": SGLangTeacherConfig, "vllm": VLLMTeacherConfig}
both = pytest.mark.parametrize("kind", sorted(KINDS))


def requests(temperature: float, count: int = 6, support: Support = 5) -> list[ScoreRequest]:
    """Growing responses, the first of them empty; longer ones with a tool's token in the middle."""
    out = []
    for n in range(count):
        rng = np.random.default_rng(100 + n)
        prompt, response = 3 + n, 2 * n
        ids = rng.integers(0, V, prompt + response)
        scored = np.arange(len(ids)) >= prompt
        if response > 4:
            scored[prompt + 2] = False
        out.append(ScoreRequest(f"r{n}", ids, scored, temperature, support))
    return out


def client_of(server: FakeServer, kind: str, **options: Any) -> RemoteClient:
    given = {"retry_seconds": 60.0, "timeout": 60.0, "top_logprobs": 60, "max_rescale_dropped": 0.5} | options
    section = KINDS[kind](url=given.pop("url", server.url), **given)
    return connect("t", section, V, V)


def by_method(server: FakeServer, kind: str, method: Method, **options: Any) -> RemoteTeacher:
    """One that was never proven."""
    return RemoteTeacher(client_of(server, kind, **options), Proof(method, INFO))


async def prove(client: RemoteClient, temperature: float, support: Support = 5, tokenizer: Any = None) -> RemoteTeacher:
    ids = continuations(TEXTS[-1], V)
    proof = await prove_remote(client, TEXTS, ids, temperature, tokenizer, support=support, longest=128)
    return RemoteTeacher(client, proof)


def results_of(teacher: RemoteTeacher) -> dict[str, Any]:
    return {result.probe: result for result in teacher.proof.results}


def assert_scores_are_the_truth(server: FakeServer, scored, asked, atol: float) -> None:
    """Within `atol`, or within each position's own certificate where it has one."""
    for request, scores in zip(asked, scored, strict=True):
        assert isinstance(scores, TokenScores | TopKScores), scores
        assert scores.scorer == "t"
        assert scores.temperature == request.temperature
        count = len(request.scored_ids)
        if not count:
            continue
        rows = server.truth(request.token_ids, request.start, request.temperature)[request.scored[request.start :]]
        sampled = rows[np.arange(count), request.scored_ids]
        of_sampled = scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs
        valid = np.ones(count, bool) if scores.valid_mask is None else scores.valid_mask
        bound = np.full(count, atol) if scores.errors is None else scores.errors
        assert (np.abs(of_sampled - sampled)[valid] <= bound[valid]).all()
        assert isinstance(scores, TopKScores) is (request.support != "sampled")
        if isinstance(scores, TopKScores):
            best = np.sort(rows, axis=1)[:, ::-1][:, : request.support]
            assert (np.abs(scores.logprobs - best)[valid] <= bound[valid, None]).all()
            np.testing.assert_allclose(np.take_along_axis(rows, scores.ids, axis=1)[valid], best[valid], atol=1e-5)
        assert np.isnan(of_sampled[~valid]).all()


# --- Honest servers -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("support", ["sampled", 5])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
async def test_a_server_that_scores_at_t_is_taken_as_native(kind: str, support: Support, temperature: float) -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, kind), temperature, support)
        assert (teacher.proof.method, teacher.proof.acknowledges) == ("native", True)
        assert results_of(teacher)["method native"].ok
        asked = requests(temperature, support=support)
        assert_scores_are_the_truth(server, await teacher.score(asked), asked, 1e-5)
        await teacher.close()


@both
@pytest.mark.parametrize("support", ["sampled", 5])
@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.3])
async def test_a_stock_server_is_found_out_and_rescaled_within_its_certificate(
    kind: str, support: Support, temperature: float
) -> None:
    async with FakeServer() as server:
        teacher = await prove(client_of(server, kind), temperature, support)
        assert (teacher.proof.method, teacher.proof.acknowledges) == ("rescale", False)
        site: Any = SimpleNamespace(recipe=SimpleNamespace(rollout=SimpleNamespace(temperature=0.7)))
        line = method_line("t", teacher, teacher.proof.results, site)
        assert line.startswith("t at T = 0.7: rescaled from log-probs at T = 1, certified to ")
        assert "(top 60: median " in line
        assert "did not acknowledge" in results_of(teacher)["method native"].measured
        asked = requests(temperature, support=support)
        scored = await teacher.score(asked)
        assert_scores_are_the_truth(server, scored, asked, 0.0)
        valid = np.concatenate([s.valid_mask for s in scored if s.valid_mask is not None])
        assert valid.any()
        await teacher.close()


async def test_temperature_one_needs_no_method() -> None:
    async with FakeServer() as server:
        teacher = await prove(client_of(server, "sglang"), 1.0)
        assert teacher.proof.method == "plain"
        asked = requests(1.0)
        assert_scores_are_the_truth(server, await teacher.score(asked), asked, 1e-5)
        await teacher.close()


async def test_only_the_response_is_asked_for() -> None:
    async with FakeServer() as server:
        teacher = by_method(server, "sglang", "plain")
        asked = requests(1.0)[3]
        await teacher.score([asked])
        assert server.bodies[-1]["logprob_start_len"] == asked.start - 1
        assert server.bodies[-1]["sampling_params"]["max_new_tokens"] == 0
        await teacher.close()


async def test_given_ids_are_scored_at_t_by_a_server_that_can() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        request = requests(0.7)[4]
        given = np.tile([7, 3, 50], (len(request.scored_ids), 1))
        (scores,) = await teacher.score([ScoreRequest("r", request.token_ids, request.scored, 0.7, given)])
        assert isinstance(scores, TopKScores)
        rows = server.truth(request.token_ids, request.start, 0.7)[request.scored[request.start :]]
        np.testing.assert_array_equal(scores.ids, given)
        np.testing.assert_allclose(scores.logprobs, rows[:, [7, 3, 50]], atol=1e-5)
        await teacher.close()


@pytest.mark.parametrize(
    ("kind", "method", "support", "says"),
    [
        ("vllm", "native", np.array([[7]] * 2), "vLLM does not take"),
        ("sglang", "rescale", np.array([[7]] * 2), "cannot be asked about given ids"),
        ("sglang", "native", "full", r"method 'native'.*no whole distribution.*teacher\.head"),
    ],
)
async def test_a_support_that_a_method_has_no_answer_for_stops_the_step(
    kind: str, method: Method, support: Support, says: str
) -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = by_method(server, kind, method)
        with pytest.raises(ContractError, match=says):
            await teacher.score([requests(0.7, support=support)[1]])
        assert server.requests == 0
        await teacher.close()


def baked_folder(server: FakeServer, folder, temperature: float = 0.7) -> str:
    """The probe file of a checkpoint that is `server`'s at a temperature."""
    rows = [server.truth(list(t), 1, temperature)[np.arange(len(t) - 1), t[1:]] for t in TEXTS]
    probe = [ProbeSequence(t, 1, tuple(map(float, r))) for t, r in zip(TEXTS, rows, strict=True)]
    ProbeFile(temperature, "m", V, ("norm",), {}, probe).write(folder)
    return str(folder)


async def test_a_baked_server_is_proven_by_its_probe_file(tmp_path) -> None:
    async with FakeServer(temperature=0.7) as server:
        baked = baked_folder(server, tmp_path)
        teacher = await prove(client_of(server, "vllm", baked=baked), 0.7)
        assert (teacher.proof.method, teacher.info.natural_temperature) == ("baked", 0.7)
        asked = requests(0.7)
        assert_scores_are_the_truth(server, await teacher.score(asked), asked, 1e-5)
        server.temperature = 1.0
        with pytest.raises(ContractError, match="away from the probe file"):
            await prove(client_of(server, "vllm", baked=baked, temperature_method="baked"), 0.7)
        await teacher.close()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("acknowledges", [False, True])
async def test_a_checkpoint_baked_for_another_temperature_is_refused_by_every_method(
    tmp_path, temperature: float, acknowledges: bool
) -> None:
    """The ratio test is relative, so native and plain would pass it, and T would be applied twice."""
    async with FakeServer(temperature=0.7, knows_temperature=acknowledges) as server:
        baked = baked_folder(server, tmp_path)
        with pytest.raises(ContractError, match=r"baked for temperature 0\.7"):
            await prove(client_of(server, "vllm", baked=baked), temperature)


def test_a_backend_is_one_entry_in_one_table() -> None:
    assert set(BACKENDS) == set(REMOTE_KINDS)
    for kind, backend in BACKENDS.items():
        assert (
            backend.config.model_fields["kind"].default
            == kind
            == backend.dialect(backend.config(url="http://server")).kind
        )


# --- Liars --------------------------------------------------------------------------------------------


@both
async def test_a_server_that_acknowledges_t_and_ignores_it_is_caught_by_the_ratio(kind: str) -> None:
    async with FakeServer(knows_temperature=True, ignores_temperature=True) as server:
        with pytest.raises(ContractError, match=r"(?s)does not score at temperature 0.7.*limbeck bake") as caught:
            await prove(client_of(server, kind, temperature_method="native"), 0.7)
        assert [result.probe for result in caught.value.results if not result.ok] == ["method native"]


@both
@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"shift": 1}, "shifted by one"),
        ({"shift": -1}, "shifted by one"),
        ({"shift": 1, "shifts_tops": True}, "shifted by one"),
        ({"truncates": 1}, "entries"),
        ({"other_ids": True}, "another tokenizer"),
        ({"clamps": True}, "means a probability of 0"),
        ({"nan": True}, "log-prob of nan"),
        ({"noise": 0.3}, "moved by|differs by"),
    ],
)
async def test_every_lie_is_named_before_training(kind: str, lie: dict[str, Any], says: str) -> None:
    async with FakeServer(**lie) as server:
        with pytest.raises(ContractError, match=says) as caught:
            await prove(client_of(server, kind), 0.7)
        assert not caught.value.results[-1].ok


@both
async def test_another_tokenizer_is_caught_by_its_splitting(kind: str) -> None:
    class Ours:
        def __call__(self, text: str, **_: Any) -> Any:
            return type("Encoding", (), {"input_ids": [ord(c) % V for c in text]})

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    async with FakeServer(tokenizer=lambda text: [ord(c) % V for c in text]) as server:
        teacher = await prove(client_of(server, kind), 0.7, tokenizer=Ours())
        assert "tokenizer" in results_of(teacher)
    async with FakeServer(tokenizer=lambda text: [len(w) for w in text.split()]) as server:
        with pytest.raises(ContractError, match="splits"):
            await prove(client_of(server, kind), 0.7, tokenizer=Ours())


@both
@pytest.mark.parametrize("drift", ["weights", "temperature", "name"])
async def test_a_server_that_changes_mid_run_stops_the_step(kind: str, drift: str) -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, kind), 0.7)
        await teacher.score(requests(0.7))
        if drift == "weights":
            server.set_weights(5)
        elif drift == "temperature":
            server.ignores_temperature = True
        else:
            server.model = "teacher-v2"
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


async def test_a_change_while_answers_come_in_is_not_trained_on() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        server.drifts_after = server.requests + 2
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


async def test_replicas_that_differ_are_refused() -> None:
    async with FakeServer(knows_temperature=True) as one, FakeServer(knows_temperature=True, seed=1) as two:
        with pytest.raises(ContractError, match="replicas"):
            await prove(client_of(one, "sglang", url=(one.url, two.url)), 0.7)


async def test_rescaling_that_cannot_be_certified_is_refused_with_the_remedies() -> None:
    async with FakeServer(scale=0.5) as server:  # flat: twenty tokens say little
        with pytest.raises(ContractError, match=r"(?s)rescale: top 20.*masked.*limbeck serve.*limbeck bake"):
            await prove(client_of(server, "sglang", top_logprobs=20, max_rescale_dropped=0.05), 2.0)


# --- Faults -------------------------------------------------------------------------------------------


async def scored_through(kind: str, **faults: Any) -> tuple[list[Any], FakeServer, RemoteTeacher]:
    async with FakeServer() as server:
        teacher = await prove(client_of(server, kind, timeout=2.0, retry_seconds=90.0), 0.7)
        for name, value in faults.items():
            setattr(server, name, value)
        scored = await teacher.score(requests(0.7))
        await teacher.close()
        return scored, server, teacher


def same(a: list[Any], b: list[Any]) -> bool:
    return all(
        np.array_equal(getattr(x, f), getattr(y, f), equal_nan=True)
        for x, y in zip(a, b, strict=True)
        if isinstance(x, TopKScores)
        for f in ("ids", "logprobs", "logprobs_of_sampled", "valid_mask")
    )


@both
async def test_drops_delays_cuts_and_corruption_cost_time_and_nothing_else(kind: str) -> None:
    calm, _, _ = await scored_through(kind)
    faults = {"drop": 0.15, "delay": 0.1, "cut": 0.15, "corrupt": 0.3, "fail": 0.1, "busy": 0.1, "digest": True}
    stormy, _, teacher = await scored_through(kind, **faults)
    assert teacher.client.pool.counts.retries > 3
    assert same(calm, stormy)


@both
async def test_an_answer_that_is_no_json_is_asked_for_again(kind: str) -> None:
    calm, _, _ = await scored_through(kind)
    stormy, _, teacher = await scored_through(kind, garble=0.4)
    assert teacher.client.pool.counts.retries > 0
    assert same(calm, stormy)


async def test_a_server_that_comes_back_is_waited_for() -> None:
    async with FakeServer() as server:
        teacher = await prove(client_of(server, "sglang", retry_seconds=20.0), 0.7)
        calm = await teacher.score(requests(0.7))
        await server.stop()

        async def later() -> None:
            await asyncio.sleep(0.5)
            await server.start()

        scored, _ = await asyncio.gather(teacher.score(requests(0.7)), later())
        assert same(calm, scored)
        await teacher.close()


async def test_a_server_that_stays_down_stops_the_step_once_and_not_per_response() -> None:
    async with FakeServer() as server:
        teacher = await prove(client_of(server, "sglang", retry_seconds=1.0, max_concurrency=2), 0.7)
        await server.stop()
        start = time.monotonic()
        with pytest.raises(TeacherError, match="cannot be probed"):
            await teacher.score(requests(0.7, 12))
        assert time.monotonic() - start < 12  # and not 1 s for each of the twelve, several times over
        await teacher.close()


async def test_an_answer_that_never_ends_is_given_up_though_bytes_keep_coming() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = by_method(server, "sglang", "native", timeout=0.5, retry_seconds=0.1)
        server.drip = 0.05  # every byte within the timeout, the whole of it in half a minute
        scored = await asyncio.wait_for(teacher.score(requests(0.7)[1:2]), 20)
        assert isinstance(scored[0], Failure)
        assert scored[0].kind == "timeout"
        await teacher.close()


async def test_one_dead_replica_of_two_is_passed_over() -> None:
    async with FakeServer() as one, FakeServer() as two:
        teacher = await prove(client_of(one, "sglang", url=(one.url, two.url), retry_seconds=10.0), 0.7)
        calm = await teacher.score(requests(0.7))
        await one.stop()
        assert same(calm, await teacher.score(requests(0.7)))
        await one.start()
        one.set_weights(9)  # comes back as another model
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


async def test_a_failed_response_is_a_failure_and_never_a_number() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        teacher = RemoteTeacher(teacher.client, replace(teacher.proof, baseline=None))
        server.truncates = 1
        scored = await teacher.score(requests(0.7)[1:])
        assert all(isinstance(m, Failure) and m.kind == "short" for m in scored)
        await teacher.close()


async def test_too_many_uncertain_positions_stop_the_step() -> None:
    async with FakeServer(scale=0.5) as server:
        teacher = by_method(server, "sglang", "rescale", top_logprobs=5, max_rescale_dropped=0.1)
        with pytest.raises(TeacherError, match="max_rescale_dropped"):
            await teacher.score(requests(1.5))
        await teacher.close()


async def test_k_above_the_vocabulary_never_reaches_the_server() -> None:
    async with FakeServer() as server:
        teacher = by_method(server, "sglang", "plain")
        with pytest.raises(ValueError, match="vocabulary of 99"):
            await teacher.score(requests(1.0, support=V + 1))
        assert server.requests == 0
        await teacher.close()


async def test_the_bearer_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_TOKEN", "open sesame")
    async with FakeServer(knows_temperature=True, token="open sesame") as server:
        await prove(client_of(server, "sglang", token_env="TEACHER_TOKEN"), 0.7)
        with pytest.raises(ContractError, match="token_env"):
            await prove(client_of(server, "sglang"), 0.7)
        monkeypatch.delenv("TEACHER_TOKEN")
        with pytest.raises(RecipeError, match=r"teacher\.token_env.*no such variable"):
            client_of(server, "sglang", token_env="TEACHER_TOKEN")


# --- Several ------------------------------------------------------------------------------------------


async def test_each_request_is_scored_by_its_own_teacher() -> None:
    async with FakeServer(knows_temperature=True) as one, FakeServer(knows_temperature=True, seed=7) as two:
        members = {"a": by_method(one, "sglang", "native"), "b": by_method(two, "vllm", "native")}
        routed = RoutedTeacher(members, default="a")
        asked = [
            replace(request, teacher=name)
            for request, name in zip(requests(0.7)[1:], [None, "b", "a", "b", None], strict=True)
        ]
        scored = await routed.score(asked)
        for request, scores, server in zip(asked, scored, [one, two, one, two, one], strict=True):
            assert_scores_are_the_truth(server, [scores], [request], 1e-5)
        assert set(routed.seconds) == {"a", "b"}
        await routed.score(asked[:1])
        assert set(routed.seconds) == {"a"}  # of the last call alone
        for member in members.values():
            await member.close()


async def test_a_route_that_is_not_there_is_named_before_the_first_step() -> None:
    async with FakeServer() as server:
        members = {"a": by_method(server, "sglang", "plain")}
        prompt = Prompt("p", (1, 2))
        RoutedTeacher(members, "a").check_routes([prompt, replace(prompt, teacher="a")])
        with pytest.raises(DataError, match="prompt 'p' names the teacher 'c'"):
            RoutedTeacher(members, "a").check_routes([replace(prompt, teacher="c")])
        with pytest.raises(DataError, match=r"no teacher\.default"):
            RoutedTeacher(members, None).check_routes([prompt])
        with pytest.raises(DataError, match="request 'r1' names the teacher 'c'"):
            await RoutedTeacher(members, "a").score([replace(requests(1.0)[1], teacher="c")])


async def test_what_is_known_of_a_router_holds_for_all_its_teachers() -> None:
    async with FakeServer() as server:
        facts = [ModelInfo("one", 90, 2048), ModelInfo("two", 99, None, natural_temperature=0.7)]
        members = {info.name: RemoteTeacher(client_of(server, "sglang"), Proof("plain", info)) for info in facts}
        info = RoutedTeacher(members, None).info
        assert (info.vocabulary, info.context, info.natural_temperature) == (90, 2048, 0.7)


# --- Asking changes nothing ---------------------------------------------------------------------------


async def test_proving_changes_neither_client_nor_teacher() -> None:
    async with FakeServer() as server:
        client = client_of(server, "sglang")
        before = dict(vars(client))
        first = await prove(client, 0.7)
        proof = first.proof
        second = await prove(client, 1.0)
        assert vars(client) == before
        assert (first.proof, first.proof.method, second.proof.method) == (proof, "rescale", "plain")
        await client.close()


async def test_a_position_is_masked_by_its_prefix_whatever_was_sampled_there() -> None:
    """Every token in turn as the sampled one, under a limit that some of their own certificates keep."""
    options = {"top_logprobs": 4, "max_rescale_dropped": 1.0}
    async with FakeServer(scale=1.5) as server:
        unit = [ScoreRequest(str(y), np.array([5, 6, 7, y]), np.arange(4) == 3, 1.4) for y in range(V)]
        teacher = by_method(server, "sglang", "rescale", max_rescale_error=9.0, **options)
        own = [float(s.errors[0]) for s in await teacher.score(unit) if isinstance(s, TokenScores)]
        strict = by_method(server, "sglang", "rescale", max_rescale_error=(min(own) + max(own)) / 2, **options)
        masks = [bool(s.valid_mask[0]) for s in await strict.score(unit) if isinstance(s, TokenScores)]
        assert len(masks) == V
        assert len(set(masks)) == 1
        await teacher.close()
        await strict.close()
