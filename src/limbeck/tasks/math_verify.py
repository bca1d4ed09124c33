r"""Symbolic equality by the `math-verify` package, in a process of its own.

    grade = MathVerify()
    grade(Prompt(id="a", token_ids=(1,), answer=r"\frac{1}{2}"), r"so it is $\boxed{0.5}$")    1.0

Why a process: sympy can compute for ever on what a student writes ($9^{9^{9^9}}$). The package's time
limits are SIGALRM, which works in the main thread only and takes the signal away from everybody
else; and what runs inside C code is stopped by killing it, or not at all. The process starts with
the first response, about a second, and ends with this one. Responses pass to it one at a time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.graders import check_has_answer
from limbeck.tasks.optional import require

WORKER = Path(__file__).with_name("math_verify_worker.py")


class MathVerify:
    """Right where the package finds the response's last expression equal to the answer.

    A response that it cannot parse, or cannot compare within its time limits, is wrong. Raises
    `DataError` for an answer that it cannot parse, and where the package itself breaks down.
    """

    def __init__(self, hard_limit: float = 60.0) -> None:
        require("math_verify", "math")
        self.hard_limit = hard_limit  # seconds until the process is killed; the package's own limits are 5
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        if prompt.answer is None:
            return None
        with self._lock:
            if self._worker is None or not self._worker.alive:
                self._worker = _Worker()
            reply = self._worker.ask({"answer": prompt.answer, "response": response}, self.hard_limit)
        if reply is None:
            return 0.0  # killed at the hard limit: nobody could compare it
        if "score" in reply:
            return float(reply["score"])
        if "unreadable_answer" in reply:
            raise DataError(
                f"prompt {prompt.id!r}: math-verify cannot read the answer {prompt.answer!r}. Write it as a "
                'number or as LaTeX, or take another grader, such as task.grader.kind = "exact".'
            )
        raise DataError(
            f"prompt {prompt.id!r}: math-verify broke down on a response ({reply['error']}). The answer is "
            f"{prompt.answer!r}, the response begins {response[:200]!r}."
        )

    def check(self, prompt: Prompt) -> None:
        check_has_answer(prompt)  # that it parses is left to the first response: it costs milliseconds


class _Worker:
    """The process. Lines of JSON go in, lines of JSON come out; it ends when its input does."""

    def __init__(self) -> None:
        # -P keeps this folder, whose module names are those of packages, off the process's path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
        self._stop = weakref.finalize(self, _stop, self._process)
        if not self._line():  # the first line says that the package is imported
            self._stop()
            raise DataError(
                f"the math-verify process ended with exit code {self._process.returncode} before it was "
                "ready; its error output says why. Reinstall it: pip install 'limbeck[math]'"
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: dict[str, str], limit: float) -> dict[str, Any] | None:
        """The answer, or None where the process had to be killed after `limit` seconds."""
        assert self._process.stdin is not None
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            self._process.kill()

        timer = threading.Timer(limit, kill)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._line()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        self._stop()
        if killed.is_set():
            return None
        return {"error": f"the process ended with exit code {self._process.returncode}"}

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # closing flushes a question it did not live to read
        process.stdin.close()
