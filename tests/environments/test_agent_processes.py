"""An agent's function in processes of their own: whatever one does costs that one alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from limbeck.environments import agent_processes
from limbeck.environments.agent_processes import AgentProcesses
from limbeck.environments.agent_worker import _arguments
from limbeck.errors import RecipeError

MODULE = "tests.environments.agents_for_tests"
OFFERED = {"row": {}, "base_url": "http://here/v1", "api_key": "k", "model": "student", "sample": 0, "seed": 0}


@asynccontextmanager
async def processes_of(name: str, **more):
    processes = AgentProcesses(f"{MODULE}:{name}", **more)
    try:
        await processes.start()
        yield processes
    finally:
        await processes.close()


async def until(true) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


def marked(mark: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


ENDINGS = [
    # what the function does, how that ends, and the value or words of the message
    ({"do": "reward", "reward": 0.25}, "returned", {"reward": 0.25}),
    ({"do": "reward", "reward": True}, "returned", {"reward": 1.0}),
    ({"do": "reward", "reward": None}, "returned", {"reward": None}),
    ({"do": "asynchronous"}, "returned", {"reward": 0.5}),
    ({"do": "variables"}, "returned", {"reward": 1.0}),
    ({"do": "turn_rewards"}, "returned", {"reward": 1.0, "turn_rewards": [0.0, 1.0]}),
    ({"do": "answers"}, "returned", {"answer": "46"}),
    ({"do": "exits"}, "exited", "exit(3)"),
    ({"do": "crashes"}, "exited", "SIGABRT"),
    ({"do": "ends_by_signal", "signal": 40}, "exited", "ended by signal 40"),
    ({"do": "leaves"}, "exited", "exit code 7"),
    ({"do": "raises"}, "raised", "RuntimeError: no such tool (agents_for_tests.py line"),
    ({"do": "prints"}, "raised", "after 10 MB"),
    ({"do": "returns_a_list"}, "raised", "returned list; expected a number"),
    ({"do": "takes_all_memory"}, "raised", "task.memory_mb"),
]


async def test_each_ending_is_told_and_costs_that_rollout_alone() -> None:
    async with processes_of("any_of_these", memory_mb=512) as processes:
        calls = [
            processes.run({**OFFERED, "row": row}, {"OPENAI_BASE_URL": "http://here/v1"}, 0) for row, *_ in ENDINGS
        ]
        for ended, (row, kind, expected) in zip(await asyncio.gather(*calls), ENDINGS, strict=True):
            assert ended.kind == kind, (row, ended)
            assert len(ended.message) < 4000
            assert ended.value == expected if kind == "returned" else expected in ended.message, row
            assert row["do"] != "prints" or ended.message.endswith("the end")


async def test_two_rollouts_draw_other_numbers_and_the_same_rollout_the_same() -> None:
    async with processes_of("draws") as processes:
        first, second, again = [await processes.run(OFFERED, {}, seed) for seed in (1, 2, 1)]
    assert first.value == again.value != second.value


def test_a_function_is_given_what_its_parameters_name() -> None:
    offered = {**OFFERED, "row": {"question": "12+34", "answer": "46"}}
    row = offered["row"]
    assert _arguments(lambda row: 0, offered) == {"row": row}
    assert _arguments(lambda problem: 0, offered) == {"problem": row}
    assert _arguments(lambda question, model="x", other=1: 0, offered) == {"question": "12+34", "model": "student"}
    assert _arguments(lambda task, *, base_url, **more: 0, offered) == {"task": row, "base_url": "http://here/v1"}
    assert _arguments(lambda: 0, offered) == {}
    for function in (lambda row, another: 0, lambda one, two: 0, lambda row, /: 0):
        with pytest.raises(TypeError, match="the columns of the row: question, answer"):
            _arguments(function, offered)


@pytest.mark.parametrize("returns", [False, True])
async def test_a_call_that_ends_leaves_nothing_behind_that_it_started(returns) -> None:
    mark = uuid4().hex
    async with processes_of("hangs_with_children") as processes:
        call = asyncio.create_task(processes.run({**OFFERED, "row": {"mark": mark, "returns": returns}}, {}, 0))
        if not returns:
            await until(lambda: len(marked(mark)) == 2)
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: not marked(mark))


LEAVING = ["leaves_a_session_and_crashes", "leaves_a_daemon", "leaves_a_daemon_and_crashes", "kills_its_parent"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose child an orphan was")
@pytest.mark.parametrize("do", LEAVING)
async def test_what_left_its_parent_and_its_group_ends_with_its_rollout(do) -> None:
    mark = uuid4().hex
    async with processes_of("any_of_these") as processes:
        other = asyncio.create_task(processes.run({**OFFERED, "row": {"do": "hangs"}}, {}, 0))
        ended = await processes.run({**OFFERED, "row": {"do": do, "mark": mark}}, {}, 0)
        assert ended.kind == ("returned" if do == "leaves_a_daemon" else "exited")
        await until(lambda: not marked(mark))
        await asyncio.sleep(0)  # both ended in the same moment
        assert other.done() == (do == "kills_its_parent")
        again = await processes.run({**OFFERED, "row": {"do": "reward", "reward": 1}}, {}, 0)
        assert again.kind == "returned"
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says with which environment a process began")
async def test_a_process_that_is_just_becoming_another_program_is_looked_at_again(monkeypatch) -> None:
    """Its environment is empty for a moment."""
    child = await asyncio.create_subprocess_exec("sleep", "600", env={**os.environ, agent_processes.VARIABLE: "x1"})
    looks = 0

    def read_bytes(path: Path) -> bytes:
        nonlocal looks
        if path == Path(f"/proc/{child.pid}/environ"):
            looks += 1
            if looks <= 5:
                return b""
        return path.open("rb").read()

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    await agent_processes._end_started_by("x1")
    assert (await child.wait(), looks >= 6) == (-signal.SIGKILL, True)


async def test_what_the_module_started_as_it_was_imported_lives_as_long_as_the_worker(tmp_path, monkeypatch) -> None:
    mark = uuid4().hex
    (tmp_path / "with_a_helper.py").write_text(
        "import subprocess, sys\n"
        f"helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', '{mark}'])\n"
        "def run(row):\n    return 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    processes = AgentProcesses("with_a_helper:run")
    for _ in range(2):
        assert (await processes.run(OFFERED, {}, 0)).kind == "returned"
    assert len(marked(mark)) == 1
    server = processes._server
    await processes.close()
    assert server.returncode == 0, "it ended by itself"
    assert not marked(mark)


WRITTEN = [
    '{"returned": {"reward": 99.0}}\n{"',
    "noise",
    "[" * 5000,
    '{"returned": 5}\n',
    '{"id": 1, "raised": ""}\n',
]


async def test_a_function_that_forks_or_writes_where_it_should_not_costs_itself_alone() -> None:
    async with processes_of("any_of_these") as processes:
        other = asyncio.create_task(processes.run({**OFFERED, "row": {"do": "hangs"}}, {}, 0))
        twice = await processes.run({**OFFERED, "row": {"do": "returns_twice"}}, {}, 0)
        assert (twice.kind, twice.value) == ("returned", {"reward": 1.0})
        for written in WRITTEN:
            row = {"do": "writes_to_descriptors", "written": written}
            ended = await processes.run({**OFFERED, "row": row}, {}, 0)
            assert ended.kind == "exited", written
            assert "expected one line of its own" in ended.message
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


async def test_one_that_hangs_does_not_hold_up_many_others() -> None:
    async with processes_of("reward") as good, processes_of("hangs") as bad:
        hanging = asyncio.create_task(bad.run(OFFERED, {}, 0))
        ended = await asyncio.gather(*(good.run({**OFFERED, "row": {"reward": i}}, {}, i) for i in range(40)))
        assert [each.value["reward"] for each in ended] == list(range(40))
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_a_server_that_is_killed_costs_its_rollouts_and_the_next_one_is_started() -> None:
    async with processes_of("hangs") as processes:
        call = asyncio.create_task(processes.run(OFFERED, {}, 0))
        server = psutil.Process(processes._server.pid)
        await until(server.children)
        child = server.children()[0]
        os.kill(server.pid, signal.SIGKILL)
        ended = await call
        assert ended.kind == "exited"
        assert "SIGKILL" in ended.message or "-9" in ended.message
        child.wait(10)
        again = asyncio.create_task(processes.run(OFFERED, {}, 0))
        await until(lambda: processes._server.pid != server.pid and psutil.Process(processes._server.pid).children())
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_nothing_outlives_the_close() -> None:
    async with processes_of("hangs") as processes:
        call = asyncio.create_task(processes.run(OFFERED, {}, 0))
        server = psutil.Process(processes._server.pid)
        await until(server.children)
        child = server.children()[0]
    assert (await call).kind == "exited"
    child.wait(10)


@pytest.mark.parametrize(
    ("function", "python", "words"),
    [
        ("no_such_module:run", None, "No module named 'no_such_module'"),
        (f"{MODULE}:no_such_name", None, "has no 'no_such_name'"),
        (f"{MODULE}:time", None, "expected a function"),
        ("run", None, "package.module:name"),
        (f"{MODULE}:reward", "/no/such/python", "task.interpreter"),
    ],
)
async def test_an_agent_that_cannot_be_found_is_named_before_anything_runs(function, python, words) -> None:
    processes = AgentProcesses(function, **({"python": python} if python else {}))
    with pytest.raises(RecipeError, match="(?s)" + words):
        await processes.start()
