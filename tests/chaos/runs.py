"""Runs that are disturbed in one way, and what became of them.

    site = Site(folder)                                      # servers, proxies, models; shared by all runs
    outcome = site.disturb("sglang", FAULTS["swap"], seed=1)
    outcome.result        "same", "refused", "WRONG WEIGHTS", "hang", "traceback" or "stuck"

A run that was refused is started again, undisturbed: it must end with the weights of a run that never was disturbed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck import api
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import LimbeckError
from limbeck.protocols import Observer
from tests import tiny
from tests.chaos import models, servers
from tests.chaos.faults import Fault
from tests.chaos.proxy import Plan, Proxy
from tests.chaos.recorder import recorded
from tests.chaos.table import Outcome, Result
from tests.fake_server import in_thread

LONGEST = 60  # seconds of a run: then it hangs


@dataclass(frozen=True)
class Setup:
    """A run, without its faults."""

    kind: str
    where: str = "open"  # which of the servers: "open", "token" or "stock"
    sure: bool = False  # all responses are equal
    hidden: bool = False
    student_top: bool = False  # asked about the student's top tokens by their ids
    replicas: int = 1


SETUPS = {
    "limbeck, top K": Setup("limbeck"),
    "limbeck, hidden states": Setup("limbeck", hidden=True),
    "limbeck, student's top": Setup("limbeck", student_top=True),
    "limbeck, token": Setup("limbeck", where="token"),
    "limbeck, two replicas": Setup("limbeck", replicas=2),
    "limbeck, equal responses": Setup("limbeck", sure=True),
    "limbeck, hidden states, equal responses": Setup("limbeck", hidden=True, sure=True),
    "sglang": Setup("sglang"),
    "sglang, equal responses": Setup("sglang", sure=True),
    "sglang, hidden states": Setup("sglang", hidden=True),
    "vllm": Setup("vllm"),
    "vllm, equal responses": Setup("vllm", sure=True),
    "vllm, token": Setup("vllm", where="token"),
}
STOCK = {
    "stock sglang": Setup("sglang", where="stock"),
    "stock sglang, equal responses": Setup("sglang", where="stock", sure=True),
    "stock vllm": Setup("vllm", where="stock"),
    "stock vllm, equal responses": Setup("vllm", where="stock", sure=True),
}


class _Begins:
    """A fault from the scoring of a step on; 0: from the proof of the teacher on."""

    def __init__(self, plan: Plan, step: int) -> None:
        self.plan, self.step = plan, step
        plan.begins = not step

    def phase(self, step: int, name: str) -> None:
        self.plan.begins = self.plan.begins or (step >= self.step and name == "score")

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, line: Any) -> None: ...

    def evaluated(self, line: Any) -> None: ...

    def closed(self) -> None: ...


class HangError(BaseException):
    """Nothing in a run catches it."""


class Site:
    """What the runs share."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.numbers = folder, itertools.count()
        self.teacher, self.other = models.teachers(folder)
        self.students = {False: tiny.save(folder / "student", "llama"), True: models.sure_student(folder / "sure")}
        self.rows = folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps({"prompt": f"{i} plus {i * i % 7}:"}) + "\n" for i in range(24)))
        self.log = folder / "servers.log"
        self.log.touch()
        self.servers: dict[str, servers.Served] = {}
        self.proxies: dict[str, list[Proxy]] = {}
        for where, token in (("open", ""), ("token", "sesame")):
            server, other = (
                stack.enter_context(servers.serving(model, self.log, token)) for model in (self.teacher, self.other)
            )
            self.servers[where] = server
            self.proxies[where] = [stack.enter_context(in_thread(Proxy(server.port, other.port))) for _ in range(2)]
        stock, another = (
            stack.enter_context(in_thread(servers.StockServer(tiny.VOCABULARY, seed, f"teacher-v{seed}")))
            for seed in (0, 5)
        )
        self.proxies["stock"] = [stack.enter_context(in_thread(Proxy(stock.port, another.port, bound=False)))]
        self.calm: dict[Setup, str] = {}

    def recipe(self, setup: Setup, name: str) -> Recipe:
        proxies = self.proxies[setup.where][: setup.replicas]
        teacher: dict[str, Any] = {
            "kind": setup.kind, "url": [proxy.url for proxy in proxies], "timeout": 1.5, "retry_seconds": 20.0,
        }  # fmt: skip
        if setup.where == "token":
            teacher["token_env"] = servers.TOKEN_ENV
        if setup.where == "stock":
            teacher |= {
                "vocabulary": tiny.VOCABULARY,
                "top_logprobs": 60,
                "trust_start": True,
            }  # its scores fade with distance
        objective: dict[str, Any] = {"support": "full" if setup.hidden else 5}
        if setup.hidden:
            teacher["head"] = self.teacher
        if setup.student_top:
            objective = {"support": "student_top", "k": 5}
        return parse_recipe(
            {
                "name": name, "output": str(self.folder / "runs"), "steps": 3, "threads": 1, "teacher": teacher,
                "student": {"model": self.students[setup.sure]},
                "task": {"kind": "file", "path": str(self.rows), "held_out": 4, "chat": False},
                "rollout": {"temperature": 0.7, "max_tokens": 6, "prompts_per_step": 6, "samples_per_prompt": 2},
                "objective": objective,
                "learner": {"lr": 1e-3}, "eval": {"prompts": 2}, "checkpoint": {"every": 1},
                "record": {"every": 0},
            }
        )  # fmt: skip

    def weights(self, setup: Setup, name: str, observers: Sequence[Observer] = ()) -> str:
        """The digest of the weights that a run ends with."""
        return digest(api.train(self.recipe(setup, name), observers=observers).folder)

    def undisturbed(self, setup: Setup) -> str:
        one = replace(setup, replicas=1)
        if one not in self.calm:
            self.calm[one] = self.weights(one, f"calm-{len(self.calm)}")
        return self.calm[one]

    def disturb(
        self,
        setup: Setup,
        fault: Fault,
        seed: int,
        rate: float | None = None,
        begins: int | None = None,
        name: str = "",
    ) -> Outcome:
        """One run of `setup` with `fault`, and what became of it.

        The fault `begins` with that step, 0 being the proof of the teacher; the seed chooses where it is not given.
        """
        if begins is None:
            begins = random.Random(f"{seed} {fault.name} {name}").choice((0, 1, 1, 2))
        outcome = Outcome(name, fault.name, seed)
        expected, run = self.undisturbed(setup), f"run-{next(self.numbers):04d}"
        proxy, restart = self.proxies[setup.where][0], None
        if fault.name in ("restart", "other model"):
            server = self.servers[setup.where]
            restart = lambda: server.restart(self.other if fault.name == "other model" else None)
        plan = Plan(fault, seed, fault.rate if rate is None else rate, restart, shown=setup.kind == "limbeck")
        proxy.arm(plan)
        with recorded() as taken:
            found, outcome.result, outcome.message = attempt(lambda: self.weights(setup, run, [_Begins(plan, begins)]))
        proxy.disarm()
        outcome.hits = plan.hits
        outcome.taken = [what for name, what in plan.altered.items() if name in taken]
        if fault.name == "other model" and plan.hits:
            self.servers[setup.where].restart()
        if restart is not None:
            self.servers[setup.where].wait()
        if outcome.result == "refused":
            found, result, message = attempt(lambda: self.weights(setup, run))
            if result != "same":
                outcome.result, outcome.message = "stuck" if result == "refused" else result, message
        if found is not None and found != expected:
            outcome.result = "WRONG WEIGHTS"
        return outcome


def attempt(work: Callable[[], str]) -> tuple[str | None, Result, str]:
    """What `work` gives, how it ended ("same" where it ended well) and what it said."""
    try:
        with _limit(LONGEST):
            return work(), "same", ""
    except LimbeckError as error:
        message = str(error)
        readable = message.strip() and message.replace("\n", " ").isprintable() and "Traceback" not in message
        return None, "refused" if readable else "traceback", message
    except HangError:
        return None, "hang", f"after {LONGEST} s"
    except Exception:
        return None, "traceback", traceback.format_exc()


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
