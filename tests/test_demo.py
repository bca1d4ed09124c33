"""The demo as a user runs it, whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from limbeck.cli.main import main
from limbeck.config.shipped import ShippedRecipe
from limbeck.demo.run import _time_of
from tests.tiny_runs import save_models, write_recipe


@pytest.mark.slow
def test_the_demo_teaches_addition(tmp_path: Path) -> None:
    """The last line of `limbeck demo --json`: at most half right before, nine in ten after."""
    done = subprocess.run(
        [Path(sys.executable).with_name("limbeck"), "demo", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["student_before"] <= 0.5
    assert result["student_after"] >= 0.9
    assert result["teacher"] >= 0.95
    assert result["reverse_kl_after"] < 0.1 * result["reverse_kl_before"]
    assert result["seconds"] > 0


class TestWhatIsInTheFolderAlready:
    """By the recipe of a tiny run in the place of the demo's."""

    @pytest.fixture
    def kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file in the folder of a demo of two updates that is finished: it goes where the folder is removed."""
        path = write_recipe(tmp_path / "demo.toml", save_models(tmp_path / "models"), steps=2)
        monkeypatch.setattr("limbeck.demo.run.shipped_recipe", lambda name: ShippedRecipe(path, ()))
        assert demo().exit_code == 0
        (kept := tmp_path / "runs" / "run" / "mine.txt").write_text("mine")
        return kept

    def test_a_finished_demo_is_made_again_and_says_so_first(self, kept: Path) -> None:
        again = demo()
        said, _, made = again.output.partition("it is removed and made again")
        assert said.splitlines()[-1].endswith("holds this demo, finished: ")
        assert "step 1/2" in made
        assert not kept.exists()

    def test_one_that_was_stopped_goes_on(self, kept: Path) -> None:
        (kept.parent / "state.json").unlink()
        (kept.parent / "recipe.toml").write_text(
            (kept.parent / "recipe.toml").read_text().replace("steps = 2", "steps = 4")
        )
        assert "resuming after step 2" in demo("steps=4").output
        assert kept.exists()

    def test_a_finished_run_of_other_steps_is_not_removed(self, kept: Path) -> None:
        assert demo("steps=1").exit_code == 0
        assert kept.exists()

    def test_a_run_of_another_recipe_is_refused(self, kept: Path) -> None:
        refused = demo("learner.lr=1e-4")
        assert refused.exit_code == 1
        assert "holds a run of another recipe" in refused.output
        assert "name=" in refused.output
        assert kept.exists()
        assert demo("learner.lr=1e-4", "--fresh").exit_code == 0
        assert not kept.exists()


def demo(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments], catch_exceptions=False)


def test_the_time_that_is_forecast_goes_with_the_steps() -> None:
    assert [_time_of(steps) for steps in (2, 300, 1000)] == ["21 s", "3 minutes", "10 minutes"]
