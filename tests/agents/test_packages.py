"""Agents of the field's packages, unchanged, against the gateway: every token that was sampled is trained, once.

The packages need not be in Limbeck's own environment. `openai` is; the others run where their interpreter is named:

    python -m venv /tmp/agents && /tmp/agents/bin/pip install openai-agents langgraph langchain-openai
    LIMBECK_AGENTS_PYTHON=/tmp/agents/bin/python pytest tests/agents
"""

from __future__ import annotations

import os
import sys

import pytest

from limbeck.environments.agent import AgentEnvironment
from limbeck.environments.agent_processes import AgentProcesses
from limbeck.gateway import Gateway
from limbeck.records import Episode, Key, Prompt
from tests.gateway.students import TEMPLATES, Student, check_exact, tokenizer_of

OTHER = os.environ.get("LIMBECK_AGENTS_PYTHON", "")
ELSEWHERE = pytest.mark.skipif(not OTHER, reason="name an interpreter with the packages in LIMBECK_AGENTS_PYTHON")
FUNCTIONS = [
    pytest.param("with_openai:run", sys.executable),
    pytest.param("with_openai:streamed", sys.executable),
    pytest.param("with_openai_agents:run", OTHER, marks=ELSEWHERE),
    pytest.param("with_langgraph:run", OTHER, marks=ELSEWHERE),
]
PROMPT = Prompt("p", (1, 2), metadata={"question": "What is 12+34?", "answer": "46"})


def says(turn: int) -> str:
    if turn == 0:
        return 'I add. <tool_call>\n{"name":  "add", "arguments": {"b": 34, "a": 12}}\n</tool_call>'
    return "46"


@pytest.mark.parametrize(("function", "interpreter"), FUNCTIONS)
async def test_an_unchanged_agent_with_a_tool(function: str, interpreter: str) -> None:
    tokenizer = tokenizer_of("chatml")
    student = Student(tokenizer, tokenizer.convert_tokens_to_ids(TEMPLATES["chatml"][1]), says)
    processes = AgentProcesses(f"tests.agents.packages.{function}", interpreter)
    environment = AgentEnvironment(Gateway(tokenizer), processes, "student", lambda p: p.metadata, lambda *_: None)
    try:
        await environment.start()
        generate = student.session()
        episode = await environment.run(PROMPT, Key("p"), generate)
    finally:
        await environment.close()
    assert isinstance(episode, Episode), episode
    assert episode.reward == 1
    assert len(episode.rollouts) == 1  # the second turn follows the exact tokens of the first
    check_exact(student, episode)
    assert "46" in tokenizer.decode(student.requests[-1].token_ids.tolist())  # what the tool said
