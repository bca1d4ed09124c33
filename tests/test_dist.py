"""The wheel, as a user gets it: built by `make dist`, installed into a bare environment without any extra, and used."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import limbeck

ROOT = Path(__file__).parents[1]
TINY = ("steps=2", "threads=1", "eval.prompts=8", "rollout.prompts_per_step=8")


def run(*command: object, folder: Path, status: int = 0) -> str:
    """What it prints; whatever makes this checkout importable is not handed on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    if status == 0:
        assert "arning" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a bare environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("dist")
    build = ("make", "dist", f"VENV={folder}/tools", f"DIST={folder}/dist", f"PYTHON={sys.executable}")
    assert "are whole" in subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    venv.create(folder / "bare", with_pip=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    pip = (folder / "bare/bin/python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    subprocess.run([*pip, wheel], check=True)
    return folder / "bare/bin"


@pytest.mark.slow
def test_the_wheel_is_all_a_user_needs(installed: Path, tmp_path: Path) -> None:
    command = installed / "limbeck"
    assert run(command, "--version", folder=tmp_path) == f"limbeck {limbeck.__version__}\n"
    assert (
        run(installed / "python", "-m", "limbeck", "--version", folder=tmp_path) == f"limbeck {limbeck.__version__}\n"
    )
    names = [line.split()[0] for line in run(command, "recipes", folder=tmp_path).splitlines()]
    assert names == [path.stem for path in sorted((ROOT / "recipes").glob("*.toml"))]
    for name in names:
        run(command, "init", name, folder=tmp_path)
        assert (tmp_path / f"recipes/{name}.toml").read_bytes() == (ROOT / f"recipes/{name}.toml").read_bytes()
    for extra, override in (("lora", "learner.lora.rank=2"), ("tensorboard", 'trackers=[{kind="tensorboard"}]')):
        message = run(command, "train", "recipes/demo.toml", override, folder=tmp_path, status=1)
        assert f"pip install 'limbeck[{extra}]'" in message
        assert "Traceback" not in message
    assert "FAILED" not in run(command, "check", "recipes/demo.toml", folder=tmp_path)
    trained = run(command, "train", "recipes/demo.toml", *TINY, folder=tmp_path)
    for part in ("loading models", "student after", "finished: runs/demo/model"):
        assert part in trained
    assert "teacher" in run(command, "eval", "recipes/demo.toml", "--compare", *TINY[1:3], folder=tmp_path)
    assert "finished: runs/demo/model" in run(command, "demo", *TINY, folder=tmp_path)
    code = "import limbeck; print(type(limbeck.load_run('runs/demo').model()).__name__)"
    assert "LlamaForCausalLM" in run(installed / "python", "-c", code, folder=tmp_path)


@pytest.mark.slow
def test_its_types_are_those_of_the_package(installed: Path) -> None:
    (package,) = installed.parent.glob("lib/python3*/site-packages/limbeck")
    assert (package / "py.typed").is_file()
