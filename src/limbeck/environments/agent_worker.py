"""What runs in the agent's interpreter. It imports nothing of Limbeck, and only the standard library.

    python -P agent_worker.py my_agent:run MEMORY_MB

It imports the agent's module once and forks a process for each rollout: nothing is imported twice, and whatever a
rollout does ends with its process. One JSON object a line, on standard input and output:

    <- {"ready": true}                                        or {"error": "cannot import 'my_agent' ..."}
    -> {"id": 7, "arguments": {"row": {...}, "base_url": "http://..."}, "environment": {...}, "seed": 1}
    <- {"id": 7, "returned": {"reward": 1.0}, "output": ""}   or "raised" or "exited", with a text
    -> {"kill": 7}                                            all that it started ends

At the end of its input it kills what it started and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import random
import runpy
import selectors
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.environments import process_tree as tree
else:  # by its place: the interpreter may have no Limbeck
    tree = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("process_tree.py"))))

KEPT_OUTPUT = 4000  # bytes: the last that a rollout printed
MOST_RETURNED = 2**20  # bytes of a return value
MEMORY_HINT = "task.memory_mb is the most that one rollout may have"


def main() -> None:
    name, memory_mb = sys.argv[1], int(sys.argv[2])
    # Only replies may go to the pipe: what the agent's module prints goes to the error output instead.
    replies = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(0, os.getcwd())
    try:
        function = _find(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module runs whatever it likes, exit() included
        _send(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    _settle()
    _send(replies, {"ready": True})
    with contextlib.suppress(BrokenPipeError):  # nobody is there any more who would read it
        _Server(function, memory_mb, replies).serve()


def _find(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    found: Any = importlib.import_module(module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise AttributeError(f"{getattr(found, '__name__', found)!r} has no {attribute!r}")
        found = getattr(found, attribute)
    if not callable(found):
        raise TypeError(f"it is {found!r}; expected a function")
    return found  # type: ignore[no-any-return]


def _arguments(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """What the parameters name: one of `offered`, or a column of its row. One of another name is given the row.

    >>> _arguments(lambda question, model: 0, {"row": {"question": "12+34"}, "model": "student"})
    {'question': '12+34', 'model': 'student'}
    >>> _arguments(lambda problem: 0, {"row": {"question": "12+34"}})
    {'problem': {'question': '12+34'}}

    Raises `TypeError` for a function that needs what there is not.
    """
    parameters = list(inspect.signature(function).parameters.values())
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = {**offered["row"], **offered}
    given = {name: known[name] for name in by_name & set(known)}
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [p.name for p in parameters if p.default is p.empty and p.kind not in unnamed and p.name not in given]
    if len(missing) == 1 and missing[0] in by_name and "row" not in given:
        return {**given, missing[0]: offered["row"]}
    if missing:
        raise TypeError(
            f"the function needs {', '.join(missing)}; there are {', '.join(offered)} and the columns of the row: "
            f"{', '.join(map(str, offered['row']))}"
        )
    return given


def _settle() -> None:
    """What an agent's packages need, once for all rollouts, to work against a server that is no OpenAI's."""
    openai = sys.modules.get("openai")
    if openai is not None and hasattr(openai, "OpenAI"):  # it imports half of itself with the first client: 0.1 s
        with contextlib.suppress(Exception):
            nobody: Any = {"api_key": "none", "base_url": "http://127.0.0.1:9/v1"}
            _ = openai.OpenAI(**nobody).chat.completions, openai.AsyncOpenAI(**nobody).chat.completions
    agents = sys.modules.get("agents")  # the OpenAI Agents SDK: by itself it speaks another protocol than others do
    if agents is not None and hasattr(agents, "set_default_openai_api"):
        agents.set_default_openai_api("chat_completions")
        agents.set_tracing_disabled(True)  # it would send traces to OpenAI


@dataclass
class _Child:
    id: int
    pid: int
    result: int  # the pipe that its return value comes through
    output: int  # the pipe of what it prints
    returned: bytearray = field(default_factory=bytearray)
    printed: bytearray = field(default_factory=bytearray)  # the last of it


class _Server:
    def __init__(self, function: Callable[..., Any], memory_mb: int, replies: int) -> None:
        self.function, self.memory_mb, self.replies = function, memory_mb, replies
        self.children: dict[int, _Child] = {}
        self.selector = selectors.DefaultSelector()
        self.wake, self.woken = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.woken, False)
        self.input = bytearray()
        tree.adopt_orphans()
        self.helpers = set(tree.children(os.getpid()))  # that the agent's module started as it was imported

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.woken, warn_on_full_buffer=False)
        self.selector.register(0, selectors.EVENT_READ, self._read_requests)
        self.selector.register(self.wake, selectors.EVENT_READ, self._reap)
        try:
            while 0 in self.selector.get_map():
                for key, _ in self.selector.select():
                    now = self.selector.get_map().get(key.fd)
                    if now is not None and now.data is key.data:  # an earlier one may have closed it, and its number
                        key.data()  # be another pipe's by now
        finally:  # whoever asked is gone
            while left := {*self.children, *tree.children(os.getpid())}:
                for pid in left:
                    tree.kill_tree(pid)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, 0)
                    self.children.pop(pid, None)

    def _read_requests(self) -> None:
        received = os.read(0, 2**20)
        if not received:
            self.selector.unregister(0)
        self.input += received
        *lines, rest = self.input.split(b"\n")
        self.input = bytearray(rest)
        for line in lines:
            request = json.loads(line)
            if "kill" in request:
                self._kill(request["kill"])
            else:
                self._start(request)

    def _kill(self, id: int) -> None:
        for child in self.children.values():
            if child.id == id:
                tree.kill_tree(child.pid)

    def _start(self, request: dict[str, Any]) -> None:
        try:
            result, write_result = os.pipe()
            output, write_output = os.pipe()
            pid = os.fork()
        except OSError as error:
            _send(self.replies, {"id": request["id"], "exited": f"no process could be started: {error}", "output": ""})
            return
        if pid == 0:
            self._become_rollout(request, write_result, write_output)
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        os.close(write_result)
        os.close(write_output)
        child = self.children[pid] = _Child(request["id"], pid, result, output)
        for pipe, read in ((result, self._read_result), (output, self._read_output)):
            os.set_blocking(pipe, False)
            self.selector.register(pipe, selectors.EVENT_READ, lambda read=read: read(child))

    def _become_rollout(self, request: dict[str, Any], result: int, output: int) -> None:
        """Never returns."""
        status, own = 1, os.getpid()
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            theirs = [pipe for child in self.children.values() for pipe in (child.result, child.output)]
            for pipe in (nothing, output, self.replies, self.wake, self.woken, *theirs):
                os.close(pipe)
            self.selector.close()
            tree.limit_memory(self.memory_mb)
            tree.end_with_parent()
            tree.adopt_orphans()  # so that what leaves its group and its parent is still found below this process
            answer = _call(self.function, request)
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            if os.getpid() == own:  # else the function forked, and this is no rollout
                _write(result, json.dumps(answer).encode() + b"\n")
                signal.pause()  # the server kills it while its own children can still be found
            status = 0
        finally:
            os._exit(status)

    def _read_result(self, child: _Child) -> None:
        received = _read(child.result)
        child.returned += received
        if not received:
            self.selector.unregister(child.result)
        elif child.returned.endswith(b"\n") or len(child.returned) > MOST_RETURNED:
            tree.kill_tree(child.pid)

    def _read_output(self, child: _Child) -> None:
        received = _read(child.output)
        child.printed = (child.printed + received)[-KEPT_OUTPUT:]
        if not received:
            self.selector.unregister(child.output)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 2**16)
        for pid in list(self.children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._ended(self.children.pop(pid), status)
        self._end_orphans()

    def _end_orphans(self) -> None:
        """Whatever came to this process is of a rollout that ended: those that run keep what they started."""
        for pid in set(tree.children(os.getpid())) - self.helpers - set(self.children):
            tree.kill_tree(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # its end wakes this process again, and so do those that it leaves

    def _ended(self, child: _Child, status: int) -> None:
        tree.kill_group(child.pid)  # what a process that crashed left behind
        for pipe, read in ((child.result, self._read_result), (child.output, self._read_output)):
            for _ in range(64):  # what is still in the pipe; a process that left its group may go on printing
                if pipe not in self.selector.get_map():
                    break
                try:
                    read(child)
                except BlockingIOError:
                    break
            if pipe in self.selector.get_map():
                self.selector.unregister(pipe)
            os.close(pipe)
        reply = _told(bytes(child.returned)) if child.returned else {"exited": tree.how_it_ended(status)}
        _send(self.replies, {"id": child.id, **reply, "output": child.printed.decode("utf-8", "replace")})


def _told(written: bytes) -> dict[str, Any]:
    """What a rollout's process said of itself: one line, unless the agent wrote there too."""
    try:
        reply = json.loads(written)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict) and written.endswith(b"\n"):
        for kind, type_ in (("returned", dict), ("raised", str), ("exited", str)):
            if list(reply) == [kind] and isinstance(reply[kind], type_):
                return reply
    return {
        "exited": f"what came through the pipe of its result is {written[:80]!r}, expected one line of its own. "
        "The function must not write to descriptors that it did not open"
    }


def _call(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(request["environment"])
    random.seed(request["seed"])  # else each fork would draw the same
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(request["seed"] % 2**32)
    try:
        value = function(**_arguments(function, request["arguments"]))
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        return {"returned": _reward(value)}
    except SystemExit as error:
        return {"exited": f"it called exit({error.code!r})"}
    except MemoryError:
        return {"raised": f"MemoryError: {MEMORY_HINT}"}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f" ({Path(frame.filename).name} line {frame.lineno})" for frame in last)
        return {"raised": f"{type(error).__name__}: {str(error)[:2000]}{where}"}


async def _awaited(value: Any) -> Any:
    return await value


def _reward(value: Any) -> dict[str, Any]:
    """What a function returned, as what travels. Raises `TypeError` for what means nothing."""
    if isinstance(value, Mapping):
        if not set(value) <= {"reward", "turn_rewards"}:
            raise TypeError(f"the function returned a dict with {sorted(map(str, value))}; {EXPECTED}")
        reward = value.get("reward")
        return {**_reward(reward), "turn_rewards": [float(each) for each in value.get("turn_rewards", ())]}
    if value is None:
        return {"reward": None}
    if isinstance(value, str):
        return {"answer": value}
    if hasattr(value, "__float__"):
        return {"reward": float(value)}
    raise TypeError(f"the function returned {type(value).__name__}; {EXPECTED}")


EXPECTED = 'expected a number, None, a text to grade, or {"reward": ..., "turn_rewards": [...]}'


def _read(pipe: int) -> bytes:
    return os.read(pipe, 2**16)


def _send(pipe: int, reply: dict[str, Any]) -> None:
    _write(pipe, json.dumps(reply).encode() + b"\n")


def _write(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data) :]


if __name__ == "__main__":
    main()
