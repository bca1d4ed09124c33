"""Functions that well and badly behaved agents would have. Run in processes of their own, by name."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path


def any_of_these(row):
    """One process serves them all: `row["do"]` says which."""
    return globals()[row["do"]](row)


def reward(row):
    return row["reward"]


def asynchronous(row):
    async def inner():
        return 0.5

    return inner()


def variables(row):
    return float(os.environ["OPENAI_BASE_URL"] == "http://here/v1")


def hangs(row):
    print("waiting for the tool", flush=True)
    Path(row.get("touch", os.devnull)).touch()
    while True:
        time.sleep(1)


def hangs_with_children(row):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", row["mark"]])
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", row["mark"]], start_new_session=True)
    if row.get("returns"):
        return 1.0
    return time.sleep(600)


def exits(row):
    sys.exit(3)


def crashes(row):
    os.abort()


def ends_by_signal(row):
    os.kill(os.getpid(), row["signal"])


def leaves(row):
    os._exit(7)


def raises(row):
    raise RuntimeError("no such tool")


def prints(row):
    for _ in range(160):
        print("x" * 65536)
    print("the end")
    raise RuntimeError("after 10 MB")


def takes_all_memory(row):
    held = []
    while True:
        held.append(bytearray(2**24))


def returns_a_list(row):
    return [1.0]


def not_finite(row):
    return float("nan")


def draws(row):
    return random.random()


def turn_rewards(row):
    return {"reward": 1, "turn_rewards": [0, 1]}


def answers(row):
    return "46"


def _sleeper(mark, **more):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", mark], **more)


def leaves_a_session_and_crashes(row):
    _sleeper(row["mark"], start_new_session=True)
    os.abort()


def leaves_a_daemon(row):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", row["mark"]])
        os._exit(0)
    os.wait()
    return 1.0


def leaves_a_daemon_and_crashes(row):
    leaves_a_daemon(row)
    os.abort()


def kills_its_parent(row):
    leaves_a_daemon(row)
    _sleeper(row["mark"])
    os.kill(os.getppid(), 9)
    time.sleep(600)


def returns_twice(row):
    forked = os.fork()
    if forked == 0:
        os.setsid()
        return 5.0
    os.waitpid(forked, 0)
    return 1.0


def writes_to_descriptors(row):
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, row["written"].encode())
    return 1.0
