"""Rows of additions, and tasks made of them."""

from __future__ import annotations

from limbeck.config.factory import Build
from limbeck.config.task import DatasetTaskConfig, FileTaskConfig
from limbeck.tasks import load_task


def build(tokenizer, seed=0):
    return Build(recipe=None, info=None, tokenizer=tokenizer, device="cpu", seed=seed, folder=None)


def sums(count, start=0, **more):
    return [{"prompt": f"{n}+1=", "answer": n + 1, **more} for n in range(start, start + count)]


def load(path, tokenizer, longest_prompt=None, seed=0, **keys):
    keys.setdefault("held_out", 1)
    return load_task(FileTaskConfig(path=path, **keys), build(tokenizer, seed), longest_prompt)


def everything(task):
    return sorted([*task.train, *task.held_out], key=lambda prompt: prompt.id)


def load_dataset_task(tokenizer, name, **keys):
    keys.setdefault("held_out", 1)
    return load_task(DatasetTaskConfig(name=str(name), **keys), build(tokenizer), None)
