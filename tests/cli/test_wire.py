"""`limbeck check --teacher KIND=URL` as a person and as a program meet it, against servers on real ports."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from limbeck.cli.main import main
from tests import tiny
from tests.fake_server import FakeServer, in_thread

V = 99


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def teacher(server: FakeServer, kind: str, *more: str, temperature: str = "0.7") -> Result:
    return check("--teacher", f"{kind}={server.url}", "--temperature", temperature, *more)


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_a_stock_server_is_shown_with_what_was_passed_over_and_why(kind: str) -> None:
    with in_thread(FakeServer(vocabulary=V)) as server:
        shown = teacher(server, kind)
        answered = teacher(server, kind, "--json", "--vocabulary", str(V))
    assert shown.exit_code == 0, shown.output
    assert all(word in shown.stdout for word in ("probe", "measured", "expected", "result", "alignment", "noise"))
    assert "temperature by: rescale" in shown.stdout
    assert answered.exit_code == 0
    answer = json.loads(answered.stdout)
    assert (answer["ok"], answer["method"], answer["problem"]) == (True, "rescale", None)
    by_probe = {result["probe"]: result for result in answer["results"]}
    assert "not taken" in by_probe["method native"]["measured"]
    assert "did not acknowledge" in by_probe["method native"]["measured"]
    assert by_probe["method rescale"]["ok"]


def test_a_server_that_takes_t_is_taken_at_its_word_once_it_is_proven() -> None:
    with in_thread(FakeServer(vocabulary=V, knows_temperature=True)) as server:
        assert json.loads(teacher(server, "vllm", "--json", temperature="1.3").stdout)["method"] == "native"
        server.ignores_temperature = True
        liar = teacher(server, "vllm", "--method", "native")
    assert liar.exit_code == 1
    assert "FAILED" in liar.stdout
    assert "does not score at temperature 0.7" in liar.stderr


@pytest.mark.parametrize(
    ("lie", "probe", "says"),
    [
        ({"truncates": 1}, "alignment", "entries"),
        ({"other_ids": True}, "tokenizer", "another tokenizer"),
        ({"scale": 0.3}, "normalisation", "--vocabulary"),
    ],
)
def test_a_failing_probe_exits_1_and_is_told_to_people_and_programs(lie: dict[str, Any], probe: str, says: str) -> None:
    with in_thread(FakeServer(vocabulary=V, **lie)) as server:
        shown, answered = teacher(server, "sglang"), teacher(server, "sglang", "--json")
    assert shown.exit_code == answered.exit_code == 1
    assert says in shown.stderr
    assert "Traceback" not in shown.output
    answer = json.loads(answered.stdout)
    assert not answer["ok"]
    assert says in answer["problem"]
    assert [v["probe"] for v in answer["results"] if not v["ok"]][-1] == probe


def test_a_server_that_is_not_there_is_said_to_be_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = check("--teacher", f"sglang=http://127.0.0.1:{port}", "--json")
    assert done.exit_code == 1
    assert "Is the server up" in done.stderr
    assert json.loads(done.stdout)["problem"] in done.stderr


def test_a_server_of_another_kind_is_guessed() -> None:
    with in_thread(FakeServer(vocabulary=V)) as server:
        done = teacher(server, "limbeck")
    assert done.exit_code == 1
    assert "look at the address" in done.stderr


def test_a_vocabulary_that_is_too_small_is_found_out() -> None:
    with in_thread(FakeServer(vocabulary=V)) as server:
        done = teacher(server, "sglang", "--vocabulary", "50")
    assert done.exit_code == 1
    assert "its vocabulary is given as 50" in done.stderr


def test_a_k_that_could_kill_the_server_is_not_sent() -> None:
    with in_thread(FakeServer(vocabulary=V)) as server:
        done = teacher(server, "sglang", "--top-logprobs", "5000")
        assert server.requests == 0
        assert done.exit_code == 1
        assert "Give --vocabulary" in done.stderr
        assert teacher(server, "sglang", "--top-logprobs", "5000", "--vocabulary", str(V)).exit_code == 0
        assert max(body.get("top_logprobs_num", 0) for body in server.bodies) == V


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--teacher", "sglang=http://x:1", "--temperature", "0"], 1, "above 0"),
        (["--teacher", "sglang=http://x:1", "--temperature", "nan"], 1, "above 0"),
        (["--teacher", "ollama=http://x:1"], 1, "KIND one of sglang, vllm, limbeck"),
        (["--teacher", "http://x:1"], 1, "KIND=URL"),
        (["--teacher", "sglang=x:1"], 1, "must begin with http"),
        (["--teacher", "sglang=http://x:1", "--method", "magic"], 2, "magic"),
        (["--teacher", "sglang=http://x:1", "recipe.toml"], 2, "not both"),
        (["recipe.toml", "--temperature", "0.7"], 2, "--temperature goes with --teacher"),
        ([], 2, "give a RECIPE"),
        (["--teacher", "sglang=http://x:1", "--token-env", "NO_SUCH_VARIABLE"], 1, "NO_SUCH_VARIABLE"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], code: int, says: str) -> None:
    done = check(*arguments)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert "pydantic" not in done.stderr


def test_a_recipe_is_checked_like_a_server(tmp_path: Path) -> None:
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY)) as server:
        path = tmp_path / "recipe.toml"
        path.write_text(
            f"""
            [student]
            model = "{tiny.folder_of("llama")}"
            [teacher]
            kind = "sglang"
            url = "{server.url}"
            retry_seconds = 5
            top_logprobs = 90
            vocabulary = {tiny.VOCABULARY}
            [task]
            kind = "arithmetic"
            digits = 1
            train = 16
            held_out = 4
            [rollout]
            temperature = 0.7
            max_tokens = 8
            """
        )
        done = check(str(path), "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["method"] == "rescale"
        server.nan = True
        assert check(str(path)).exit_code == 1


@pytest.mark.parametrize("command", ["serve", "bake", "check"])
def test_every_option_says_what_it_does(command: str) -> None:
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"limbeck {command} {parameter.opts[0]} has no help"


def test_a_sampling_temperature_is_ignored_only_for_another() -> None:
    done = CliRunner().invoke(main, ["serve", "no/such/model", "--ignore-sampling-temperature"])
    assert done.exit_code == 1
    assert "give --temperature" in done.output
