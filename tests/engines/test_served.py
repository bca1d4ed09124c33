"""Served engines against a server that holds real weights: what they sample, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engines.served import ServedEngine
from limbeck.engines.sglang import SGLangServer
from limbeck.engines.vllm import VLLMServer
from limbeck.engines.weights_folder import WeightsFolder, places_for
from limbeck.errors import EngineError, RecipeError, RunError
from limbeck.models.causal_lm import CausalLM
from limbeck.records import Failure, Key, Prompt, Sampled, SampleRequest, Sampling, ScoreRequest, Scores
from limbeck.wire.http import Pool, PoolSettings
from tests import tiny
from tests.engines.student import Lease, Student
from tests.fake_engine import FakeEngine

SAMPLING = Sampling(0.7, max_tokens=8, stop_ids=(1,), seed=3)
PROMPTS = tiny.prompts(4, 1, 9, 3)
TEXT = [int(i) for i in np.random.default_rng(5).integers(4, tiny.VOCABULARY, 40)]
KINDS = {"sglang": lambda: SGLangServer("disk"), "tensors": lambda: SGLangServer("tensors"), "vllm": VLLMServer}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["llama", "llama-tied"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    return tiny.fresh(request.param)


def engine(kind: str, server: FakeEngine, folder: Path, **changes: Any) -> ServedEngine:
    settings = PoolSettings(timeout=20.0, patience=20.0, first_wait=0.01, longest_wait=0.1, table="engine")
    given = {
        "server": KINDS[kind](), "pool": Pool([server.url], settings), "weights": WeightsFolder([folder / "weights"]),
        "text": TEXT,
        "sampling": SAMPLING, "vocabulary": tiny.VOCABULARY, "tolerance": 0.02,
    }  # fmt: skip
    return ServedEngine(**{**given, **changes})


def requests(
    samples: int = 1, sampling: Sampling = SAMPLING, prompts: Sequence[Prompt] = PROMPTS, top: int = 0
) -> list[SampleRequest]:
    return [
        SampleRequest(Key(prompt.id, sample=k), np.array(prompt.token_ids), sampling, top)
        for prompt in prompts
        for k in range(samples)
    ]


async def sample(one: ServedEngine, unit: Sequence[SampleRequest]) -> list[Sampled]:
    answers = await one.sample(unit)
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    assert not failures, failures
    return [answer for answer in answers if isinstance(answer, Sampled)]


def truth(lm: CausalLM, request: SampleRequest, answer: Sampled) -> np.ndarray:
    """[n] the model's own log-probs in its whole distribution at the request's temperature, by transformers alone."""
    ids = [*request.token_ids.tolist(), *answer.token_ids.tolist()]
    of_next_LV = tiny.logprobs(lm.model, ids, request.sampling.temperature).numpy()
    rows = of_next_LV[len(request.token_ids) - 1 :]
    return rows[np.arange(len(rows)), answer.token_ids]


async def test_it_samples_with_the_weights_it_was_given(kind: str, lm: CausalLM, tmp_path: Path) -> None:
    """Also where they move in place: the policy of the last load is stale by then, and is not read."""
    family = "llama-tied" if lm.model.config.tie_word_embeddings else "llama"
    student, unit = Student(lm), requests(2)
    async with FakeEngine(tiny.lm_of(family).model) as server:
        one = engine(kind, server, tmp_path)
        for version in range(3):
            await one.load(student.step() if version else student.publish())
            answers = await sample(one, unit)
            for request, answer in zip(unit, answers, strict=True):
                assert answer.version == version
                assert answer.finish == ("stop" if answer.token_ids[-1] == 1 else "length")
                assert len(answer.token_ids) == 8 or answer.finish == "stop"
                assert answer.top_ids is None
                np.testing.assert_allclose(answer.logprobs, truth(lm, request, answer), atol=1e-4)
        assert one.logprobs_at_T
        await one.close()
        assert not (tmp_path / "weights").exists()


async def test_every_key_has_randomness_of_its_own(tmp_path: Path) -> None:
    """Samples, occurrences and turns of one prompt differ; the first occurrence samples what it always did."""
    lm = tiny.fresh("llama")
    keys = [Key("p", sample=k, occurrence=n, turn=t) for k in (0, 1) for n in (0, 1) for t in (0, 1)]
    unit = [SampleRequest(key, np.array(PROMPTS[2].token_ids), SAMPLING) for key in keys]
    async with FakeEngine(lm.model) as server:
        one = engine("sglang", server, tmp_path)
        await one.load(Student(lm).publish())
        answers = await sample(one, unit)
        again = await sample(one, unit[::-1])
    assert len({tuple(answer.token_ids) for answer in answers}) == len(keys)
    assert [tuple(a.token_ids) for a in again[::-1]] == [tuple(a.token_ids) for a in answers]
    seeds = {body["sampling_params"].get("sampling_seed") for body in server.bodies if "sampling_params" in body}
    assert int.from_bytes(hashlib.blake2b(b"3\x1fp\x1f1", digest_size=4).digest(), "little") >> 1 in seeds


async def test_raw_logprobs_are_found_out_and_recomputed(kind: str, tmp_path: Path) -> None:
    lm, unit = tiny.fresh("llama"), requests()
    async with FakeEngine(lm.model) as server:
        server.raw_logprobs = True
        one = engine(kind, server, tmp_path)
        await one.load(Student(lm).step())
        assert not one.logprobs_at_T
        assert any("recomputed by the learner" in result.measured for result in one.results)
        for request, answer in zip(unit, await sample(one, unit), strict=True):
            np.testing.assert_allclose(answer.logprobs, truth(lm, request, answer), atol=1e-4)


async def test_logprobs_that_are_neither_are_refused(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        server.other_logprobs = 0.3
        with pytest.raises(EngineError, match=r"its log-probs of sampled tokens are 0\.3"):
            await engine(kind, server, tmp_path).load(Student(lm).publish())


@pytest.mark.parametrize("changes", [{"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"greedy": True}])
async def test_of_a_cut_distribution_they_are_those_of_the_whole(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever the server reports: the mismatch metrics compare them with the learner's whole distribution."""
    lm = tiny.fresh("llama")
    unit = requests(sampling=replace(SAMPLING, **changes))
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(Student(lm).publish())
        assert one.logprobs_at_T
        server.other_logprobs = 0.3
        for request, answer in zip(unit, await sample(one, unit), strict=True):
            np.testing.assert_allclose(answer.logprobs, truth(lm, request, answer), atol=1e-4)


async def test_the_top_tokens_are_the_students_whatever_was_sampled(kind: str, tmp_path: Path) -> None:
    lm, unit = tiny.fresh("llama"), requests(8, replace(SAMPLING, temperature=2.0), top=3)
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(Student(lm).publish())
        inside = []
        for request, answer in zip(unit, await sample(one, unit), strict=True):
            ids = [*request.token_ids.tolist(), *answer.token_ids.tolist()]
            rows = tiny.logprobs(lm.model, ids)[len(request.token_ids) - 1 :]
            assert answer.top_ids is not None
            np.testing.assert_array_equal(answer.top_ids, rows.topk(3).indices)
            inside += (answer.top_ids == answer.token_ids[:, None]).any(axis=1).tolist()
        assert set(inside) == {True, False}
        server.hides_tops = True
        (failure, *_) = await one.sample(unit[:1])
        assert isinstance(failure, Failure)
        assert "top_logprobs" in failure.message


@pytest.mark.parametrize("outside", [-1, tiny.VOCABULARY, 5000])
async def test_stop_ids_outside_the_vocabulary_are_refused(outside: int, tmp_path: Path) -> None:
    lm, wrong = tiny.fresh("llama"), replace(SAMPLING, stop_ids=(1, outside))
    async with FakeEngine(lm.model) as server:
        with pytest.raises(RecipeError, match=rf"stop ids \[{outside}\] .* expected 0 to 99.*rollout\.stop_ids"):
            engine("vllm", server, tmp_path, sampling=wrong)
        one = engine("vllm", server, tmp_path)
        await one.load(Student(lm).publish())
        with pytest.raises(RecipeError, match="stop ids"):
            await one.sample(requests(sampling=wrong))


class AtOne(Lease):
    """Answers at temperature 1, whatever is asked."""

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        return await super().score([replace(request, temperature=1.0) for request in unit])


class Unable(Lease):
    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        return [Failure(request.id, "score", "memory", "no room") for request in unit]


async def test_a_policy_that_answers_at_another_temperature_stops_the_run(tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        with pytest.raises(EngineError, match=r"temperature 0\.7 with TokenScores at temperature 1\.0"):
            await engine("vllm", server, tmp_path).load(AtOne(Student(lm), 0))
        with pytest.raises(EngineError, match="no room"):
            await engine("vllm", server, tmp_path).load(Unable(Student(lm), 0))


async def test_a_response_whose_logprobs_cannot_be_recomputed_is_a_failure(tmp_path: Path) -> None:
    lm, unit = tiny.fresh("llama"), requests(sampling=replace(SAMPLING, top_k=4))
    async with FakeEngine(lm.model) as server:
        one = engine("vllm", server, tmp_path)
        await one.load(Student(lm).publish())
        one.policy = Unable(Student(lm), 0)
        assert await one.sample(unit) == [Failure(p.id, "sample", "memory", "no room") for p in PROMPTS]


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.02, 3e-4])
async def test_an_update_that_is_accepted_and_not_made_stops_the_run(kind: str, size: float, tmp_path: Path) -> None:
    """Also one so small that the old weights are within the tolerance."""
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path, tolerance=0.02 if size > 1e-3 else 1.0)
        await one.load(student.publish())
        await one.load(student.step(size))
        server.keeps_old_weights = True
        with pytest.raises(EngineError, match=r"update 2 (but does not hold them|but did not change).*Start "):
            await one.load(student.step(size))


async def test_weights_that_arrive_spoilt_stop_the_run(kind: str, tmp_path: Path) -> None:
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(student.publish())
        server.spoils_weights = 0.5
        with pytest.raises(
            EngineError, match=r"update 1 but does not hold them: .* nats a token away .*engine\.tolerance"
        ):
            await one.load(student.step())


async def test_a_server_that_takes_no_weights_is_named(kind: str, tmp_path: Path) -> None:
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        server.refuses_weights = True
        with pytest.raises(EngineError, match=rf"{server.url} did not take the weights of update 0.*answered 400"):
            await engine(kind, server, tmp_path).load(student.publish())
        assert not list((tmp_path / "weights").glob("*"))


async def test_after_a_restart_the_weights_are_pushed_again_and_the_step_sampled_anew(
    kind: str, tmp_path: Path
) -> None:
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(student.publish())
        await one.load(student.step())
        calm = await sample(one, requests(2))
        server.restart_after = 3
        disturbed = await sample(one, requests(2))
        assert server.restart_after is None
        for request, before, after in zip(requests(2), calm, disturbed, strict=True):
            np.testing.assert_array_equal(before.token_ids, after.token_ids)
            np.testing.assert_allclose(after.logprobs, truth(student.lm, request, after), atol=1e-4)


async def test_units_sampled_at_the_same_time_survive_a_restart_together(kind: str, tmp_path: Path) -> None:
    """The weights are pushed once, and what any unit sampled before that is sampled anew."""
    student = Student(tiny.fresh("llama"))
    units = [requests(2, prompts=[prompt]) for prompt in PROMPTS]
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(student.publish())
        await one.load(student.step())
        calm = await sample(one, [request for unit in units for request in unit])
        server.restart_after, pushes = 3, one.pushes
        disturbed = [answer for answers in await asyncio.gather(*(sample(one, u) for u in units)) for answer in answers]
        assert one.pushes == pushes + 1
        assert [tuple(a.token_ids) for a in disturbed] == [tuple(a.token_ids) for a in calm]


async def test_a_server_that_loses_them_every_time_stops_the_run(kind: str, tmp_path: Path) -> None:
    student = Student(tiny.fresh("llama"))

    class Forgetful(FakeEngine):
        forgets = False

        def _sample(self, *args: Any) -> Any:
            if self.forgets:
                self.restart()
            return super()._sample(*args)

    async with Forgetful(tiny.lm_of("llama").model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(student.step())
        server.forgets = True
        with pytest.raises(EngineError, match="lost the weights of update 1 4 times"):
            await one.sample(requests())


async def test_a_cut_off_update_of_tensors_is_begun_again(tmp_path: Path) -> None:
    student = Student(tiny.fresh("llama"))

    class Strict(FakeEngine):
        async def _answer(self, writer: Any, path: str, body: dict[str, Any]) -> bool:
            if path == "/begin_weight_update" and self.tensors_open:
                return await self._send(writer, 400, b'{"success": false, "message": "session is already open"}')
            return await super()._answer(writer, path, body)

    async with Strict(student.lm.model) as server:
        server.tensors_open = True
        await engine("tensors", server, tmp_path).load(student.publish())


# --- answers ------------------------------------------------------------------------------------------

WRONG = {
    "hides_stop": ("unfit", "leaves the stop token out|breaks off|0 tokens"),
    "goes_on": ("unfit", "went on after the stop token"),
    "breaks_off": ("short", "breaks off after 4 of 8 tokens"),
    "foreign_token": ("unfit", "sampled token 103, but student and teacher share a vocabulary of 100"),
}


@pytest.mark.parametrize("lie", list(WRONG))
async def test_answers_that_are_not_whole_are_failures(kind: str, lie: str, tmp_path: Path) -> None:
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(student.publish())
        setattr(server, lie, True)
        stops = tuple(range(0, tiny.VOCABULARY, 3)) if lie in ("hides_stop", "goes_on") else ()
        answers = await one.sample(requests(3, replace(SAMPLING, stop_ids=stops), PROMPTS[:2]))
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        assert failures
        assert {failure.stage for failure in failures} == {"sample"}
        wanted, text = WRONG[lie]
        assert wanted in {failure.kind for failure in failures}
        assert any(re.search(text, failure.message) for failure in failures), failures[0].message


async def test_a_storm_on_the_wire_does_not_change_the_samples(kind: str, tmp_path: Path) -> None:
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(student.publish())
        calm = await sample(one, requests(2))
        server.drop = server.cut = server.fail = server.busy = server.corrupt = 0.15
        stormy = await sample(one, requests(2))
        for before, after in zip(calm, stormy, strict=True):
            np.testing.assert_array_equal(before.token_ids, after.token_ids)


# --- the dtype that weights are written in ------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
async def test_weights_are_written_in_the_dtype_that_the_server_holds(kind: str, dtype: str, tmp_path: Path) -> None:
    """It is found out, not asked for: half the bytes, and the very weights that the server would have made of them."""
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(tiny.lm_of("llama").model) as server:
        server.dtype = getattr(torch, dtype)
        one = engine(kind, server, tmp_path, tolerance=0.5)
        await one.load(student.publish())
        assert [r.measured for r in one.results if r.probe == "engine: dtype"] == (
            [] if dtype == "float32" else [dtype]
        )
        await one.load(student.step())
        wanted = {name: tensor.to(server.dtype).float() for name, tensor in student.lm.model.state_dict().items()}
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in server.net.state_dict().items())
        exact = sum(tensor.nbytes for tensor in wanted.values())
        smaller = exact if dtype == "float32" else exact / 2
        assert smaller <= one.transfer.bytes <= smaller + 40_000  # config and tokenizer
        assert one.transfer.seconds > 0


async def test_a_bfloat16_student_travels_as_it_is(kind: str, tmp_path: Path) -> None:
    """Nothing is rounded twice, also where the server holds float32."""
    student = Student(tiny.fresh("llama"))
    student.lm.model.bfloat16()
    async with FakeEngine(tiny.lm_of("llama").model) as server:
        one = engine(kind, server, tmp_path, tolerance=0.5)
        await one.load(student.publish())
        wanted = {name: tensor.float() for name, tensor in student.lm.model.state_dict().items()}
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in server.net.state_dict().items())
        assert one.transfer.bytes < sum(tensor.nbytes for tensor in wanted.values())


# --- where they are written ---------------------------------------------------------------------------


async def test_a_folder_of_the_users_keeps_what_else_is_in_it(kind: str, tmp_path: Path) -> None:
    kept = tmp_path / "shared" / "limbeck-of-another-run" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("theirs")
    student = Student(tiny.fresh("llama"))
    async with FakeEngine(student.lm.model) as server:
        one = engine(kind, server, tmp_path, weights=WeightsFolder([tmp_path / "shared"], "mine"))
        await one.load(student.publish())
        await one.close()
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == [kept]


async def test_what_a_killed_run_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    left = WeightsFolder([tmp_path], "mine")
    with pytest.raises(KeyboardInterrupt):
        async with left.of(Student(tiny.fresh("llama")).publish(), "float32", lambda folder: folder.mkdir()) as folder:
            raise KeyboardInterrupt
    folder.mkdir()  # as kill -9 would leave it
    WeightsFolder([tmp_path], "another's")
    assert folder.is_dir()
    WeightsFolder([tmp_path], "mine")
    assert not folder.is_dir()


async def test_a_place_without_room_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = WeightsFolder([Path("/dev/shm"), tmp_path / "run"], size=1 << 60)
    async with folder.of(
        Student(tiny.fresh("llama")).publish(), "float32", lambda path: path.mkdir(parents=True)
    ) as at:
        assert at.parent == tmp_path / "run"
    assert "has no room for weights of" in caplog.text
    assert not (tmp_path / "run" / at.name).exists()


async def test_weights_that_cannot_be_written_stop_the_run_with_the_key_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with FakeEngine(tiny.lm_of("llama").model) as server:
        one = engine("vllm", server, tmp_path, weights=WeightsFolder([tmp_path / "file"]))
        with pytest.raises(RunError, match=r"cannot write the weights .*set engine\.weights_folder"):
            await one.load(Student(tiny.fresh("llama")).publish())


@pytest.mark.parametrize(
    ("urls", "given", "places"),
    [
        (["http://127.0.0.1:1"], None, ["/dev/shm", "/run/weights"]),
        (["http://localhost:1", "http://[::1]:2"], None, ["/dev/shm", "/run/weights"]),
        (["http://127.0.0.1:1", "http://10.0.0.2:1"], None, ["/run/weights"]),
        (["https://localhost.example.org"], None, ["/run/weights"]),
        (["http://127.0.0.1:1"], "/mnt/w", ["/mnt/w"]),
    ],
)
def test_weights_go_by_memory_only_where_every_server_is_on_this_machine(
    urls: list[str], given: str | None, places: list[str]
) -> None:
    assert places_for(urls, Path("/run"), given) == [Path(place) for place in places]
    elsewhere = places_for(urls, Path("/run"), given, written_here=False)  # the learner may be on another node
    assert elsewhere == [Path(place) for place in places if place != "/dev/shm"]
