"""Starting and stopping real engines on loopback, one at a time: each takes two to three gigabytes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path(os.environ.get("LIMBECK_ENGINES", Path(__file__).parents[2] / ".engines"))
LONGEST_START = 240  # seconds
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}


def python_of(kind: str) -> Path:
    """The interpreter of an engine's environment, made by `make test-engines`."""
    return HOME / kind / "bin" / "python"


@contextmanager
def running(kind: str, model: Path, log: Path) -> Iterator[str]:
    """The URL of a healthy server of `model`. It is stopped, with all it started, at the end."""
    port = _free_port()
    command, variables = (_sglang if kind == "sglang" else _vllm)(model, port)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(python_of(kind)), *command],
            env={**os.environ, **QUIET, **variables},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _sglang(model: Path, port: int) -> tuple[list[str], dict[str, str]]:
    command = (
        f"-m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port} --device cpu --dtype float32 "
        "--served-model-name m --attention-backend torch_native --mem-fraction-static 0.1 --max-total-tokens 16384 "
        "--max-running-requests 16 --skip-server-warmup"
    )
    return command.split(), {"SGLANG_USE_CPU_ENGINE": "1"}


def _vllm(model: Path, port: int) -> tuple[list[str], dict[str, str]]:
    command = (
        f"-m vllm.entrypoints.openai.api_server --model {model} --host 127.0.0.1 --port {port} --dtype float32 "
        "--max-model-len 256 --max-num-seqs 8 --served-model-name m --enforce-eager --max-logprobs -1"
    )
    return command.split(), {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LONGEST_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server was not healthy after {LONGEST_START} s:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
