"""One process of the fleet, whatever it does, and the driver's hold on it.

    worker = Worker("sampler 1", partial(build_sampler, recipe_table), threads=2)
    await worker.start()                       # builds the part there; raises what the builder raises
    worker.state = [("load", weights)]         # what a process that takes its place is asked first
    await worker.call("sample", unit)          # `sample` of the part, a coroutine or not

A process that dies is started anew by Ray, on another node if need be. It is built again, is asked what is in `state`,
and then the call that was lost. What a part raises arrives as it was raised there; what it logs is logged here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import pickle
import re
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ray
from ray.exceptions import ActorDiedError, RayActorError

from limbeck.errors import LimbeckError, LostWorkerError, RunError
from limbeck.machine.usage import Counter, Tally, Usage, waiting_for_others

logger = logging.getLogger("limbeck")

LOSSES = 3  # of a process in one call: more are no accident
BESIDE = "beside"  # Ray's concurrency group of what is answered while the part works
UNKNOWN = Usage()
PAUSE = 0.2  # seconds between two looks for a process that is being started
Watch: TypeAlias = Callable[[str, str], AbstractContextManager[object]]  # role, what is waited for


def unwatched(role: str, what: str) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class _Answer:
    """What came of a call: a value, an error as it was raised, or that the process is another one than was meant."""

    value: Any = None
    error: BaseException | None = None
    place: str = ""  # traceback of an error that is no `LimbeckError`
    is_new: bool = False
    records: Sequence[tuple[int, str]] = ()  # level and message
    usage: Usage = UNKNOWN


class _Kept(logging.Handler):
    """What is logged here goes home with the next answer."""

    def __init__(self, records: list[tuple[int, str]]) -> None:
        super().__init__(logging.INFO)
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelno, record.getMessage()))


class _Process:
    """The Ray actor. All calls of a part are made in one thread, as in one process; `who` answers beside it."""

    def __init__(self, name: str, build: Callable[[], Any], threads: int, folder: str = "") -> None:
        self.name, self.build, self.threads, self.folder = name, build, threads, folder
        self.counter = Counter()
        self.life = self.counter.life
        self.part: Any = None
        self.doing: tuple[str, float] | None = None
        self.records: list[tuple[int, str]] = []
        logger.addHandler(_Kept(self.records))
        logger.setLevel(logging.INFO)

    @ray.method(concurrency_group=BESIDE)
    async def who(self) -> tuple[str, int, str, tuple[str, float] | None]:
        """This life of the process, its number, its node, and the call it is in with its seconds so far."""
        doing = self.doing
        now = None if doing is None else (doing[0], time.monotonic() - doing[1])
        return self.life, os.getpid(), ray.get_runtime_context().get_node_id(), now

    @ray.method(concurrency_group=BESIDE)
    async def free_address(self) -> tuple[str, int]:
        """Of this node: where others can meet this process."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    async def call(self, life: str | None, method: str, args: Sequence[Any]) -> _Answer:
        """`life` None: whichever it is."""
        if life not in (None, self.life):
            return _Answer(is_new=True)
        self.doing = (method, time.monotonic())
        try:
            if self.part is None:
                import torch

                torch.set_num_threads(self.threads)  # Ray sets others; the bits depend on it
                if os.path.isdir(self.folder):  # the driver's: paths of a recipe may be relative to it
                    os.chdir(self.folder)
                self.part = self.build()
            with self.counter.at_work():
                value = getattr(self.part, method)(*args) if method else None
                answer = _Answer(await value if inspect.isawaitable(value) else value)
        except Exception as error:
            answer = _failed(error)
        finally:
            self.doing = None
        records, self.records[:] = tuple(self.records), []
        return _Answer(answer.value, answer.error, answer.place, False, records, self.counter.usage(self.part))


def _failed(error: Exception) -> _Answer:
    """The error without its frames, which do not travel; one that cannot be pickled by its text."""
    place = "" if isinstance(error, LimbeckError) else "".join(traceback.format_exception(error))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Answer(error=error, place=place)


@dataclass(frozen=True)
class Link:
    """A worker as other workers see it: it can be pickled, and `get` blocks until the answer is there."""

    name: str
    actor: Any

    def get(self, method: str, *args: Any) -> Any:
        """For calls that need no state: a process that takes the place of a dead one is asked again."""
        for _ in range(LOSSES):
            try:
                with waiting_for_others():
                    answer = ray.get(self.actor.call.options(name=_title(self.name, method)).remote(None, method, args))
                return _opened(self.name, answer)
            except RayActorError as error:
                lost = error
                _wait_for(self.actor)
        raise _lost(self.name, method, lost, LOSSES)


def _wait_for(actor: Any) -> None:
    while True:
        try:
            ray.get(actor.who.remote())
            return
        except ActorDiedError:
            return  # for good: the next call says so
        except RayActorError:
            time.sleep(PAUSE)


def _title(name: str, method: str) -> str:
    """What `ps` and Ray's own tools show of the process meanwhile."""
    return f"limbeck {name}: {method or 'start'}"


def _opened(name: str, answer: _Answer) -> Any:
    for level, message in answer.records:
        logger.log(level, "%s: %s", name, message)
    if answer.error is None:
        return answer.value
    if answer.place:
        answer.error.add_note(f"In {name}:\n{answer.place}")
    raise answer.error


def _lost(name: str, method: str, error: BaseException | None, times: int) -> LostWorkerError | RunError:
    if "creation task" in str(error):  # it has never lived: another would fare the same
        return _not_started(name, str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if ":" not in line[:20]), type(error).__name__)
    what = f"{name} was lost in {method or 'start'!r}"
    if times == 1:
        return LostWorkerError(f"{what}: {reason}")
    return LostWorkerError(
        f"{what} {times} times in a row: {reason} A process that is killed again and again mostly has too little "
        "memory: look at the kernel's log on its node."
    )


def _not_started(name: str, text: str) -> RunError:
    errors = re.findall(r"^\s*([\w.]*(?:Error|Exception): .*)$", text, flags=re.MULTILINE)
    reason = errors[-1].rstrip(".") if errors else "Ray gives no reason"
    return RunError(
        f"{name} could not be started on its node: {reason}. Every node needs the Python environment of the driver, "
        "with the same versions: pip install 'limbeck[cluster]'."
    )


@dataclass(eq=False)
class Worker:
    """The driver's hold on one process. `build` is called in it and has to be picklable.

    With `restarts` a dead process is replaced; without, it has to be asked by `ask`.
    """

    name: str
    build: Callable[[], Any]
    threads: int
    gpus: int = 0
    restarts: bool = True
    watch: Watch = unwatched
    state: Sequence[tuple[Any, ...]] = ()  # method and arguments, for a new process
    tally: Tally = field(default_factory=Tally, init=False)

    def __post_init__(self) -> None:
        make = ray.remote(
            num_cpus=1,
            num_gpus=self.gpus,
            max_restarts=-1 if self.restarts else 0,
            max_task_retries=0,  # Ray would repeat calls on a process without its state
            concurrency_groups={BESIDE: 1},
        )(_Process)
        self.link = Link(self.name, make.remote(self.name, self.build, self.threads, os.getcwd()))
        self._life: str | None = None
        self._reviving = asyncio.Lock()

    async def start(self) -> None:
        """Raises what the builder raises."""
        await self.call("")

    async def free_address(self) -> tuple[str, int]:
        """Host and port of its node, for what it starts to listen there."""
        try:
            with self.watch(self.name, "start"):
                found: tuple[str, int] = await self.link.actor.free_address.remote()
        except RayActorError as error:
            raise _lost(self.name, "start", error, 1) from None
        return found

    def kill(self) -> None:
        """End the process for good, whatever it is in."""
        ray.kill(self.link.actor)

    async def call(self, method: str, *args: Any) -> Any:
        """What `method` of the part returns. Raises what it raises, and `LostWorkerError`."""
        lost: BaseException | None = None
        for _ in range(LOSSES):
            life = None
            try:
                life = await self._alive()
                answer = await self._ask(life, method, args)
            except RayActorError as error:
                lost = error
                if "creation task" in str(error):
                    break
                self._say_lost(f"in {method or 'start'}")
            else:
                if not answer.is_new:
                    return _opened(self.name, answer)
                lost = lost or RuntimeError("it had died before it was asked.")
                if self._life == life:  # else another call has heard of it
                    self._say_lost(f"before {method or 'start'}")
            if self._life == life:
                self._life = None
        raise _lost(self.name, method, lost, LOSSES)

    def _say_lost(self, when: str) -> None:
        logger.warning("%s was lost %s; it is started anew and asked again", self.name, when)

    def ask(self, method: str, args: Sequence[Any]) -> Awaitable[Any]:
        """`call` of one that is not replaced. The process has been asked when this returns, before it is awaited."""
        ref = self._submit(None, method, args)

        async def answer() -> Any:
            try:
                with self.watch(self.name, method or "start"):
                    return _opened(self.name, self._counted(await ref))
            except RayActorError as error:
                raise _lost(self.name, method, error, 1) from None

        return answer()

    async def _alive(self) -> str:
        """The life of a process that has been asked what is in `state`."""
        async with self._reviving:
            if self._life is not None:
                return self._life
            while True:
                try:
                    with self.watch(self.name, "start"):
                        life: str = (await self.link.actor.who.remote())[0]
                    break
                except ActorDiedError:
                    raise
                except RayActorError:  # it is being started
                    await asyncio.sleep(PAUSE)
            for method, *args in self.state:
                answer = await self._ask(life, method, args)
                if answer.is_new:
                    return life  # which is over: whoever asks it hears so
                _opened(self.name, answer)
            self._life = life
            return life

    async def _ask(self, life: str, method: str, args: Sequence[Any]) -> _Answer:
        with self.watch(self.name, method or "start"):
            return self._counted(await self._submit(life, method, args))

    def _counted(self, answer: _Answer) -> _Answer:
        if not answer.is_new:
            self.tally.add(answer.usage)
        return answer

    def _submit(self, life: str | None, method: str, args: Sequence[Any]) -> Any:
        return self.link.actor.call.options(name=_title(self.name, method)).remote(life, method, args)
