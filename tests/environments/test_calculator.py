"""The shipped agent: what a perfect student says earns 1, and whatever else it says ends the episode without harm."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.demo.calculator import Calculator, Problems, dialogue, question
from limbeck.environments.session import Session
from limbeck.models.loading import load_tokenizer
from limbeck.records import Episode, Key, Sampled, SampleRequest, Sampling

TOKENIZER = load_tokenizer("demo:student")
BUILD: Any = SimpleNamespace(tokenizer=TOKENIZER, seed=7)
PROBLEMS = Problems(BUILD, train=20, held_out=4)
EOS = TOKENIZER.eos_token_id


async def play(prompt: Any, says: list[str]) -> Episode:
    lines = iter(says)

    async def submit(request: SampleRequest) -> Sampled:
        ids = np.asarray([*TOKENIZER.encode(next(lines)), EOS], dtype=np.int64)
        return Sampled(ids, np.zeros(len(ids), np.float32), "stop", 0)

    session = Session(prompt, Key(prompt.id), Sampling(1.0, 24, (EOS,)), submit)
    episode = await Calculator(BUILD).run(prompt, Key(prompt.id), session)
    assert isinstance(episode, Episode)
    return episode


async def test_a_perfect_student_calls_twice_and_is_right() -> None:
    prompt = PROBLEMS.train[0]
    said = dialogue(prompt.text)
    episode = await play(prompt, said[::2])
    (rollout,) = episode.rollouts
    assert [turn.role for turn in rollout.turns] == ["user", "student", "tool", "student", "tool", "student"]
    shown = "".join(TOKENIZER.decode(i) for i in rollout.token_ids).replace("<eos>", "")
    assert shown == prompt.text + "".join(said)
    assert PROBLEMS.grade(prompt, TOKENIZER.decode(rollout.last_turn, skip_special_tokens=True)) == 1.0


@pytest.mark.parametrize("says", [["12"], ["calc(1+)"], ["calc(1/0)"], [""], ["calc(1+1) "], ["calc(1+1)", "no"]])
async def test_what_is_no_call_ends_the_episode(says: list[str]) -> None:
    prompt = PROBLEMS.train[1]
    episode = await play(prompt, says)
    last = TOKENIZER.decode(episode.rollouts[0].last_turn, skip_special_tokens=True)
    assert PROBLEMS.grade(prompt, last) == 0.0


async def test_a_student_that_only_calls_earns_nothing() -> None:
    episode = await play(PROBLEMS.train[2], ["calc(9*9)"] * 4)
    assert episode.reward == 0.0


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_problems_are_reckoned_from_left_to_right(seed: int, operands: int) -> None:
    text = question(random.Random(seed), operands)
    value = eval_left(text.rstrip("="))
    assert dialogue(text)[-1] == str(value)
    assert len(dialogue(text)) == 2 * operands - 1


def eval_left(text: str) -> int:
    value, sign, number = 0, "+", ""
    for character in text + "+":
        if character.isdigit():
            number += character
        else:
            value = {"+": value + int(number), "-": value - int(number), "*": value * int(number)}[sign]
            sign, number = character, ""
    return value


def test_train_and_held_out_are_disjoint_and_follow_from_the_seed() -> None:
    again = Problems(BUILD, train=20, held_out=4)
    assert [p.id for p in again.train] == [p.id for p in PROBLEMS.train]
    assert not {p.id for p in PROBLEMS.train} & {p.id for p in PROBLEMS.held_out}
