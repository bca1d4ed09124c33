"""Two processes never both hold a run's folder, whatever happens to its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from limbeck.errors import RunError
from limbeck.training.run_folder import RunFolder


def opened(path: Path, **more: object) -> RunFolder:
    folder = RunFolder(path)
    folder.open("", {}, **more)  # type: ignore[arg-type]
    return folder


def writer(target: Path) -> None:
    (target / "weights").touch()


def test_the_second_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path / "run")
    first.append({"step": 1, "kind": "train"})
    first.save(1, writer, 1)
    before = sorted(tmp_path.rglob("*"))
    for fresh in (False, True):
        with pytest.raises(RunError, match="in use by another process"):
            opened(tmp_path / "run", fresh=fresh)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(RunError, match="in use by another process"):
        opened(tmp_path / "link", fresh=True)
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    first.append({"step": 2, "kind": "train"})
    first.close()
    opened(tmp_path / "run").close()


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced", "its lock removed", "lock replaced"])
def test_a_folder_that_is_taken_away_is_written_no_more(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run"
    first = opened(path)
    first.save(1, writer, 1)
    if how in ("renamed", "replaced"):
        path.rename(tmp_path / "other")
    elif how == "removed":
        shutil.rmtree(path)
    else:
        (path / ".lock").unlink()
    second = opened(path) if "replaced" in how else None
    before = sorted(tmp_path.rglob("*"))
    for write in (
        lambda: first.append({"step": 2, "kind": "train"}),
        lambda: first.save(2, writer, 1),
        lambda: first.write_lines("contract.jsonl", []),
        lambda: first.write_file("rollouts/step-000002.parquet", writer),
        lambda: first.finish(2, {"model": writer}),
    ):
        with pytest.raises(RunError, match="removed, renamed or replaced while this run was going on"):
            write()
    assert sorted(tmp_path.rglob("*")) == before
    if second is not None:
        second.append({"step": 1, "kind": "train"})


def test_fresh_holds_the_new_folder(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    fresh = opened(tmp_path / "run", fresh=True)
    with pytest.raises(RunError, match="in use by another process"):
        opened(tmp_path / "run")
    fresh.append({"step": 1, "kind": "train"})


def test_what_fresh_did_not_get_to_remove_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    first = opened(path)
    first.save(1, writer, 1)
    first.close()
    with monkeypatch.context() as patch:
        patch.setattr("limbeck.training.run_folder.sweep", lambda path: None)  # killed before
        opened(path, fresh=True).close()
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".run.removed-")]) == 1
    (tmp_path / ".run2.removed-mine").mkdir()  # of another run
    assert RunFolder(path).open("", {}) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run2.removed-mine", "run"]


def test_fresh_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    first = opened(tmp_path / "disk" / "run")
    first.save(1, writer, 1)
    first.close()
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    assert RunFolder(tmp_path / "run").open("", {}, fresh=True) is None
    assert (tmp_path / "run").is_symlink()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["run"]


@pytest.mark.parametrize("left", [[".lock"], [".lock", "checkpoints/"], [".lock", "checkpoints/", ".recipe.toml.half"]])
def test_fresh_after_a_kill_before_the_recipe_was_written(tmp_path: Path, left: list[str]) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for name in left:
        (path / name).mkdir() if name.endswith("/") else (path / name).touch()
    opened(path, fresh=True).close()


AS_NOBODY = """
import os, sys
from pathlib import Path
from limbeck.errors import RunError
from limbeck.training.run_folder import RunFolder
os.setgid(65534)
os.setuid(65534)
try:
    RunFolder(Path(sys.argv[1])).open("", {}, fresh=sys.argv[2] == "fresh")
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("fresh", ["fresh", pytest.param("resume", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["lock", "folder", "parent"])
def test_a_folder_of_another_user_is_one_message(what: str, fresh: str) -> None:
    with tempfile.TemporaryDirectory() as public:  # pytest's own folders are its user's alone
        Path(public).chmod(0o755)
        _another_user_opens(Path(public) / "runs" / "run", what, fresh)


def _another_user_opens(path: Path, what: str, fresh: str) -> None:
    first = opened(path)
    first.save(1, writer, 1)
    first.close()
    if what == "lock":
        path.chmod(0o777)
        path.parent.chmod(0o777)
        (path / ".lock").chmod(0o600)
    elif what == "parent":
        path.chmod(0o700)
    command = [sys.executable, "-c", AS_NOBODY, str(path), fresh]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stderr == ""
    assert "Fix the permissions" in done.stdout
    assert "belongs to root" in done.stdout
    assert "space" not in done.stdout
    assert (path / "checkpoints" / "step-000001" / "weights").exists()
