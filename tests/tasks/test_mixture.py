"""Several tasks as one: shares that are exact by rule, ids that are told apart, graders of their own."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck.config.task import MixtureTaskConfig
from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks import load_task
from limbeck.tasks.mixture import Mixture, counts_before, turns
from limbeck.training.prompt_order import is_between_epochs, order_of

from .helpers import build, sums


class Numbers:
    """Prompts 0 to n; right is what the task says."""

    dropped = 1

    def __init__(self, count: int, right: str = "") -> None:
        prompts = [Prompt(str(i), (i + 1,), task="numbers") for i in range(count)]
        self.train, self.held_out, self.right = prompts[2:], prompts[:2], right

    def grade(self, prompt: Prompt, response: str) -> float:
        assert prompt.task == "numbers", "it sees the prompt that it made"
        return float(response == self.right)


WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1)


@given(WEIGHTS, st.integers(0, 400))
@example({"a": 23.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0, "f": 1.0}, 12)
def test_shares_are_kept_at_every_prompt_and_follow_from_its_number(weights: dict[str, float], position: int) -> None:
    total = sum(Fraction(str(weight)) for weight in weights.values())
    shares = {name: Fraction(str(weight)) / total for name, weight in weights.items()}
    drawn = list(islice(turns(shares), position + 20))
    counts = Counter(name for name, _ in drawn[:position])
    assert counts_before(shares, position) == {name: counts[name] for name in shares}
    assert list(islice(turns(shares, position), 20)) == drawn[position:], "a resumed run goes on where it was"
    # Counts are the rounded shares of one common number, which is at most half a prompt a task away from the position.
    bound = Fraction(len(shares), 2)
    assert all(abs(counts[name] - share * position) <= Fraction(1, 2) + share * bound for name, share in shares.items())
    for name in shares:
        assert [place for one, place in drawn if one == name] == list(range(sum(one == name for one, _ in drawn)))


def test_simple_shares_are_exact_in_every_step() -> None:
    shares = {"a": Fraction(3, 4), "b": Fraction(1, 4)}
    steps = [[name for name, _ in islice(turns(shares, 8 * step), 8)] for step in range(50)]
    assert all(Counter(step) == {"a": 6, "b": 2} for step in steps)


def mixture(**weights: float) -> Mixture:
    return Mixture({"b": Numbers(7, "b"), "a": Numbers(5, "a")}, weights or {"a": 1.0, "b": 1.0})


def test_prompts_have_ids_of_their_own_and_graded_by_their_own_task() -> None:
    mixed = mixture()
    assert [prompt.id for prompt in mixed.held_out] == ["a/0", "b/0", "a/1", "b/1"], "of all tasks, however few"
    assert len({prompt.id for prompt in (*mixed.train, *mixed.held_out)}) == 12
    assert {prompt.task for prompt in mixed.train} == {"a", "b"}
    for prompt in (*mixed.train, *mixed.held_out):
        assert mixed.grade(prompt, prompt.task) == 1.0
        assert mixed.grade(prompt, "neither") == 0.0
    assert mixed.dropped == 2


def test_each_task_has_its_own_epochs_in_its_own_order() -> None:
    mixed = mixture(a=1.0, b=2.0)
    order = order_of(mixed, 3, seed=4)
    steps = [order.at(step) for step in range(15)]
    assert all(Counter(prompt.task for prompt in step) == {"a": 1, "b": 2} for step in steps)
    of_b = [prompt.id for step in steps for prompt in step if prompt.task == "b"]
    epochs = [of_b[i : i + 5] for i in range(0, 30, 5)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [order_of(mixed, 3, seed=4).at(step) for step in (14, 3)] == [steps[14], steps[3]]
    assert [order_of(mixed, 3, seed=5).at(step) for step in range(15)] != steps
    other_order = Mixture({"a": Numbers(5, "a"), "b": Numbers(7, "b")}, {"b": 2.0, "a": 1.0})
    assert [order_of(other_order, 3, seed=4).at(step) for step in range(15)] == steps
    assert is_between_epochs(mixed, 0)
    assert not is_between_epochs(mixed, len(mixed.train))


def load(chat: Any, **keys: Any) -> Any:
    return load_task(MixtureTaskConfig(**keys), build(chat), None)


def test_a_mixture_is_loaded_from_its_tables_and_mistakes_say_where_they_are(write, chat) -> None:
    good = {"kind": "file", "path": write(*sums(4), name="good.jsonl"), "held_out": 1, "grader": {"kind": "numeric"}}
    task = load(chat, tasks={"sums": good, "more": {"kind": "arithmetic", "digits": 1, "train": 5, "held_out": 2}})
    assert {prompt.task for prompt in task.train} == {"sums", "more"}
    (one,) = [prompt for prompt in task.held_out if prompt.task == "sums"]
    assert task.grade(one, str(one.answer)) == 1.0
    bad = {"kind": "file", "path": write({"prompt": "a"}, {"no": 1}, name="bad.jsonl")}
    with pytest.raises(DataError, match=r"^task\.tasks\.bad: .*bad\.jsonl line 2: there is neither"):
        load(chat, tasks={"good": good, "bad": bad})


def test_weights_are_of_the_tasks() -> None:
    arithmetic = {"kind": "arithmetic"}
    with pytest.raises(ValueError, match="weights are of a, but the tasks are a, b"):
        MixtureTaskConfig(tasks={"a": arithmetic, "b": arithmetic}, weights={"a": 1})
