"""A run whose files are damaged, and requests that no page makes: what is left is shown, and nothing is a 500."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from limbeck.cli.main import main
from limbeck.errors import RunError
from limbeck.view.metrics import MAX_LINE, read_metrics
from limbeck.view.report import write_report
from limbeck.view.runs import Runs
from limbeck.view.server import make_app, serve

from . import made

ROUTES = (
    "runs", "metrics", "rollouts", "rollout", "search", "disagreement", "evaluations", "answers", "answer", "found",
)  # fmt: skip
BASE = "http://127.0.0.1:8642"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    made.write_metrics(folder / "a", 20, every=10)
    made.write_rollout_files(folder / "a", range(1, 4), each=4, length=6)
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> TestClient:
    return TestClient(make_app(runs), base_url=BASE)


# Lines of metrics.jsonl

GOOD = json.dumps({"step": 3, "kind": "train", "objective": 0.5})
LINES: dict[str, bytes] = {
    "nested": b"[" * 10**5,
    "nested tables": b'{"step": 2, "a": ' + b'{"a": ' * 10**5,
    "nested a little": b'{"step": 2, "objective": ' + b"[" * 900 + b"]" * 900 + b', "kind": "test"}',
    "large": b'{"step": 2, "a": "' + b"x" * MAX_LINE + b'"}',
    "many keys": json.dumps({"step": 2, **{f"k{n}": 1 for n in range(20_000)}}).encode(),
    "bytes": b'{"step": 2, "a": "\xff"}',
    "nothing": b"null",
    "a huge step": b'{"step": 1' + b"0" * 4000 + b"}",
    "a step of many bits": b'{"step": 18446744073709551617}',
    "a negative step": b'{"step": -5}',
    "a true step": b'{"step": true}',
    "a step of a fraction": b'{"step": 2.5}',
    "a strange kind": b'{"step": 2, "kind": {"a": [1]}}',
    "NUL": b"\0" * 5000,
}


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_costs_itself_alone_and_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "kind": "train", "objective": 0.25}\n' + LINES[name] + b"\n" + GOOD.encode() + b"\n")
    metrics = read_metrics(path)
    assert metrics.train.step == [1, 3]
    assert metrics.train.values["objective"] == [0.25, 0.5]
    [problem] = metrics.skipped
    assert "line 2" in problem
    assert len(problem) < 300
    json.dumps(metrics.as_json(), allow_nan=False)


def test_values_that_are_no_numbers_cost_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = f'"a": NaN, "b": 1e999, "c": 1{"0" * 4000}, "d": {"[" * 900}{"]" * 900}, "\\ud800": 1, "e": null, "f": true'
    alarms = f'"alarms": [1, {{"name": 5, "message": {"[" * 900}{"]" * 900}}}, {{"message": "m\\u0000"}}]'
    path.write_text(f'{{"step": 1, {odd}, {alarms}}}\n{{"step": 2, "alarms": "none"}}\n')
    metrics = read_metrics(path)
    assert metrics.problems + metrics.skipped == []
    assert metrics.train.values == {"a": [None, None], "b": [None, None], "c": [None, None], "\ud800": [1, None]}
    assert [(alarm["name"], type(alarm["message"])) for alarm in metrics.alarms] == [
        ("5", str),
        ("name", str),
        ("not_finite", str),
    ]
    json.dumps(metrics.as_json(), allow_nan=False)


# Files of recorded rollouts, and the recipe


def spoiled(folder: Path, name: str, change: Any) -> None:
    """Another file beside the good ones: a table made of good rows, changed."""
    table = pa.Table.from_pylist([made.rollout(9, number, 6) for number in range(3)])
    pq.write_table(change(table), folder / "rollouts" / name)


def column(key: str, values: Any) -> Any:
    return lambda table: table.set_column(table.column_names.index(key), key, [values])


FILES: dict[str, Any] = {
    "text in numbers": column("step", pa.array(["a", "b", "c"])),
    "numbers in text": column("response_text", pa.array([1, 2, 3])),
    "bytes in text": column("prompt_text", pa.array([b"\xff", b"", b"a"])),
    "no steps": column("step", pa.array([None, 9, 9], pa.int32())),
    "lists in numbers": column("kl_max", pa.array([[1.0], [], None])),
    "tables": column("reward", pa.array([{"a": 1}] * 3)),
    "no column": lambda table: table.drop_columns(["prompt_text"]),
    "dates": column("advantage", pa.array([0, 1, 2], pa.timestamp("us"))),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made.write_metrics(tmp_path / "a", 20, every=10)
    made.write_rollout_files(tmp_path / "a", range(1, 4), each=4, length=6)
    return tmp_path / "a"


def ask_all(folder: Path) -> dict[str, Any]:
    """Every route about the run, and every one of its rollouts; 200 all, but for single rollouts."""
    client, found = TestClient(make_app(folder.parent), base_url=BASE), {}
    for route in ("runs", "metrics", "rollouts", "disagreement", "search"):
        answer = client.get(f"/api/{route}", params={"run": folder.name, "text": "4"})
        assert answer.status_code == 200, answer.text
        found[route] = answer.json()
    for row in found["rollouts"]["rows"]:
        assert client.get("/api/rollout", params={"run": folder.name, "id": row["id"]}).status_code in (200, 404)
    write_report(folder, folder.parent / "report.html", 5)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_other_columns_costs_itself_alone_and_is_named(name: str, folder: Path) -> None:
    spoiled(folder, "step-000009.parquet", FILES[name])
    found = ask_all(folder)
    assert len(found["rollouts"]["rows"]) == 12
    [problem] = found["rollouts"]["problems"]
    assert "step-000009.parquet" in problem


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 100, b"\0" * 1000, random.Random(0).randbytes(100)])
def test_a_file_that_is_no_parquet_costs_itself_alone_and_is_named(data: bytes, folder: Path) -> None:
    (folder / "rollouts" / "step-000009.parquet").write_bytes(data)
    (folder / "rollouts" / "step-000010.parquet").mkdir()
    (folder / "rollouts" / "step-\udcff.parquet").write_bytes(data)
    found = ask_all(folder)
    assert len(found["rollouts"]["rows"]) == 12
    assert len(found["rollouts"]["problems"]) == 3


@pytest.mark.parametrize("key", ["token_ids", "student_logprob", "tokens"])
def test_a_rollout_of_uneven_columns_costs_itself_alone_and_is_named(key: str, folder: Path) -> None:
    def shorten(table: Any) -> Any:
        rows = table.to_pylist()
        rows[1][key] = rows[1][key][:-1]
        return pa.Table.from_pylist(rows)

    spoiled(folder, "step-000009.parquet", shorten)
    client = TestClient(make_app(folder), base_url=BASE)
    answers = [client.get("/api/rollout", params={"run": "a", "id": f"step-000009.parquet:{n}"}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [200, 404, 200]
    assert "different numbers of tokens" in answers[1].json()["error"]
    write_report(folder, folder.parent / "report.html", 50)


def test_numbers_that_no_model_gives_are_not_summed(folder: Path) -> None:
    def spoil(table: Any) -> Any:
        rows = table.to_pylist()
        rows[2]["student_logprob"] = [1e300, float("inf"), float("nan"), -1.0, -1.0, -1.0]
        rows[2]["reverse_kl"] = [1e300, 1e300, float("-inf"), 0.1, 0.1, 0.1]
        return pa.Table.from_pylist(rows)

    spoiled(folder, "step-000009.parquet", spoil)
    assert 0 < ask_all(folder)["disagreement"]["kl_total"] < 100


@pytest.mark.parametrize(
    "text",
    [
        b"a = " + b"[" * 10**5, b"\xff", b"steps = " + b"9" * 5000, b"#" * (2**20 + 1), b"steps = 'many'",
        b"steps = true", b"steps = 99999999999999999999", b"steps = -1", b"steps = nan", b"steps = 1\nsteps = 2",
    ],
)  # fmt: skip
def test_a_damaged_recipe_costs_itself_alone_and_is_named(text: bytes, folder: Path) -> None:
    (folder / "recipe.toml").write_bytes(text)
    found = ask_all(folder)
    [run] = found["runs"]["runs"]
    assert run["steps"] is None
    assert "recipe.toml" in run["problems"][0]
    assert found["metrics"]["train"]["step"] == list(range(1, 21))


def test_a_folder_that_went_away_is_said(folder: Path) -> None:
    client = TestClient(make_app(folder.parent), base_url=BASE)
    folder.parent.rename(folder.parent.with_name("elsewhere"))
    for route in ROUTES:
        answer = client.get(f"/api/{route}", params={"run": "a", "id": "a:1", "text": "a"})
        assert answer.status_code == 404
        assert "cannot be read" in answer.json()["error"]


# Requests


@pytest.mark.parametrize(
    "query",
    [
        "metrics?run=a&offset=" + "9" * 400, "metrics?run=a&offset=-1", "metrics?run=a&offset=1.5",
        "metrics?run=a&offset=%D9%A1", "metrics?run=a&offset=", "metrics?run=a&offset=1e9", "metrics?offset=1",
        "rollouts?run=a&known=" + "9" * 30, "rollouts?run=a&known=-1", "disagreement?run=a&turn=" + "9" * 30,
        "disagreement?run=a&turn=-2", "disagreement?run=a&steps=later", "search?run=a", "rollout?run=a",
    ],
)  # fmt: skip
def test_a_request_of_no_sense_is_a_400_that_says_so(query: str, client: TestClient) -> None:
    answer = client.get(f"/api/{query}")
    assert answer.status_code == 400
    assert re.search("expected (a whole number|late, early)|the request has no", answer.json()["error"])
    assert len(answer.content) < 300


@pytest.mark.parametrize("id_", ["step-000001.parquet:\u00b2", "step-000001.parquet:" + "9" * 30, ":", "", "a" * 9000])
def test_a_rollout_that_is_not_there_is_a_404(id_: str, client: TestClient) -> None:
    answer = client.get("/api/rollout", params={"run": "a", "id": id_})
    assert answer.status_code == 404
    assert len(answer.content) < 400


def test_an_offset_beyond_the_file_begins_again(client: TestClient) -> None:
    assert client.get("/api/metrics", params={"run": "a", "offset": 2**53 - 1}).json()["reset"]


HOSTS = ["[", "]", "[::1", "[::1]", "::1", "127.0.0.1:99999", "127.0.0.1:x", "", "a@127.0.0.1", "127.0.0.1/..", "\xff",
         "[v1.x]", "127.0.0.1\t", "xn--a", "a" * 5000, "%00", "[127.0.0.1]", "evil.example"]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_no_host_is_a_500(host: str, listening: str, runs: Path) -> None:
    client = TestClient(make_app(runs, listening), base_url=BASE)
    for path in ("/", "/api/runs", "/api/runs/", "/assets/", "//", "/nothing"):
        answer = client.get(path, headers={"host": host.encode("latin-1")}, follow_redirects=False)  # type: ignore[dict-item]
        assert answer.status_code in (200, 400, 404), (path, answer.status_code)


values = st.one_of(
    st.text(max_size=50),
    st.integers().map(str),
    st.sampled_from(["a", "-1", "0", "step-000001.parquet:0", "\0", "²", "1" * 500]),
)  # fmt: skip


@given(
    route=st.sampled_from([*ROUTES, "", "../runs", "nothing"]),
    query=st.dictionaries(st.sampled_from(["run", "offset", "known", "last", "first", "id", "text", "x"]), values),
    host=st.one_of(st.just(b"127.0.0.1"), st.binary(max_size=30).filter(lambda b: b"\r" not in b and b"\n" not in b)),
    method=st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "TRACE"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_500(client: TestClient, route: str, query: dict[str, str], host: bytes, method: str) -> None:
    answer = client.request(method, f"/api/{route}", params=query, headers={"host": host})  # type: ignore[dict-item]
    assert answer.status_code in (200, 400, 404, 405)


@given(data=st.binary(max_size=300), cut=st.integers(0, 5000), place=st.integers(0, 5000))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_damage_to_any_file_is_a_500(tmp_path_factory: Any, data: bytes, cut: int, place: int) -> None:
    folder = tmp_path_factory.mktemp("fuzzed") / "a"
    made.write_metrics(folder, 8, every=4)
    made.write_rollout_files(folder, range(1, 3), each=3, length=5)
    for path in (folder / "metrics.jsonl", folder / "recipe.toml", folder / "rollouts" / "step-000002.parquet"):
        before = path.read_bytes()
        at = place % len(before)
        path.write_bytes(before[:at] + data + before[at + cut % 40 :])
    assert len(ask_all(folder)["rollouts"]["rows"]) >= 3


# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "RUN", "--rollouts", "-5"], ["report", "RUN", "-o", "RUN/metrics.jsonl/x.html"],
        ["report", "x" * 5000], ["view", "RUN", "--host", "a" * 300, "--port", "0"],
        ["view", "x" * 300, "--no-open"], ["report", "RUN/metrics.jsonl"],
    ],
)  # fmt: skip
def test_the_command_line_gives_one_message(arguments: list[str], runs: Path) -> None:
    result = CliRunner().invoke(main, [part.replace("RUN", str(runs / "a")) for part in arguments])
    assert result.exit_code == 1
    assert result.output.count("error: ") == 1
    assert isinstance(result.exception, SystemExit)


def test_a_loop_of_links_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", Path("a\0b")):
        with pytest.raises(RunError):
            Runs(path)
        with pytest.raises(RunError):
            serve(path, "127.0.0.1", 0, False, print)


def test_a_large_damaged_file_takes_little_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"[" * 50_000_000 + b"\n" + GOOD.encode() + b"\n")
    started = time.monotonic()
    assert read_metrics(path).train.step == [3]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.toml", "rollouts/step-000002.parquet"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    made.write_metrics(tmp_path / "a", 20, every=10)
    made.write_rollout_files(tmp_path / "a", range(1, 4), each=4, length=6)
    (tmp_path / "a" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "a" / name)
    client = TestClient(make_app(tmp_path), base_url=BASE)
    answers = [client.get(f"/api/{route}", params={"run": "a"}) for route in ("runs", "metrics", "rollouts")]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert any(Path(name).name in answer.text for answer in answers)
