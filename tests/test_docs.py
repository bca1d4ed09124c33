"""The documentation: its commands run, its links lead somewhere, its reference is up to date."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from limbeck.cli.main import main as cli
from limbeck.config.recipe import dotted_keys, load_recipe, parse_recipe
from tests import finished_run

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SERVES = ("limbeck view",)
STUDIES = ("python studies/",)  # a quarter of an hour each: their commands run with --quick
TRAINS_FOR_MINUTES = {  # test_smollm2, test_retokenized, test_calculator and tests/agents run them, or shortened
    "make smollm2",
    "make retokenized",
    "make context-distillation",
    "limbeck train recipes/agent.toml",
    "limbeck train recipes/calculator.toml",
}
SETS_UP = ("make test", "make demo", "make check")  # what is running this test, and test_demo


def commands(page: Path, prefix: str = "") -> list[str]:
    """The lines of a page's bash blocks, comments aside."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(prefix) and line]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_are_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}
        assert anchor in headings, anchor


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipe_keys_in_the_text_exist(page: Path) -> None:
    tables = {key.partition(".")[0] for key in dotted_keys() if "." in key}
    known = set(dotted_keys())
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", page.read_text(encoding="utf-8")):
        if key.partition(".")[0] in tables and not key.endswith((".toml", ".py", ".md", ".jsonl")):
            assert key in known, key


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_extras_in_the_text_exist(page: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"limbeck\[([a-z,-]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for extras in named for extra in extras.split(",")} <= set(known)


def test_every_extra_for_users_is_listed() -> None:
    known = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    page = (ROOT / "docs" / "guides" / "install.md").read_text(encoding="utf-8")
    table = page.partition("| extra |")[2].partition("\n\n")[0]
    listed = {extra for row in re.findall(r"^\| (`.*?`) \|", table, re.M) for extra in re.findall(r"`(\w+)`", row)}
    assert listed == known - {"test", "browser", "dev"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lists_and_tables_are_those_of_the_site_too(page: Path) -> None:
    """A forge is lenient: in the site a list, table or heading right below a line of text may be part of that."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^(?![-*|> ]|\d+\. ).+\n(?:[-*]|\d+\.) .*", text, re.M)
    assert not re.findall(r"^[^|\n].*\n\|.*", text, re.M)
    assert not re.findall(r"^(?!#)\S.*\n#+ .*", text, re.M)
    assert not re.findall(r"^ {1,3}(?:[-*]|\d+\.) .*", text, re.M), "what is below an item of a list has four blanks"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_below_an_item_of_a_list_are_indented_by_fours(page: Path) -> None:
    """The site counts four blanks a level: a code block at six is prose, and a paragraph at two ends the list."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    odd = [block for block in re.findall(r"\n\n( +)(?=\S)", text) if len(block) % 4]
    assert not odd, page
    assert not re.findall(r"^(?:[-*]|\d+\.) .*(?:\n {2,}\S.*)*\n\n {4}(?:limbeck|pip|python|vllm) .*", text, re.M)


def test_runs_of_the_pages_have_names_of_their_own() -> None:
    """Who follows two pages in one folder must not meet the run of the other."""
    pages: dict[str, set[str]] = {}
    for page in PAGES:
        trained = [command for command in commands(page) if "limbeck train" in command or "limbeck sft" in command]
        shown = re.findall(r"^ *((?:PYTHONPATH=\. )?limbeck train .*)$", page.read_text(encoding="utf-8"), re.M)
        for command in {*trained, *shown}:
            for run in re.findall(r"\bname=([\w-]+)", command):
                pages.setdefault(run, set()).add(name(page))
        for run in re.findall(r"\"name(?:=|\": \")([\w-]+)\"", "".join(python_blocks(page))):
            pages.setdefault(run, set()).add(name(page))
    assert {"short", "from-python", "python"} <= set(pages)
    assert not {run: sorted(where) for run, where in pages.items() if len(where) > 1}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page: Path) -> None:
    for command in commands(page, "make "):
        subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_in_the_text_exist(page: Path) -> None:
    """Of commands that no test can run, too, such as those that serve a large model."""
    for command, rest in re.findall(r"limbeck (\w+)([^`\n]*)", page.read_text(encoding="utf-8")):
        if command in cli.commands:
            known = {option for parameter in cli.commands[command].params for option in parameter.opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_toml_blocks_are_recipes(page: Path) -> None:
    base = {"student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"}, "task": {"kind": "arithmetic"}}
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        parse_recipe({**base, **tomllib.loads(block)})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_train_commands_have_valid_recipes(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        recipes = [word for word in words if word.endswith(".toml") and word.startswith("recipes/")]
        if recipes:
            after = words[words.index(recipes[0]) :]
            load_recipe(ROOT / recipes[0], [word for word in after if "=" in word and not word.startswith("-")])


@pytest.mark.parametrize("script", ["make_reference.py", "make_commands.py"])
def test_a_reference_that_a_script_writes_is_up_to_date(script: str) -> None:
    command = [sys.executable, ROOT / "scripts" / script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipe_reference_shows_each_table_once() -> None:
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##+ (.*)$", page, re.M)
    assert len(headings) > 50
    assert len(headings) == len(set(headings))
    for table in page.split("\n## "):
        keys = [row for row in re.findall(r"^\| `.*$", table, re.M) if "`factory`" not in row]
        assert len(keys) == len(set(keys)), table.partition("\n")[0]
    described = set(re.findall(r"^\| `(\w+)`", page, re.M)) | set(re.findall(r"[.[](\w+)]", " ".join(headings)))
    missing = {key.rpartition(".")[2] for key in dotted_keys()} - described - {"kind", "divergence", "from", "NAME"}
    assert missing <= {"sets", "teachers", "tasks"}, missing  # tables of tables, there by NAME


def test_the_index_links_every_page() -> None:
    """docs/README.md leads to each page, for those who read on a forge; the README leads to it."""
    index = ROOT / "docs" / "README.md"
    targets = re.findall(r"\]\(([^):#]+\.md)", index.read_text(encoding="utf-8"))
    assert {name((index.parent / target).resolve()) for target in targets} == {name(page) for page in PAGES} - {
        "README.md",
        "docs/README.md",
    }
    assert "](docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_files_and_metrics_of_a_run_are_described(tmp_path: Path) -> None:
    """Whatever a run writes is named in docs/reference/files.md."""
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    run = finished_run.shared(tmp_path)
    assert not [path.name for path in run.iterdir() if path.name not in page]
    words = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = {re.sub(r"/se$", "", key) for line in lines for key in line}
    phases = {key.partition("/")[2] for key in keys if key.startswith(("seconds/", "tokens_per_second/"))}
    assert phases <= words
    assert {key for key in keys if not key.startswith(("seconds/", "tokens_per_second/"))} <= words
    answers = json.loads(next((run / "evaluations").iterdir()).read_text(encoding="utf-8").splitlines()[0])
    assert set(answers) <= words


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    """Every command of a page, in order, in one folder that has the recipes and a finished run."""
    for folder in ("recipes", "studies", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copytree(finished_run.shared(tmp_path / "made"), tmp_path / "runs" / "demo")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "BROWSER": "true"}
    with ExitStack() as servers:
        for command in commands(page):
            if command in TRAINS_FOR_MINUTES or command.startswith("make "):
                assert command in TRAINS_FOR_MINUTES or command.startswith((*SETS_UP, "make benchmark")), command
                continue
            command = command.replace(".venv/bin/", "")
            if command.startswith(STUDIES):
                command += " --quick --seeds 0 --jobs 1"
            if command.startswith(SERVES):
                servers.enter_context(_serving(command, tmp_path, environment))
                continue
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@contextmanager
def _serving(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A command that serves until it is interrupted: it must say its address, answer there, and stop when told."""
    port = [] if "--port" in command else ["--port", "0"]  # several at once
    words = [*shlex.split(command), *port]
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = next(line for line in server.stdout if "http://" in line)
            address = re.search(r"http://[^\s]+", said)
            assert address is not None
            with urllib.request.urlopen(address[0], timeout=60) as answer:
                assert answer.status == 200, said
            yield
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for block in python_blocks(page):
        if "result = limbeck.train(" in block:  # what a reader tries first makes the student better
            block += '\nassert result.after["reverse_kl/exact"] < result.before["reverse_kl/exact"]\n'
            block += 'assert result.after["accuracy"] > result.before["accuracy"]\n'
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
