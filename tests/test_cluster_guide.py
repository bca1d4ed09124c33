"""The files of docs/guides/cluster: valid, and with the GPUs and memory that the recipe they run takes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.assemble.fit import Machine, misfits
from limbeck.assemble.fleet import gpus_of
from limbeck.assemble.role_sizes import Models
from limbeck.assemble.sizing import size_with
from limbeck.config.recipe import Recipe, load_recipe
from tests.assemble import sizes_page

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guides" / "cluster"
SBATCH, RAYJOB = GUIDE / "limbeck.sbatch", GUIDE / "rayjob.yaml"
CARD = 80 * 2**30
KNOWN = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "exclusive", "time", "signal",
    "requeue", "open-mode", "output",
}  # fmt: skip


def recipe_of(command: str) -> Recipe:
    """Of a `limbeck train RECIPE key=value ...` command."""
    words = shlex.split(re.search(r"limbeck train ([^&]*)", command.replace("\\\n", " "))[1])  # type: ignore[index]
    return load_recipe(ROOT / words[0], words[1:])


def sizing(recipe: Recipe) -> Any:
    models = Models(sizes_page.qwen3("8B", 4), {"teacher": sizes_page.qwen3("32B", 2)})
    return size_with(recipe, models, on_gpu=True)


def test_the_recipe_fits_into_eight_cards() -> None:
    recipe = load_recipe(sizes_page.RECIPE)
    assert sum(gpus_of(recipe).values()) == 8
    assert not misfits(sizing(recipe), Machine((CARD,) * 8, 512 * 10**9, 10**12))
    assert misfits(sizing(recipe), Machine((CARD // 2,) * 8, 512 * 10**9, 10**12))


def test_the_tables_are_up_to_date() -> None:
    for page, made in ((sizes_page.PAGE, sizes_page.page), (sizes_page.LIMITS, sizes_page.limits)):
        text = page.read_text(encoding="utf-8")
        assert made(text) == text, "run scripts/make_sizes.py"


def test_the_recipe_of_one_gpu_fits_into_one() -> None:
    assert sizes_page.on_one_gpu("1.7B", "8B", {}).peak("device").bytes < 0.9 * CARD


def test_the_slurm_script_asks_for_what_its_recipe_takes() -> None:
    text = SBATCH.read_text()
    subprocess.run(["bash", "-n", SBATCH], check=True)
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert len(lines) == text.count("\n#SBATCH"), "a header line that is none"
    header = dict(lines)
    assert header.keys() <= KNOWN
    recipe, nodes = recipe_of(text), int(header["nodes"])
    gpus = sum(gpus_of(recipe).values())
    assert gpus == nodes * int(header["gpus-per-node"])
    assert gpus <= nodes * int(header["cpus-per-task"])
    assert recipe.cluster is not None
    assert recipe.cluster.address == "auto"
    assert all(process.peak("device").bytes < CARD for process in sizing(recipe).processes)


def test_the_kuberay_job_asks_for_what_its_recipe_takes() -> None:
    job = yaml.safe_load(RAYJOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    recipe, cluster = recipe_of(job["spec"]["entrypoint"]), job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    there = 0
    for spec, count in ((cluster["headGroupSpec"], 1), (group, group["replicas"])):
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        there += count * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert container["workingDir"] in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert there == sum(gpus_of(recipe).values())
    assert recipe.cluster is not None
    assert recipe.cluster.address == "auto"
    memory = next(v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "memory")
    store = next(p for p in sizing(recipe).processes if p.name == "driver").peak("host").bytes
    assert store < int(memory.removesuffix("Gi")) * 2**30
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in constraints, "the version of Ray that is tested"


STUBS = {
    "ray": 'echo "ray $*" >> calls',
    "srun": 'echo "srun $*" >> calls',
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "scontrol": 'echo "scontrol $*" >> calls',
    "python": "echo token",
    "limbeck": "echo \"limbeck $*\" >> calls; trap 'sleep 0.2; exit ${ENDS:-143}' TERM; while :; do sleep 0.05; done",
}


@pytest.mark.parametrize(("ends", "again"), [("143", True), ("1", False), ("0", False)])
def test_a_job_whose_time_is_over_is_queued_again(tmp_path: Path, ends: str, again: bool) -> None:
    """With commands that only note that they were called."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, body in STUBS.items():
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "one", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8",
           "SLURM_CPUS_PER_TASK": "32", "ENDS": ends}  # fmt: skip
    calls = tmp_path / "calls"
    with subprocess.Popen(["bash", SBATCH], cwd=tmp_path, env={**os.environ, **job}) as script:
        end = time.monotonic() + 60
        while not (calls.exists() and "limbeck train" in calls.read_text()):
            assert time.monotonic() < end, "nothing was started"
            time.sleep(0.05)
        script.send_signal(signal.SIGTERM)
        assert script.wait(60) == int(ends)
    called = calls.read_text()
    assert ("scontrol requeue 7" in called) == again
    assert "ray start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false" in called
    assert "srun --overlap --nodes=1 --ntasks=1 --exclude=one ray start --address=10.0.0.1:6379" in called
    assert not list(tmp_path.glob(".ray-token*")), "a token that is no longer of use"
