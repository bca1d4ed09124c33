"""Check the wheel and the sdist in a folder: what is in them, and what they say of themselves.

python scripts/check_dist.py dist
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Where a folder of the repository is in the wheel.
SHIPPED = {
    "src/limbeck": "limbeck",
    "recipes": "limbeck/recipes",
    "examples": "limbeck/examples",
    **{
        f"scripts/{name}": f"limbeck/scripts/{name}"
        for name in ("make_demo_models.py", "make_other_tokenizer.py", "smollm2")
    },
}


def main(folder: Path) -> None:
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    problems = [*problems_of_wheel(wheel), *problems_of_sdist(sdist)]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{wheel.name} and {sdist.name} are whole")


def problems_of_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    about = {name.partition("/")[2]: data for name, data in files.items() if ".dist-info/" in name}
    wanted = {
        f"{target}{name.removeprefix(source)}": name for source, target in SHIPPED.items() for name in tracked(source)
    }
    there = {name for name in files if ".dist-info/" not in name}
    problems = [f"the wheel lacks {name}" for name in sorted(wanted.keys() - there)]
    problems += [f"the wheel has {name}, which is not in the repository" for name in sorted(there - wanted.keys())]
    problems += [
        f"{name} differs from the repository's"
        for name in sorted(wanted.keys() & there)
        if files[name] != (ROOT / wanted[name]).read_bytes()
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = message_from_bytes(about["METADATA"])
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    if urls != project["urls"]:
        problems.append(f"the wheel names the addresses {urls}, expected {project['urls']}")
    if set(metadata.get_all("Provides-Extra", [])) != set(project["optional-dependencies"]):
        problems.append("the wheel's extras are not those of pyproject.toml")
    if b"limbeck = limbeck.cli.main:main" not in about["entry_points.txt"]:
        problems.append("the wheel has no command `limbeck`")
    if "licenses/LICENSE" not in about:
        problems.append("the wheel has no licence")
    return problems


def problems_of_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked(".") if not name.startswith(".")}
    return [f"the sdist lacks {name}" for name in sorted(wanted - there)]


def tracked(folder: str) -> list[str]:
    """Files that belong to the repository, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", folder]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
