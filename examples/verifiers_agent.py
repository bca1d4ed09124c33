"""Environments of `verifiers` 0.4 as agents: one episode a rollout, its reward the rollout's.

    [task]
    kind = "agent"
    function = "examples.verifiers_agent:run"
    interpreter = "/path/to/venv/bin/python"       # where verifiers and the environment are installed
    path = "rows.jsonl"                            # {"taskset": "gsm8k-v1", "index": 0}

A row names an installed taskset and the number of a task; `harness` and `config` (all else that the environment takes)
may follow. With `tokenizer`, the folder or hub name of the student, the train client asks: token ids in and out.
"""

from __future__ import annotations

import itertools
from functools import cache

import verifiers.v1 as vf
from verifiers.v1.utils.loaders import load_environment, resolve_env_config


async def run(row, base_url, model):
    environment = environment_of(row["taskset"], row.get("harness", "null"), str(row.get("config", {})))
    task = next(itertools.islice(iter(environment.taskset), row["index"], None))
    endpoint = {"base_url": base_url, "api_key_var": "OPENAI_API_KEY"}
    if "tokenizer" in row:
        client = vf.TrainClientConfig(**endpoint, renderer_model_name=row["tokenizer"])
    else:
        client = vf.EvalClientConfig(**endpoint)
    async with environment.serving():
        episode = await environment.run_episode(task, vf.ModelContext(model, client))
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        raise RuntimeError("; ".join(f"{error.type}: {error.message}" for error in errors) or "the episode failed")
    return sum(trace.reward for trace in episode.traces)


@cache
def environment_of(taskset: str, harness: str, config: str):
    import ast

    agent = {"harness": {"id": harness}, "runtime": {"type": "subprocess"}}
    return load_environment(
        resolve_env_config({"taskset": {"id": taskset}, "agent": agent, **ast.literal_eval(config)})
    )
