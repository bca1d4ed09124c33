"""Environments of `verifiers`, with its own harness and both of its clients, against the gateway.

python -m venv /tmp/verifiers && /tmp/verifiers/bin/pip install verifiers==0.4.0 uv
LIMBECK_VERIFIERS_PYTHON=/tmp/verifiers/bin/python pytest tests/agents/test_verifiers.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limbeck.environments.agent import AgentEnvironment
from limbeck.environments.agent_processes import AgentProcesses
from limbeck.gateway import Gateway
from limbeck.records import Episode, Key, Prompt
from tests.gateway.students import TEMPLATES, Student, check_exact, tokenizer_of

PYTHON = os.environ.get("LIMBECK_VERIFIERS_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="name an interpreter with verifiers in LIMBECK_VERIFIERS_PYTHON")
PACKAGES = Path(__file__).parent / "packages"


@pytest.mark.parametrize("token_ids", [False, True])
async def test_an_episode_of_verifiers_is_a_rollout(token_ids, tmp_path, monkeypatch) -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(PYTHON).parent}:{os.environ['PATH']}")  # its harness starts uv
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    row = {"taskset": "sums_v1", "index": 2, **({"tokenizer": str(tmp_path)} if token_ids else {})}
    student = Student(tokenizer, tokenizer.convert_tokens_to_ids(TEMPLATES["chatml"][1]), lambda turn: "36")
    processes = AgentProcesses("examples.verifiers_agent:run", PYTHON)
    environment = AgentEnvironment(Gateway(tokenizer), processes, "student", lambda p: p.metadata, lambda *_: None)
    try:
        await environment.start()
        generate = student.session()
        episode = await environment.run(Prompt("p", (1, 2), metadata=row), Key("p"), generate)
    finally:
        await environment.close()
    assert isinstance(episode, Episode), episode
    assert episode.reward == 1
    check_exact(student, episode)
