"""One message with the remedy of its own trouble: space is not what every disk lacks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from limbeck.errors import EngineError, RunError
from limbeck.files.disk import disk_errors, read_file, remove, take_away


def message(error: Exception) -> str:
    with pytest.raises(RunError) as caught, disk_errors("cannot write X", "use output=..."):
        raise error
    return str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_space_where_space_is_the_trouble(number: int) -> None:
    assert "Free some space" in message(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "Fix the permissions"), (errno.EPERM, "Fix the permissions"), (errno.EROFS, "read-only: mount it"),
     (errno.EFBIG, "ulimit -f"), (errno.EMFILE, "ulimit -n"), (errno.EISDIR, "move it away"), (errno.ENOENT, "renamed"),
     (errno.EIO, "Check the disk"), (errno.EBUSY, "mounted"), (errno.ENAMETOOLONG, "name cannot be used")],
)  # fmt: skip
def test_other_troubles_have_their_own_remedy(number: int, remedy: str) -> None:
    text = message(OSError(number, os.strerror(number), "/somewhere/file"))
    assert remedy in text
    assert "space" not in text.lower()
    assert text.startswith("cannot write X: ")
    assert "\n" not in text


@pytest.mark.parametrize("kind", [Exception, SafetensorError, RuntimeError])
def test_packages_that_have_only_the_text_of_it(kind: type[Exception]) -> None:
    """tokenizers raises a bare `Exception`, safetensors its own error, pyarrow one with the number in its text."""
    assert "Free some space" in message(kind("No space left on device (os error 28)"))
    assert "read-only" in message(kind("Read-only file system (os error 30)"))
    assert "Free some space" in message(OSError("[Errno 28] Error writing bytes to file"))


def test_what_is_not_the_disks_passes() -> None:
    with pytest.raises(KeyError), disk_errors("cannot write X"):
        raise KeyError("os")
    with pytest.raises(EngineError), disk_errors("cannot write X"):
        raise EngineError("the server says: os error 28")


def test_what_is_removed_is_renamed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "step-000001"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").touch()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        take_away(folder, tmp_path / ".gone")
    assert [path.name for path in tmp_path.iterdir()] == [".gone"]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    remove(tmp_path / "link")
    assert (tmp_path / "there" / "precious").exists()
    assert not (tmp_path / "link").is_symlink()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), tmp_path):
        with pytest.raises(OSError):
            read_file(path)
    (tmp_path / "file").write_bytes(b"abc")
    assert read_file(tmp_path / "file") == b"abc"
