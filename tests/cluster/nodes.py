"""A Ray cluster of two nodes on this machine, of which the second is lost in the middle of a run and comes back.

    python -m tests.cluster.nodes RECIPE METRICS OVERRIDE...

The last line printed is JSON: the exit codes of the run and of one with a wrong token, and which step it was.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def lines(metrics: Path) -> int:
    return metrics.read_text().count('"kind": "train"') if metrics.exists() else 0


def main() -> None:
    recipe, metrics, overrides = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    folder = Path(tempfile.mkdtemp(prefix="limbeck-nodes-"))
    for name in ("token", "wrong"):
        (folder / name).write_text(secrets.token_hex(32))
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_TMPDIR=str(folder),  # of Ray's sessions, and of the file with the last cluster's address
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(folder / "token"),
    )
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 2**28, "node_ip_address": "127.0.0.1"}
    (folder / "ray").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        command = [sys.executable, "-m", "limbeck", "train", recipe, f"cluster.address={cluster.address}", *overrides]
        wrong = subprocess.run(
            [*command, "name=wrong"],
            env={**os.environ, "RAY_AUTH_TOKEN_PATH": str(folder / "wrong")},
            capture_output=True,
            text=True,
        )
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while run.poll() is None and lines(metrics) < 2:
            time.sleep(0.05)
        step = lines(metrics)
        (raylet,) = second.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        cluster.remove_node(second, allow_graceful=False)
        time.sleep(3)  # what is started anew has no place meanwhile
        cluster.add_node(**node)
        output, _ = run.communicate(timeout=240)
        print(output)
        print(json.dumps({"rc": run.returncode, "step": step, "wrong": wrong.returncode, "refusal": wrong.stderr}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
