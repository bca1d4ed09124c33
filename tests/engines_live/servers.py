"""Starting and stopping real engines on loopback, one at a time: each takes two to three gigabytes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOME = Path(os.environ.get("LIMBECK_ENGINES", Path.home() / ".cache" / "limbeck" / "engines"))
LONGEST_START = 900  # seconds; half a minute where nothing else runs
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}


def python_of(kind: str) -> Path:
    """The interpreter of an engine's environment, made by `make test-engines`."""
    return HOME / kind / "bin" / "python"


class Server:
    """A running server. It can be restarted at its port with the model it was started with."""

    def __init__(self, kind: str, model: Path, log: Path, options: Sequence[str] = ()) -> None:
        self.kind, self.model, self.log, self.options, self.port = kind, model, log, tuple(options), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command, variables = (_sglang if self.kind == "sglang" else _vllm)(self.model, self.port)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(python_of(self.kind)), *command, *self.options],
                env={**os.environ, **QUIET, **variables},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it is healthy. Raises `RuntimeError` with the end of its log."""
        deadline = time.monotonic() + LONGEST_START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self._tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"the server was not healthy after {LONGEST_START} s:\n{self._tail()}")

    def stop(self) -> None:
        """SIGTERM to the parent, which ends the rest; what is left of its session after that is killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.log.write_text(f"{self.log.read_text(errors='replace')}\nkilled\n")
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # nothing is left
        self.process.wait(10)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@contextmanager
def running(kind: str, model: Path, log: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """A healthy server of `model`. It is stopped, with all it started, at the end."""
    server = Server(kind, model, log, options)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def _sglang(model: Path, port: int) -> tuple[list[str], dict[str, str]]:
    command = (
        f"-m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port} --device cpu --dtype float32 "
        "--served-model-name m --attention-backend torch_native --mem-fraction-static 0.6 --max-total-tokens 16384 "
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
