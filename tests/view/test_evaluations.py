"""The answers of evaluations: a list of each file, one answer in full, and files that are damaged or large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RunError
from limbeck.view import evaluations
from limbeck.view.evaluations import HEAD, TAIL, Evaluations, _read_line
from limbeck.view.rollouts import last_question

from . import made


def _written(folder: Path, step: int, lines: list[Any]) -> Evaluations:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / f"step-{step:06d}.jsonl").write_bytes(b"".join(text + b"\n" for text in texts))
    return Evaluations(folder)


def test_a_list_and_one_answer_in_full(tmp_path: Path) -> None:
    long = "so " * 1000 + "the answer is 4"
    turns = [{"role": "student", "text": "add(2, 2)"}, {"role": "tool", "text": "4"}]
    lines = [made.answer("a", response=long), made.answer("b", set="hard", turns=turns, reward=None)]
    found = _written(tmp_path, 50, lines)
    _written(tmp_path, 0, lines[:1])
    assert found.steps() == [0, 50]
    one, other = found.answers(50)["rows"]
    assert (one["number"], one["prompt_id"], one["set"], one["reward"]) == (0, "a", "", 1.0)
    assert (other["number"], other["set"], other["reward"]) == (1, "hard", None)
    assert one["response"].startswith("so so")
    assert one["response"].endswith("answer is 4")
    assert len(one["response"]) <= HEAD + TAIL + 3
    assert "turns" not in other
    assert other["response"] == "add(2, 2) → 4"
    assert found.answer(50, 0)["response"] == long
    assert found.answer(50, 1)["turns"] == turns
    assert found.answers(0)["rows"][0]["same"] == one["same"] != other["same"]
    for step, number in ((7, 0), (50, 2)):
        with pytest.raises(RunError, match="Reload the page"):
            found.answer(step, number)


def test_files_of_older_versions_say_less(tmp_path: Path) -> None:
    chat = "system: Be brief.\nuser: What is 2+2?"
    line = {"prompt_id": "a", "prompt": chat, "response": "4", "reward": 1.0, "tokens": 2, "finish": "stop"}
    rows = _written(tmp_path, 0, [line, {**line, "set": "hot"}, line, {**line, "prompt": "2+2="}]).answers(0)["rows"]
    assert [row["sample"] for row in rows] == [0, 0, 1, 2]
    assert [row["question"] for row in rows] == ["What is 2+2?"] * 3 + ["2+2="]


def test_search_looks_at_whole_texts(tmp_path: Path) -> None:
    lines = [made.answer("a"), made.answer("b", response="x" * 2000 + "NEEDLE" + "x" * 2000)]
    found = _written(tmp_path, 5, [lines[0], b"{broken", lines[1]])
    assert found.search(5, "needle") == [1]
    assert found.search(5, "") == [0, 1]


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    found = _written(tmp_path, 5, [made.answer("a")])
    assert len(found.answers(5)["rows"]) == 1
    _written(tmp_path, 5, [made.answer("a"), made.answer("b")])
    assert len(found.answers(5)["rows"]) == 2
    (tmp_path / "step-000005.jsonl").unlink()
    with pytest.raises(RunError, match="no answers of an evaluation at step 5"):
        found.answers(5)
    assert Evaluations(tmp_path / "nothing").steps() == []


BROKEN = {
    "no JSON": b'{"prompt_id": "a", ',
    "nested": b'{"prompt_id": ' + b"[" * 100_000,
    "a list": b"[]",
    "no response": b'{"prompt_id": "a"}',
    "another type": b'{"prompt_id": 3, "response": "x"}',
    "no text": b'{"prompt_id": "a", "response": "\xff"}',
    "a huge number": b'{"prompt_id": "a", "response": "b", "tokens": 1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_line_costs_itself(tmp_path: Path, name: str) -> None:
    found = _written(tmp_path, 3, [made.answer("a"), BROKEN[name], made.answer("b")]).answers(3)
    assert [row["prompt_id"] for row in found["rows"]] == ["a", "b"]
    assert "evaluations/step-000003.jsonl: skipped line 2 (" in found["problems"][0]


def test_values_of_other_types_are_left_out(tmp_path: Path) -> None:
    odd = {"prompt": 3, "question": [], "answer": 4, "sample": -1, "segment": "x", "turns": [1, {"role": 2}]}
    line = made.answer("a") | odd | {"reward": True, "tokens": 1.5, "finish": None, "set": {}}
    row = _written(tmp_path, 3, [line]).answer(3, 0)
    assert (row["prompt"], row["answer"], row["segment"], row["reward"], row["tokens"]) == ("", None, 0, None, None)
    assert row["turns"] == [{"role": "", "text": ""}]
    not_finite = b'{"prompt_id": "a", "response": "b", "reward": NaN}'
    assert _written(tmp_path, 4, [not_finite]).answers(4)["rows"][0]["reward"] is None


def test_a_long_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "MAX_ANSWERS", 3)
    monkeypatch.setattr(evaluations, "MAX_LINE", 1000)
    lines = [made.answer("a"), made.answer("b", response="x" * 5000), *(made.answer(str(n)) for n in range(5))]
    found = _written(tmp_path, 1, lines)
    answers = found.answers(1)
    assert [row["prompt_id"] for row in answers["rows"]] == ["a", "0", "1"]
    assert "only its first 3 answers are shown" in answers["problems"][0]
    assert "line 2 (over 1,000 bytes)" in answers["problems"][1]
    assert found.answer(1, 2)["prompt_id"] == "1", "offsets count the long line"
    monkeypatch.setattr(evaluations, "KEPT_FILES", 2)
    for step in range(2, 7):
        _written(tmp_path, step, lines)
        found.answers(step)
    assert len(found._files) == 2


KEYS = st.sampled_from(["prompt_id", "response", "reward", "turns", "role", "sample"]) | st.text()
LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text()
ANY = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@given(
    ANY | st.fixed_dictionaries({"prompt_id": st.text(), "response": st.text()}, optional={"turns": ANY, "reward": ANY})
)
def test_whatever_a_line_holds_can_be_shown(value: Any) -> None:
    row, fault = _read_line(json.dumps(value).encode())
    assert (row is None) == bool(fault)
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("2+2=", "2+2="),
        ("", ""),
        ("user: a\nb", "a\nb"),
        ("user: a\nassistant: b\nuser: c\nd\nassistant: e", "c\nd"),
        ("system: a", "system: a"),
        ("Who said\nuser: this?", "Who said\nuser: this?"),
    ],
)
def test_the_last_user_turn(prompt: str, question: str) -> None:
    assert last_question(prompt) == question
