"""Data as TRL, verl and slime lay it out is read as it is; what says two things is refused."""

from __future__ import annotations

import json
import logging

import pytest

from limbeck.errors import DataError

from .conftest import character_tokenizer
from .helpers import everything, load, load_dataset_task

ASK = [{"role": "system", "content": "S"}, {"role": "user", "content": "1+1="}]
SAY = [{"role": "assistant", "content": "2"}]
SHOWN = "<system>S<user>1+1=<assistant>"
GRADE = {"kind": "numeric"}


def verl(index, truth="2", **more):
    return {
        "data_source": "openai/gsm8k", "prompt": ASK, "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "train", "index": index, "answer": "1+1=2", "question": "1+1="}, **more,
    }  # fmt: skip


def texts(task, tokenizer):
    return {tokenizer.decode(prompt.token_ids) for prompt in everything(task)}


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize(
    ("row", "said", "answer"),
    [
        ({"prompt": ASK}, None, None),
        ({"prompt": ASK, "completion": SAY}, "TRL prompts and completions", None),
        ({"messages": [*ASK, *SAY]}, "TRL conversations", None),
        ({"chosen": [*ASK, *SAY], "rejected": [*ASK, {"role": "assistant", "content": "3"}]}, "TRL preferences", None),
        ({"prompt": ASK, "completion": SAY, "label": True}, "TRL prompts and completions", None),
        (verl(7), "verl: answers are in reward_model.ground_truth", "2"),
        ({"prompt": ASK, "reward_model": '{"ground_truth": "2"}'}, "verl", "2"),
        ({"prompt": ASK, "label": "2", "metadata": {"rm_type": "math"}}, "slime: answers are in label", "2"),
        ({"prompt": ASK, "label": 2}, "slime", "2"),
        ({"messages": ASK, "label": "2"}, "slime", "2"),
        ({"prompt": ASK, "answer": "2", "label": "other"}, None, "2"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset"])
def test_layouts_are_recognised_and_named(row, said, answer, kind, write, tmp_path, chat, caplog) -> None:
    rows = [row, row, row]
    with caplog.at_level(logging.WARNING, "limbeck"):
        if kind == "jsonl":
            task = load(write(*rows), chat)
        elif kind == "parquet":
            task = load(write_parquet(tmp_path / "made.parquet", rows), chat)
        else:
            from datasets import Dataset

            Dataset.from_list(rows).save_to_disk(tmp_path / "made")
            task = load_dataset_task(chat, tmp_path / "made")
    assert texts(task, chat) == {SHOWN}
    assert {prompt.answer for prompt in everything(task)} == {answer}
    noted = [record.getMessage() for record in caplog.records if " is read as " in record.getMessage()]
    assert len(noted) == (said is not None)
    assert said is None or said in noted[0]


def test_answers_of_other_layouts_are_graded(write, tmp_path, chat) -> None:
    for path in (write(verl(0), verl(1)), write_parquet(tmp_path / "v.parquet", [verl(0), verl(1)])):
        task = load(path, chat, grader=GRADE)
        assert task.grade(task.train[0], "so 2") == 1.0
        assert task.train[0].metadata["data_source"] == "openai/gsm8k"


def test_the_index_of_verl_names_rows_where_it_can(write, chat, caplog) -> None:
    assert [p.id for p in everything(load(write(verl(7), verl(8)), chat))] == ["sums-7", "sums-8"]
    held_out = write(verl(7), name="test.jsonl")
    both = load(write(verl(7), verl("a-uuid")), chat, held_out_path=held_out)
    assert {p.id for p in everything(both)} == {"sums-7", "sums-a-uuid", "sums-held-out-7"}
    with caplog.at_level(logging.WARNING, "limbeck"):
        again = load(write(verl(7), verl(7)), chat)
    assert [p.id for p in everything(again)] == ["sums-000001", "sums-000002"]
    assert "extra_info.index names several rows, which are numbered" in caplog.text
    with pytest.raises(DataError, match=r"line 2: the id '7' is already that of"):
        load(write(verl(7), verl(7)), chat, columns={"id": "extra_info.index"})


def test_an_answer_that_is_a_table_or_list_is_for_graders_of_ones_own(write, chat) -> None:
    path = write(verl(0, {"target": ["2", "two"]}), verl(1, {"target": ["2"]}))
    assert json.loads(everything(load(path, chat))[0].answer) == {"target": ["2", "two"]}
    with pytest.raises(DataError, match=r"'reward_model.ground_truth' is .*Point task.columns.answer at a part"):
        load(path, chat, grader={"kind": "exact"})
    chosen = load(path, chat, grader={"kind": "exact"}, columns={"answer": "reward_model.ground_truth.target.0"})
    assert chosen.grade(chosen.train[0], "2") == 1.0
    with pytest.raises(DataError, match=r"reward_model\.ground_truth\.0 is the first of a list"):
        load(write(verl(0, ["2"])), chat, grader=GRADE)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([verl(0, label="3")], r"line 1: there are a 'reward_model.ground_truth'.* and a 'label'.*Set task"),
        ([verl(0), {"prompt": ASK, "label": "3"}], r"line 2: answers are in 'label', but in .*line 1"),
        ([{"prompt": ASK, "answer": "2"}, verl(0)], r"line 2: answers are in 'reward_model.*', but in .*line 1"),
        ([{"messages": ASK}, {"messages": [*ASK, *SAY]}], r"line 2: the messages end with one of the ass.*, but in"),
        ([{"messages": [*ASK, *SAY]}, {"messages": ASK}], r"line 2: the messages end with one to answer, but in"),
        ([{"messages": SAY}], r"'messages' is \[\]"),
        ([{"chosen": "1+1=2", "rejected": "1+1=3"}], r"there is neither a 'prompt' nor a 'messages'"),
        ([{"chosen": SAY, "rejected": SAY}], r"ends with an assistant message"),
        ([{"prompt": [*ASK, *SAY], "label": "2"}], r"ends with an assistant message"),
    ],
)  # fmt: skip
def test_rows_that_say_two_things_are_refused(rows, message, write, chat) -> None:
    with pytest.raises(DataError, match=message):
        load(write(*rows, {"prompt": ASK}), chat)


def test_the_recipe_decides_where_a_row_says_two_things(write, chat) -> None:
    both = verl(0, label="3", answer="4")
    for column, answer in (("reward_model.ground_truth", "2"), ("label", "3"), ("answer", "4")):
        assert (
            load(write(both, both | {"extra_info": None}), chat, columns={"answer": column}).train[0].answer == answer
        )


# Tools, in the places where others keep them

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": ASK, "label": "2", "tools": [TOOL]}, {}),
        ({"prompt": ASK, "label": "2", "tools": json.dumps([TOOL])}, {}),
        ({"prompt": ASK, "tools": [json.dumps(TOOL)]}, {}),
        ({"prompt": ASK, "label": "2", "metadata": {"tools": [TOOL]}}, {"tools": "metadata.tools"}),
        ({"prompt": ASK, "metadata": json.dumps({"tools": [TOOL]})}, {"tools": "metadata.tools"}),
    ],
)
def test_tools_are_shown_wherever_they_are_kept(row, columns, write) -> None:
    tokenizer = character_tokenizer(
        "{% for tool in tools or [] %}{{ tool | tojson }};{% endfor %}{% for m in messages %}{{ '<' + m.role + '>' }}"
        "{{ m.content }}{% endfor %}<assistant>"
    )
    assert texts(load(write(row, row), tokenizer, columns=columns), tokenizer) == {f"{json.dumps(TOOL)};{SHOWN}"}
