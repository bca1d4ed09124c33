"""`limbeck recipes`, `init` and shell completion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from limbeck.cli.main import main
from limbeck.cli.recipes import complete_override
from limbeck.config import extras
from limbeck.config.recipe import dotted_keys
from limbeck.config.shipped import shipped_recipes


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_is_a_line_each() -> None:
    lines = run("recipes").splitlines()
    assert [line.split()[0] for line in lines] == [recipe.name for recipe in shipped_recipes()]
    assert all(recipe.about in line for line, recipe in zip(lines, shipped_recipes(), strict=True))


def test_init_says_what_it_wrote_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = run("init", "smollm2")
    for part in ("wrote recipes/smollm2.toml", "wrote recipes/smollm2_prompts.jsonl", "limbeck train recipes/smollm2"):
        assert part in text
    assert "wrote" not in (again := run("init", "smollm2"))
    assert "recipes/smollm2.toml is there already, and the same" in again
    (tmp_path / "recipes" / "smollm2.toml").write_text("changed")
    result = CliRunner().invoke(main, ["init", "smollm2"])
    assert result.exit_code == 1
    assert "error: recipes/smollm2.toml exists and is another file" in result.output


def test_a_recipe_that_is_not_there_leads_to_those_that_ship() -> None:
    result = CliRunner().invoke(main, ["train", "recipes/absent.toml"])
    assert "`limbeck recipes` lists those that ship" in result.output


def test_a_missing_extra_is_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the models, which are not there, nor the run's folder is touched, not even with --fresh."""
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    monkeypatch.chdir(tmp_path)
    run("init", "demo")
    for command in (
        ["train", "recipes/demo.toml", "--fresh"],
        ["eval", "recipes/demo.toml"],
        ["check", "recipes/demo.toml"],
    ):
        result = CliRunner().invoke(main, [*command, "learner.lora.rank=2", "student.model=./absent"])
        assert "learner.lora needs the package 'peft'" in result.output
        assert "pip install 'limbeck[lora]'" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]


def completed(line: str) -> list[str]:
    """What a shell is offered at the end of `line`."""
    words = line.split(" ")
    environment = {"_LIMBECK_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from limbeck.cli.main import main; main(prog_name='limbeck')"],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert not done.stderr
    return [item.partition(",")[2] for item in done.stdout.splitlines()]


def test_commands_options_recipes_and_keys_are_completed() -> None:
    assert completed("limbeck exp") == ["export"]
    assert completed("limbeck eval demo.toml --comp") == ["--compare"]
    assert completed("limbeck init d") == ["demo"]
    assert completed("limbeck train demo.toml rollout.temp") == ["rollout.temperature="]


def test_keys_are_completed_a_table_at_a_time() -> None:
    def keys(text: str) -> list[str]:
        return complete_override(None, None, text)  # type: ignore[arg-type]

    assert {"steps=", "rollout.", "learner."} <= set(keys(""))
    assert not [key for key in keys("") if "." in key[:-1]]
    assert keys("rollout") == ["rollout."]
    assert {"learner.lr=", "learner.lora."} <= set(keys("learner."))
    assert keys("nothing.") == []
    reached, pending = set(), [""]
    while pending:
        found = keys(pending.pop())
        reached |= {key.rstrip("=.") for key in found}
        pending += [key for key in found if key.endswith(".")]
        pending += [f"{key}NAME." for key in found if any(known.startswith(f"{key}NAME.") for known in dotted_keys())]
    assert reached == set(dotted_keys()), "every key can be typed this way"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_its_shell(shell: str) -> None:
    script = run("completion", shell)
    assert "_LIMBECK_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
