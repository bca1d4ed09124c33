"""From a run's folder to a model, or to the adapter alone; and what is said where that cannot be."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.cli.export import export as command
from limbeck.config.base import ModelConfig
from limbeck.config.learner import LoraConfig
from limbeck.errors import ModelError, RunError
from limbeck.files.digests import seal
from limbeck.learners.export import export
from limbeck.learners.local import LocalLearner
from limbeck.models.loading import load_model
from tests.helpers import learner_of, random_samples, save_tiny, tiny_lm


def update(learner: LocalLearner) -> None:
    asyncio.run(learner.update(random_samples(tiny_lm(2), [5, 3, 4])))


def save(learner: LocalLearner, folder: Path) -> None:
    learner.save(folder)
    seal(folder, {"step": int(folder.name.removeprefix("step-")), "metrics_bytes": 0, "recipe": {}})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` and `lora`: runs of two checkpoints, laid out as the loop lays them out."""
    folder = tmp_path_factory.mktemp("runs")
    base = save_tiny(folder / "base", 1)
    for name, lora in (("whole", None), ("lora", LoraConfig(rank=2))):
        learner = learner_of(load_model(ModelConfig(model=base), torch.device("cpu")), tiny_lm(2), lora=lora, lr=1e-2)
        (folder / name).mkdir()
        (folder / name / "recipe.toml").write_text(f'[student]\nmodel = "{base}"\n')
        for step in (1, 2):
            update(learner)
            save(learner, folder / name / "checkpoints" / f"step-{step:06d}")
        asyncio.run(learner.publish()).save(folder / name / "model")  # of update 2, as a finished run's
        update(learner)  # and the run went on
        save(learner, folder / name / "checkpoints" / "step-000010")
        asyncio.run(learner.publish()).save(folder / f"expected-{name}")
        asyncio.run(learner.publish()).save(folder / f"expected-{name}-bfloat16", "bfloat16")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["whole", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_newest_checkpoint_as_a_model(runs: Path, name: str, dtype: str, tmp_path: Path) -> None:
    source = export(runs / name, tmp_path / "out", dtype)
    assert source == runs / name / "checkpoints" / "step-000010"
    same(tmp_path / "out", runs / f"expected-{name}{'' if dtype == 'float32' else '-bfloat16'}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(model.dtype) == f"torch.{dtype}"
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_one_checkpoint_and_a_finished_run_without_any(runs: Path, name: str, tmp_path: Path) -> None:
    export(runs / name / "checkpoints" / "step-000002", tmp_path / "checkpoint")
    same(tmp_path / "checkpoint", runs / name / "model")
    shutil.copytree(runs / name / "model", tmp_path / "run" / "model")
    if name == "lora":  # beside the merged model, which then needs no base
        shutil.copytree(runs / name / "checkpoints" / "step-000002" / "adapter", tmp_path / "run" / "adapter")
    export(tmp_path / "run", tmp_path / "finished")
    same(tmp_path / "finished", runs / name / "model")


def test_the_adapter_alone(runs: Path, tmp_path: Path) -> None:
    export(runs / "lora", tmp_path / "out", adapter=True)
    same_tensors = load_file(runs / "lora" / "checkpoints" / "step-000010" / "adapter" / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == same_tensors.keys()
    assert all(torch.equal(found[name], same_tensors[name]) for name in found)
    base = AutoModelForCausalLM.from_pretrained(runs / "base")
    merged = PeftModel.from_pretrained(base, str(tmp_path / "out")).merge_and_unload()
    expected = weights(runs / "expected-lora")
    assert all(torch.equal(expected[name], tensor) for name, tensor in merged.state_dict().items())


class TestRefusals:
    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"no run folder at .*nowhere"):
            export(tmp_path / "nowhere", tmp_path / "out")
        with pytest.raises(RunError, match=r"not a run folder: it has no recipe\.toml"):
            export(tmp_path, tmp_path / "out")

    def test_no_checkpoint_yet(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.toml").touch()
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(RunError, match=r"no checkpoint and no model/ yet"):
            export(tmp_path, tmp_path / "out")

    def test_out_is_not_empty(self, runs: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").touch()
        for out in (tmp_path, tmp_path / "mine"):
            with pytest.raises(RunError, match="exists and is not an empty folder"):
                export(runs / "whole", out)
        (tmp_path / "empty").mkdir()
        export(runs / "whole", tmp_path / "empty")

    def test_an_adapter_of_a_run_that_has_none(self, runs: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"full weights and no adapter.*--adapter"):
            export(runs / "whole", tmp_path / "out", adapter=True)
        assert not (tmp_path / "out").exists()

    def test_another_base(self, runs: Path, tmp_path: Path) -> None:
        """The folder of that name was overwritten since the run."""
        run = shutil.copytree(runs / "lora", tmp_path / "run")
        (run / "recipe.toml").write_text(f'[student]\nmodel = "{save_tiny(tmp_path / "base", 7)}"\n')
        with pytest.raises(RunError, match=r"belongs to other weights.*the base that the run began with"):
            export(run, tmp_path / "out")

    def test_a_base_that_is_gone(self, runs: Path, tmp_path: Path) -> None:
        run = shutil.copytree(runs / "lora", tmp_path / "run")
        (run / "recipe.toml").write_text('[student]\nmodel = "./gone"\n')
        with pytest.raises(ModelError, match=r"no model folder at '\./gone'"):
            export(run, tmp_path / "out")
        (run / "recipe.toml").write_text("steps = 3\n")
        with pytest.raises(RunError, match=r"recipe\.toml does not name the model of the student"):
            export(run, tmp_path / "out")
        (run / "recipe.toml").unlink()
        with pytest.raises(RunError, match=r"no recipe\.toml.*not known"):
            export(run, tmp_path / "out")

    def test_a_failed_write_leaves_nothing(self, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("limbeck.learners.saving.write_tensors", full)
        with pytest.raises(RunError, match=r"cannot write .*No space left"):
            export(runs / "whole", tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_the_command(runs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(runs / "lora"), str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert result.exit_code == 0, result.output
    assert "step-000010, in bfloat16" in result.output
    same(tmp_path / "out", runs / "expected-lora-bfloat16")


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom limbeck.cli.export import export\n"
        "try:\n    export(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--dtype" in done.stdout
