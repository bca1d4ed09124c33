"""Every causal language model of the installed transformers, tiny and random, through Limbeck: what becomes of each.

    measure("qwen3")  ->  Verdict("qwen3", "Qwen3ForCausalLM", update="fused", decoding="fused")

A model is right where sampler, learner and teacher give each response the log-probs that transformers gives it alone,
or where it is refused by a message that says why. `page` writes what was found for people to read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from limbeck.config.base import ModelConfig
from limbeck.errors import LimbeckError
from limbeck.models.loading import load_model
from limbeck.records import Sampling
from tests import tiny
from tests.models import three_ways, tiny_configs

TOLERANCE = 1e-3  # nats
TEMPERATURE = 0.7
NEW_TOKENS = 24
PROMPTS = (2, 5, 19, 40)  # tokens; the responses to the last end at the end of the context of 64
STOPS = tuple(range(1, 9))  # so that some responses end early
HEAD = """# Architectures

<!-- Written by scripts/make_architectures.py; a slow test checks that it is up to date. -->

Every causal language model that transformers {version} can configure, as a tiny random model with a context of
{context} tokens and sliding windows of {window}. Responses to prompts of {prompts} tokens are sampled together at
T = {temperature}. The log-probs of their tokens by the sampler, by the learner and by a local teacher are compared with
those of transformers' own forward pass over each response alone, in eager attention. Equal: within {tolerance} nats at
every token, up to the end of the context. A name with a `+` is a variant of a configuration.

- *update*: how learner and teacher compute whole sequences. *fused*: Limbeck's own forward pass over a prefix tree, in
  which the samples of a prompt share it; *tree*: transformers' forward pass over such a tree; *transformers*: in rows.
- *decoding*: how the sampler computes the next token. *fused*: Limbeck's own; *transformers*: its forward pass with a
  key-value cache.
"""


@dataclass(frozen=True)
class Verdict:
    """How one model is run, or why it is refused, or what is wrong with it."""

    name: str
    architecture: str
    update: str = ""  # "fused", "tree" or "transformers"; empty where refused
    decoding: str = ""  # "fused" or "transformers"
    refused: str = ""  # the message
    wrong: str = ""  # a fault of Limbeck's


def measure(name: str) -> Verdict:
    """Build, save, load and run one model. Raises what `tiny_configs` raises: that is a fault of this sweep."""
    architecture = tiny_configs.class_of(name)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_configs.build(name, Path(folder))
        tiny.character_tokenizer().save_pretrained(folder)
        try:
            update, decoding, worst = _run(folder, model)
        except LimbeckError as error:
            return Verdict(name, architecture, refused=str(error).replace(folder, "MODEL"))
        except Exception as error:  # a traceback for a user
            return Verdict(name, architecture, wrong=" ".join(f"{type(error).__name__}: {error}".split()))
    off = {way: value for way, value in worst.items() if not value <= TOLERANCE}
    wrong = ", ".join(f"{way} {value:.3g} nats off" for way, value in off.items())
    return Verdict(name, architecture, update, decoding, wrong=wrong)


def _run(folder: str, model: PreTrainedModel | None) -> tuple[str, str, dict[str, float]]:
    """How the model is run, and the largest difference in nats of each of the three ways."""
    lm = load_model(ModelConfig(model=folder), torch.device("cpu"))
    assert model is not None, "a model that transformers cannot build was loaded"
    room = (lm.context or tiny_configs.CONTEXT) - NEW_TOKENS
    prompts = tiny.prompts(*(min(length, room) for length in PROMPTS))
    sampling = Sampling(TEMPERATURE, NEW_TOKENS, STOPS, seed=1)
    teacher = three_ways.taught(lm)
    rollouts, plain = three_ways.sampled(lm, prompts, sampling, samples=2)
    students, teachers, kl, tree = three_ways.learned(lm, teacher, rollouts)
    expected = three_ways.alone(model, rollouts, lm.vocabulary)
    worst = {
        "sampler": _worst([rollout.logprobs for rollout in rollouts], expected),
        "learner": _worst(students, expected),
        "teacher": _worst(teachers, expected),
        "KL of a model and itself": abs(kl),
    }
    update = "fused" if lm.passes is not None else "tree" if tree else "transformers"
    return update, "transformers" if plain else "fused", worst


def _worst(ours: three_ways.Logprobs, theirs: three_ways.Logprobs) -> float:
    """Largest difference at any token; NaN where one is not a number."""
    return float(np.max([np.abs(one - other).max() for one, other in zip(ours, theirs, strict=True)]))


def page(verdicts: Sequence[Verdict]) -> str:
    """docs/reference/architectures.md. Names and verdicts, no measured numbers: machines differ in those."""
    head = HEAD.format(
        version=transformers.__version__, context=tiny_configs.CONTEXT, window=tiny_configs.WINDOW,
        prompts=", ".join(map(str, PROMPTS[:-1])) + f" and {PROMPTS[-1]}", temperature=TEMPERATURE, tolerance=TOLERANCE,
    )  # fmt: skip
    return head + "".join(_tables(sorted(verdicts, key=lambda verdict: verdict.name)))


def _tables(verdicts: Sequence[Verdict]) -> Iterator[str]:
    equal = [verdict for verdict in verdicts if not verdict.refused and not verdict.wrong]
    yield f"\n## Equal: {len(equal)}\n\n| architecture | model type | update | decoding |\n|---|---|---|---|\n"
    yield from (f"| {v.architecture} | `{v.name}` | {v.update} | {v.decoding} |\n" for v in equal)
    refused = [verdict for verdict in verdicts if verdict.refused]
    yield f"\n## Refused: {len(refused)}\n\n| architecture | model type | with these words |\n|---|---|---|\n"
    yield from (f"| {v.architecture} | `{v.name}` | {_words(v)} |\n" for v in refused)
    if wrong := [verdict for verdict in verdicts if verdict.wrong]:
        yield f"\n## Wrong: {len(wrong)}\n\n| architecture | model type |\n|---|---|\n"
        yield from (f"| {v.architecture} | `{v.name}` |\n" for v in wrong)


def _words(verdict: Verdict) -> str:
    words = verdict.refused.removeprefix("MODEL: ").removeprefix(f"{verdict.architecture} ")
    words = re.sub(r"(by|are) [\d.]+(e[+-]?\d+)? nats", r"\1 ... nats", words)
    return words.replace("|", "\\|").replace("<", "\\<")
