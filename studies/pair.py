"""The pair that the studies of Limbeck itself distil: two tiny models of a cipher, made in a minute.

    prompt    385920=
    response  612437          each digit x written as (3x + 7) mod 10

The demo's teacher is sure of almost every token, so it says the same at every temperature. This one has learned from
responses in which one digit in ten is replaced by a random one, and so is less sure, as a language model is: 0.43 nats
a token at T = 1. The student has seen three digits in ten replaced, and for the digits 0, 1 and 2 nothing else.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from limbeck.config.factory import Build
from limbeck.records import Prompt

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from make_demo_models import character_tokenizer, small_llama

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 6
HELD_OUT = "held out"  # what a held-out prompt has as its teacher
PAIR: dict[str, Any] = {
    "teacher": {"hidden_size": 64, "replaced": [0.1] * 10, "steps": 700, "seed": 1},
    "student": {"hidden_size": 48, "replaced": [1.0, 1.0, 1.0, *[0.3] * 7], "steps": 700, "seed": 2},
    "lr": 3e-3,
    "rows": 64,
}
QUICK_PAIR = {**PAIR, "teacher": {**PAIR["teacher"], "steps": 2}, "student": {**PAIR["student"], "steps": 2}}


class Cipher:
    """A task: `train` and `held_out` are different numbers, drawn by the seed. Held-out prompts name their teacher."""

    def __init__(self, build: Build, train: int, held_out: int) -> None:
        numbers = random.Random(build.seed).sample(range(10**DIGITS), train + held_out)
        prompts = [_prompt(f"{number:0{DIGITS}d}", build) for number in numbers]
        self.train = prompts[held_out:]
        self.held_out = [replace(prompt, teacher=HELD_OUT) for prompt in prompts[:held_out]]

    def grade(self, prompt: Prompt, response: str) -> float:
        return float(response == prompt.answer)


def _prompt(number: str, build: Build) -> Prompt:
    text, answer = f"{number}=", "".join(str((3 * int(digit) + 7) % 10) for digit in number)
    return Prompt(f"cipher-{number}", tuple(build.tokenizer(text).input_ids), "cipher", text, answer=answer)


def make_pair(setting: Mapping[str, Any], folder: Path) -> None:
    """Both model folders, `folder/teacher` and `folder/student`, unless they are there."""
    for which in ("teacher", "student"):
        if not (folder / which).exists():
            _pretrain(setting["pair"], which, folder / which)


def _pretrain(pair: Mapping[str, Any], which: str, folder: Path) -> None:
    """Plain supervised training on fresh random numbers; the loss is on the response only."""
    import torch

    logging.disable_progress_bar()
    section = pair[which]
    torch.manual_seed(section["seed"])
    torch.set_num_threads(1)
    tokenizer, generator = character_tokenizer(), torch.Generator().manual_seed(section["seed"])
    width = section["hidden_size"]
    model = small_llama(
        tokenizer, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2, num_attention_heads=2
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=pair["lr"], betas=(0.9, 0.98))
    digits = torch.tensor(tokenizer("0123456789").input_ids)
    for step in range(section["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = pair["lr"] * min(1, (step + 1) / 50) * (1 - step / section["steps"])
        numbers, answers = _texts(pair["rows"], torch.tensor(section["replaced"]), generator)
        rows = torch.ones(pair["rows"], 1, dtype=torch.long)
        equals, end = tokenizer("=").input_ids[0] * rows, tokenizer.eos_token_id * rows
        ids = torch.cat([digits[numbers], equals, digits[answers], end], dim=1)
        logits = model(ids).logits[:, DIGITS:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, DIGITS + 1 :].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _texts(rows: int, replaced: Tensor, generator: Any) -> tuple[Tensor, Tensor]:
    """Numbers and answers, both [rows, DIGITS]; each digit of an answer is random with the probability of its digit."""
    import torch

    shape = (rows, DIGITS)
    numbers = torch.randint(10, shape, generator=generator)
    at_random = torch.rand(shape, generator=generator) < replaced[numbers]
    return numbers, torch.where(at_random, torch.randint(10, shape, generator=generator), (3 * numbers + 7) % 10)


def sharpened(folder: Path, source: Path, by: float) -> str:
    """A model folder whose logits are `by` times those of `source`: its final norm is scaled."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(by)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def recipe(setting: Mapping[str, Any], seed: int, scratch: Path, temperature: float) -> dict[str, Any]:
    """Of one run in `scratch`, whose study's folder has the pair. Its evaluations are all that is kept."""
    folder = scratch.parents[1]
    trained = setting["steps"] * setting["prompts_per_step"]
    return {
        "name": "run",
        "output": str(scratch),
        "seed": seed,
        "steps": setting["steps"],
        "threads": 1,
        "student": {"model": str(folder / "student")},
        "teacher": {"model": str(folder / "teacher")},
        "task": {"kind": "python", "factory": "pair:Cipher", "train": trained, "held_out": setting["eval_prompts"]},
        "rollout": {
            "temperature": temperature, "max_tokens": DIGITS + 2, "prompts_per_step": setting["prompts_per_step"],
        },
        "learner": {"lr": setting["lr"], "warmup_steps": setting["warmup_steps"]},
        "eval": {"every": setting["evaluate_every"], "prompts": setting["eval_prompts"]},
        "record": {"every": 0},
    }  # fmt: skip
