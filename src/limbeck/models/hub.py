"""Names of models that are neither a folder here nor a repository of the hub that can be had."""

from __future__ import annotations

from pathlib import Path

from limbeck.errors import ModelError
from limbeck.models.causal_lm import first_line
from limbeck.models.folder import CONFIG


def refuse_what_is_nowhere(name: str, path: str, error: BaseException) -> None:
    """Raises `ModelError` for a name that is no folder here, and that the hub does not give either."""
    from transformers.utils import cached_file

    if not isinstance(error, OSError) or Path(path).is_dir():
        return
    try:
        cached_file(path, CONFIG, local_files_only=True)  # whoever was refused has asked the hub already
    except OSError:
        raise ModelError(
            f"there is no folder {name!r} here, and the hub does not give a model of that name: {first_line(error)}. "
            f"For a folder, give its path (./{name}); for a model of the hub, check its spelling, the network and, "
            f"where it is gated, your token (`hf auth login`). Without a network, download it elsewhere first "
            f"(`hf download {name} --local-dir FOLDER`) and give FOLDER."
        ) from error
