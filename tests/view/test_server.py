"""The server: the page's files and data, what it refuses, and what heads every answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from limbeck.cli.main import main
from limbeck.errors import RecipeError, RunError
from limbeck.view import page, report
from limbeck.view.report import gather, write_report
from limbeck.view.rollouts import Rollouts
from limbeck.view.runs import Runs
from limbeck.view.server import make_app, serve
from tests import finished_run

from . import made


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        made.write_metrics(tmp_path / "runs" / name, 20, every=10)
        made.write_rollout_files(tmp_path / "runs" / name, range(1, 3), each=4, length=6)
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "runs"


@pytest.fixture
def client(two_runs: Path) -> TestClient:
    return TestClient(make_app(two_runs), base_url="http://127.0.0.1:8642")


def _get(client: TestClient, what: str, **query: Any) -> Any:
    answer = client.get(f"/api/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_run_that_is_removed_while_it_is_read_is_not_found(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Rollouts, *_: Any) -> Any:
        return (self.folder / "elsewhere").stat()

    monkeypatch.setattr(Rollouts, "index", gone)
    answer = client.get("/api/rollouts", params={"run": "b", "known": 0})
    assert answer.status_code == 404
    assert re.search(r"/b\S* was removed while it was read", answer.json()["error"])


def test_the_page_names_only_files_that_are_served(client: TestClient) -> None:
    html = client.get("/").text
    names = re.findall(r'(?:src|href)="(assets/[^"]+)"', html)
    names += [f"assets/{name}" for name in page.MODULES]
    for name in names:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        for target in re.findall(r'^import .* from "\./([^"]+)";$', answer.text, re.MULTILINE):
            assert target in page.MODULES
    assert client.get("/assets/../../secret.txt").status_code == 404
    assert client.get("/assets/..%2f..%2fsecret.txt").status_code == 404


def test_modules_come_after_what_they_import_and_share_no_top_level_name() -> None:
    seen: dict[str, str] = {}
    for number, name in enumerate(page.MODULES):
        text = page.asset(name)
        for target in re.findall(r'^import .* from "\./([^"]+)";$', text, re.MULTILINE):
            assert page.MODULES.index(target) < number, f"{name} imports {target}"
        for defined in re.findall(r"^(?:export )?(?:async )?(?:const|let|class|function) (\w+)", text, re.MULTILINE):
            assert defined not in seen, f"{defined} in {name} and {seen[defined]}"
            seen[defined] = name


def test_no_module_parses_text_as_markup() -> None:
    for name in page.MODULES:
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", page.asset(name)
        )
        assert not found, f"{name}: {found}"


def test_every_answer_forbids_foreign_code(client: TestClient) -> None:
    for path in ("/", "/assets/main.js", "/api/runs", "/assets/none.js"):
        headers = client.get(path).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_another_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/api/runs", headers={"host": "evil.example"}).status_code == 400
    for name in ("localhost", "localhost:8642", "[::1]:8642"):
        assert client.get("/api/runs", headers={"host": name}).status_code == 200


def test_all_runs_of_a_folder_or_one(client: TestClient, two_runs: Path) -> None:
    assert [run["id"] for run in _get(client, "runs")["runs"]] == ["a", "b"]
    assert [run["id"] for run in Runs(two_runs / "b").describe()["runs"]] == ["b"]
    assert _get(client, "runs")["runs"][0]["recipe"]["rollout"]["temperature"] == 0.7


def test_data_of_a_run(client: TestClient) -> None:
    metrics = _get(client, "metrics", run="a")
    assert metrics["train"]["step"] == list(range(1, 21))
    assert metrics["train"]["values"]["reverse_kl/exact"][4] == made.metrics_line(5)["reverse_kl/exact"]
    assert _get(client, "metrics", run="a", offset=metrics["offset"])["train"]["step"] == []
    rows = _get(client, "rollouts", run="b")["rows"]
    assert len(rows) == 8
    assert _get(client, "rollout", run="b", id=rows[3]["id"])["token_ids"] == made.rollout(1, 3, 6)["token_ids"]
    assert _get(client, "search", run="b", text="what is 2 and 1")["ids"] == ["step-000002.parquet:1"]
    assert _get(client, "disagreement", run="b", steps="all")["rollouts"] == 4
    assert _get(client, "disagreement", run="b", task="words", turn=1)["rollouts"] == 1


@pytest.mark.parametrize(
    "query",
    [
        "metrics?run=none",
        "metrics?run=../secret",
        "rollout?run=a&id=x",
    ],
)
def test_what_is_not_there_is_a_404_that_says_so(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/{query}")
    assert answer.status_code == 404
    assert answer.json()["error"]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no folder at"):
        make_app(tmp_path / "none")
    assert "no run in" in Runs(tmp_path).describe()["problems"][0]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "recipe.toml").write_text("name = [")
    described = Runs(tmp_path).describe()["runs"][0]
    assert "recipe.toml cannot be read" in described["problems"][0]
    (broken / "recipe.toml").unlink()
    (broken / "metrics.jsonl").write_text("")
    assert "recipe.toml is missing" in Runs(tmp_path).describe()["runs"][0]["problems"][0]


def test_what_json_cannot_hold_is_text(tmp_path: Path) -> None:
    made.write_metrics(tmp_path / "run", 2)
    recipe = "x = inf\nwhen = [2026-01-02, {y = nan}]\n[rollout]\ntemperature = 0.7\n"
    (tmp_path / "run" / "recipe.toml").write_text(recipe)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "kind": "train", "huge": 10**400, "reward": float("inf")}) + "\n")
    client = TestClient(make_app(tmp_path), base_url="http://127.0.0.1:8642")
    described = _get(client, "runs")["runs"][0]["recipe"]
    assert described == {"x": "inf", "when": ["2026-01-02", {"y": "nan"}], "rollout": {"temperature": 0.7}}
    assert _get(client, "metrics", run="run")["train"]["values"]["huge"] == [None, None, None]


def test_a_folder_that_may_not_be_read_hides_no_other(two_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists

    def denied(path: Path) -> bool:
        if path.parent.name == "notes":
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", denied)
    assert [run["id"] for run in Runs(two_runs).describe()["runs"]] == ["a", "b"]


def test_a_taken_port_is_said(two_runs: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RecipeError, match="--port"):
            serve(two_runs, "127.0.0.1", taken.getsockname()[1], False, print)


def test_the_page_needs_no_torch(two_runs: Path) -> None:
    code = (
        "import sys, pathlib; from limbeck.view.server import make_app; from limbeck.view.report import gather, Runs;"
        f"gather(Runs(pathlib.Path({str(two_runs)!r})), 5); make_app(pathlib.Path({str(two_runs)!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _embedded(html: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(data)


def test_a_report_holds_the_data_and_asks_for_nothing(two_runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "report.html"
    result = CliRunner().invoke(main, ["report", str(two_runs), "-o", str(output), "--rollouts", "3"])
    assert result.exit_code == 0, result.output
    html = output.read_text()
    data = _embedded(html)
    assert data["metrics"]["a"]["train"]["step"] == list(range(1, 21))
    assert len(data["details"]["a"]) == 3
    assert data["rollouts"]["a"]["recorded"] == 8
    assert set(data["details"]["a"]) == {row["id"] for row in data["rollouts"]["a"]["rows"]}
    assert str(tmp_path) not in html, "paths of this machine are no business of the reader's"
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "connect-src 'none'" in html


def test_a_report_is_inert(tmp_path: Path) -> None:
    made.write_metrics(tmp_path / "run", 3)
    text = finished_run.HOSTILE
    made.write_rollout_files(tmp_path / "run", range(1, 2), each=2, length=3, response_text=text, tokens=[text] * 3)
    write_report(tmp_path / "run", tmp_path / "report.html", 10)
    html = (tmp_path / "report.html").read_text()
    assert _embedded(html)["details"]["run"]["step-000001.parquet:0"]["tokens"] == [text] * 3
    assert "owned" in html
    assert "<script>document.title" not in html
    assert html.count("<script") == 3, "the data, the plotting library, the page"


def test_a_report_keeps_whole_histories_of_watched_prompts_and_the_largest_kl(tmp_path: Path) -> None:
    made.write_metrics(tmp_path / "run", 3)
    made.write_rollout_files(tmp_path / "run", range(1, 11), each=8, length=5)
    data = gather(Runs(tmp_path / "run"), 30)
    rows = data["rollouts"]["run"]["rows"]
    assert len(rows) == 30
    assert sum(row["prompt_id"] == "prompt-0" for row in rows) == 10
    assert all(place["id"] in data["details"]["run"] for place in data["disagreement"]["run"]["all"]["places"])


def test_answers_of_evaluations_are_served(client: TestClient, two_runs: Path) -> None:
    made.write_answers(two_runs / "a", 10, [made.answer("x"), made.answer("y", response="z" * 2000)])
    assert _get(client, "evaluations", run="a") == {"steps": [10]}
    assert _get(client, "evaluations", run="b") == {"steps": []}
    rows = _get(client, "answers", run="a", step=10)["rows"]
    assert [row["prompt_id"] for row in rows] == ["x", "y"]
    assert _get(client, "answer", run="a", step=10, number=1)["response"] == "z" * 2000
    assert _get(client, "found", run="a", step=10, text="ZZ") == {"numbers": [1]}
    for what in ("answers?run=a&step=11", "answer?run=a&step=10&number=2", "answers?run=c&step=10"):
        assert client.get(f"/api/{what}").status_code == 404, what
    for what in ("answers?run=a", "answers?run=a&step=-1", "answer?run=a&step=10&number=x"):
        assert client.get(f"/api/{what}").status_code in (400, 404), what


def test_a_report_has_the_first_and_the_last_answers_and_as_many_between_as_fit(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(5):
        text = f"{step}" * 980
        answers = [made.answer(str(number), prompt="", question="", response=text) for number in range(4)]
        made.write_answers(two_runs / "a", step, answers)
    found = gather(Runs(two_runs), 1)["evaluations"]
    assert found["b"] == {"steps": [], "recorded": 0, "files": {}}
    assert (found["a"]["steps"], found["a"]["recorded"]) == ([0, 1, 2, 3, 4], 5)
    assert found["a"]["files"][2]["whole"][3]["response"] == "2" * 980
    monkeypatch.setattr(report, "ANSWERS_SIZE", 980 * 13)
    found = gather(Runs(two_runs), 1)["evaluations"]
    assert found["a"]["steps"] == [0, 3, 4]
    monkeypatch.setattr(report, "ANSWERS_SIZE", 980 * 6)
    found = gather(Runs(two_runs), 1)["evaluations"]
    assert found["a"]["steps"] == [0, 4]
    for file in found["a"]["files"].values():
        assert len(file["rows"]) == len(file["whole"]) == 3
        assert "has 3 of the 4 answers of step" in file["problems"][0]


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "no run in" in result.output


def test_plots_are_pictures(two_runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = str(tmp_path / "r.html")
    arguments = ["report", str(two_runs), "-o", output, "--png", str(tmp_path / "png")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "earlier report" not in result.output
    names = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert names == ["accuracy.png", "entropy.png", "response_length.png", "reverse_kl.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "png").iterdir())
    (tmp_path / "png" / "entropy_t0.7.png").touch()
    result = CliRunner().invoke(main, arguments)
    assert "png also has pictures of an earlier report: entropy_t0.7.png\n" in result.stderr
