"""What this machine has, and what of a run does not fit into it.

for misfit in misfits(sizing, this_machine(recipe)):
    misfit.certain, misfit.text
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from limbeck.assemble.role_sizes import Part
from limbeck.assemble.run import run_path
from limbeck.assemble.site import Given
from limbeck.assemble.sizing import Sizing, size_of
from limbeck.config.recipe import Recipe
from limbeck.errors import RecipeError
from limbeck.formatting import size

SHOWN_PARTS, SHOWN_KEYS = 3, 4
LARGE = 0.05  # of all: the keys of a smaller part would not help
GROUPS, CGROUP = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """Bytes of each GPU, of memory, and of disk: what is free, and what the run's folder has already taken."""

    gpus: tuple[int, ...]
    memory: int
    disk: int


@dataclass(frozen=True)
class Misfit:
    """`certain`: what follows from counts alone is too much already."""

    text: str
    certain: bool


@dataclass(frozen=True)
class Sized:
    """What a run takes, and what of it does not fit here."""

    sizing: Sizing
    misfits: tuple[Misfit, ...]

    def in_short(self) -> str:
        """One sentence: `the run takes at most: this process 1.2 GB of memory; 97 MB of disk`."""
        takes = [
            f"{f'{process.count} x ' if process.count > 1 else ''}{process.name} {size(peak.bytes)} of {kind}"
            for process in self.sizing.processes
            for where, kind in (("device", "GPU memory"), ("host", "memory"))
            if (peak := process.peak(where)).bytes  # type: ignore[arg-type]
        ]
        disk = sum(part.bytes for part in self.sizing.disk)
        return f"the run takes at most: {'; '.join([*takes, f'{size(disk)} of disk'])}"


def sized_here(recipe: Recipe, prompt_tokens: int | None = None, given: Given | None = None) -> Sized:
    """`sizing.size_of` beside this machine. A cluster that is elsewhere is taken to have GPUs.

    Raises `ModelError` for models that are not there or cannot be read.
    """
    here = recipe.cluster is None or recipe.cluster.address == "local"
    on_gpu = recipe.device.startswith("cuda") or (recipe.device == "auto" and (torch.cuda.is_available() or not here))
    sizing = size_of(recipe, on_gpu, prompt_tokens, given)
    return Sized(sizing, tuple(misfits(sizing, this_machine(run_path(recipe))) if here else ()))


def refuse(sized: Sized) -> None:
    """Raises `RecipeError` for what certainly does not fit."""
    certain = [misfit.text for misfit in sized.misfits if misfit.certain]
    if certain:
        raise RecipeError("this machine is too small for the recipe:\n" + "\n".join(f"  - {text}" for text in certain))


def this_machine(folder: Path) -> Machine:
    """What there is here; `folder` is where the run goes."""
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return Machine(tuple(gpus), _memory(), shutil.disk_usage(there).free + taken)


def _memory() -> int:
    """Of the machine, or what its container or batch job may have of it."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits())


def _cgroup_limits() -> Iterator[int]:
    """Of this process's control group and those around it, in either version."""
    if not GROUPS.is_file():  # not Linux
        return
    for line in GROUPS.read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            root, file = (CGROUP / kinds, "memory.limit_in_bytes" if kinds else "memory.max")
            here = root / path.lstrip("/")
            for folder in (here, *here.parents):
                if folder.is_relative_to(root) and (folder / file).is_file():
                    text = (folder / file).read_text().strip()
                    yield from [int(text)] if text.isdigit() else []  # "max": no limit


def misfits(sizing: Sizing, machine: Machine) -> list[Misfit]:
    """What does not fit, and the keys to change."""
    return [*_on_gpus(sizing, machine), *_in_memory(sizing, machine), *_on_disk(sizing, machine)]


def _on_gpus(sizing: Sizing, machine: Machine) -> Iterator[Misfit]:
    if not sizing.on_gpu:
        return
    there, wanted = min(machine.gpus, default=0), [p for p in sizing.processes if p.peak("device").bytes]
    count = sum(process.count * process.devices for process in wanted)
    if count > len(machine.gpus):
        keys = ", ".join(dict.fromkeys(process.key for process in wanted if process.key))
        takes = f"the run takes {count} GPU{'s' * (count > 1)}, and this machine has {len(machine.gpus)}"
        yield Misfit(f"{takes}. {_change(keys)}".rstrip(), True)
    for process in wanted if machine.gpus else ():
        peak = process.peak("device")
        if peak.bytes > there:
            certain = process.peak("device", exact=True).bytes > there
            takes = f"{process.name}: {size(peak.bytes)} of GPU memory while {peak.doing}, and a GPU has {size(there)}"
            held = [_owned(owner, part) for owner, part in process.held("device", peak.phase)]
            yield Misfit(f"{takes}. {_why(held)}", certain)


def _in_memory(sizing: Sizing, machine: Machine) -> Iterator[Misfit]:
    """All processes are on this machine, and each may be at its peak."""
    total = sum(process.count * process.peak("host").bytes for process in sizing.processes)
    certain = sum(process.count * process.peak("host", exact=True).bytes for process in sizing.processes)
    if total > machine.memory:
        parts = [
            replace(_owned(owner, part), bytes=process.count * part.bytes)
            for process in sizing.processes
            for owner, part in process.held("host", process.peak("host").phase)
        ]
        takes = f"memory: {size(total)} at once, and this machine has {size(machine.memory)}"
        yield Misfit(f"{takes}. {_why(parts)}", certain > machine.memory)


def _on_disk(sizing: Sizing, machine: Machine) -> Iterator[Misfit]:
    total = sum(part.bytes for part in sizing.disk)
    if total > machine.disk:
        certain = sum(part.bytes for part in sizing.disk if part.exact) > machine.disk
        takes = f"disk: {size(total)}, and {size(machine.disk)} are free where the run goes (output)"
        yield Misfit(f"{takes}. {_why(sizing.disk)}", certain)


def _owned(owner: str, part: Part) -> Part:
    """By whose it is: several roles have weights."""
    return part if owner == "process" else replace(part, what=f"{owner}'s {part.what}")


def _why(parts: Sequence[Part]) -> str:
    """The largest parts, and the keys that make the large ones smaller."""
    largest = sorted(parts, key=lambda part: -part.bytes)
    large = sum(part.bytes for part in parts) * LARGE
    named = ", ".join(f"{part.what} {size(part.bytes)}" for part in largest[:SHOWN_PARTS])
    keys = list(dict.fromkeys(key for part in largest if part.bytes >= large for key in part.keys))
    return f"The largest: {named}. {_change(', '.join(keys[:SHOWN_KEYS]))}".rstrip()


def _change(keys: str) -> str:
    return f"Change {keys}." if keys else ""
