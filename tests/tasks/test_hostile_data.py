"""Data sets that are damaged or hostile: one message that names file, line and limit, in little time and memory."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import DataError
from limbeck.tasks.numbers import UnreadableAnswer, last_number, read_answer
from limbeck.tasks.sources import MAX_ROW

from .helpers import load, load_dataset_task, sums

GOOD = json.dumps(sums(1)[0])


def refusal(path, tokenizer, **keys) -> str:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        load(str(path), tokenizer, **keys)
    assert time.monotonic() - started < 20
    assert len(str(caught.value)) < 600
    assert Path(str(path)).name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "' + b"a" * MAX_ROW + b'"}', f"line 2 is longer than {MAX_ROW:,} bytes"),
        (b"a" * MAX_ROW * 3, f"line 2 is longer than {MAX_ROW:,} bytes"),
        (b"[" * 10**6, "line 2 is not JSON that can be read: it is nested too deep"),
        (b'{"prompt": "a", "x": ' + b"[" * 500 + b"]" * 500 + b"}", "line 2: it is nested more than 100 deep"),
        (b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}", "line 2 is not JSON in UTF-8"),
        (b'{"prompt": "a", "id": ' + b"9" * 4000 + b"}", "'id' is an integer of 13288 bits"),
        (b'{"prompt": "a", "id": "' + b"i" * 4000 + b'"}', "'id' is 'iiii"),
        (b'{"prompt": "a", "answer": NaN}', "'answer' is nan"),
        (b'{"prompt": "a", "answer": 1e999}', "'answer' is inf"),
        (b'{"prompt": "a\\ud800"}', "lone surrogate"),
        (b'{"prompt": "a\xff"}', "line 2 is not JSON in UTF-8"),
        (b'{"prompt": ' + b"1" * 4000 + b"}", "'prompt' is an integer of"),
        (b"\0" * 10_000, "line 2 is not JSON in UTF-8"),
        (json.dumps({f"k{n}": n for n in range(50_000)}).encode(), "the columns are 'k0', .* 49,980 more"),
        (json.dumps({"messages": [{"role": "user", "content": ["x" * 10**6]}]}).encode(), r"content\[0\] is 'xx"),
        (json.dumps({"messages": [[]] * 10**5}).encode(), r"messages\[0\] is \[\]"),
        (json.dumps({"prompt": "a", "tools": "[" * 10**5}).encode(), "'tools' is text that is not JSON"),
    ],
    ids=[
        "a long text", "no end of a line", "nested", "nested a little", "digits", "an id of digits", "a long id", "NaN",
        "inf", "surrogate", "no UTF-8", "a huge prompt", "NUL", "columns", "content", "messages", "tools",
    ],
)  # fmt: skip
def test_a_hostile_line_is_refused_by_name(line: bytes, message: str, tmp_path, chat) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n")
    assert re.search(message, refusal(path, chat))


def test_a_number_of_many_digits_is_kept_as_it_is_written(write, chat) -> None:
    digits = "9" * 4000
    path = write(f'{{"prompt": "a", "answer": {digits}}}', f'{{"prompt": "b", "answer": {digits}}}')
    assert load(path, chat).train[0].answer == digits


def test_text_with_nul_is_text(write, chat) -> None:
    task = load(write({"prompt": "a\0b", "answer": "\0"}, {"prompt": "c\0"}), chat)
    assert {prompt.text for prompt in (*task.train, *task.held_out)} == {"a\0b", "c\0"}


def test_a_line_of_a_hundred_megabytes_takes_little_memory(tmp_path) -> None:
    path = tmp_path / "one.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "')
        for _ in range(200):
            file.write(b"a" * 10**6)
        file.write(b'"}\n')
    code = (
        "import resource\nfrom pathlib import Path\nfrom limbeck.tasks.sources import file_rows\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    list(file_rows(Path({str(path)!r}), 'a'))\nexcept ValueError as error:\n"
        "    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    message, megabytes = done.stdout.splitlines()
    assert f"line 1 is longer than {MAX_ROW:,} bytes" in message
    assert int(megabytes) < 50


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_cell_of_a_parquet_file_is_refused_by_name(nested: bool, tmp_path, chat) -> None:
    path, large = tmp_path / "sums.parquet", "a" * (MAX_ROW + 1)
    prompts = ["a", "b", large if not nested else "c"]
    more = {"extra": [[], [], ["b" * MAX_ROW, "c"]]} if nested else {}
    pq.write_table(pa.table({"prompt": prompts, **more}), path)
    assert f"row 2: it has more than {MAX_ROW:,} characters" in refusal(path, chat)


def test_a_cell_that_a_million_rows_share_is_not_unpacked_for_all(tmp_path, chat) -> None:
    path = tmp_path / "sums.parquet"
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 10**6, pa.int32()), pa.array(["a" * 10**7]))
    pq.write_table(pa.table({"prompt": shared}), path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "row 0: it has more than" in refusal(path, chat)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 1  # gigabytes; all would be 10,000


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b[:50] + b"\xff" * 40 + b[90:], lambda b: b"", lambda b: b"PAR1" * 9]
)
def test_a_damaged_parquet_file_is_refused_by_name(damage, tmp_path, chat) -> None:
    path = tmp_path / "sums.parquet"
    pq.write_table(pa.table({"prompt": ["ab" * 50, "c"], "answer": [1.0, 2.5]}), path, compression="snappy")
    path.write_bytes(damage(path.read_bytes()))
    refusal(path, chat)


def test_text_of_a_parquet_file_that_is_no_utf8_is_refused_by_name(tmp_path, chat) -> None:
    path = tmp_path / "sums.parquet"
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"a"]).buffers())
    pq.write_table(pa.table({"prompt": texts}), path)
    refusal(path, chat)


@pytest.mark.parametrize("cell", ["a" * (MAX_ROW + 1), "cut"])
def test_a_data_set_that_is_damaged_is_refused_by_name(cell: str, tmp_path, chat) -> None:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"prompt": ["a", cell, "b"]}).save_to_disk(str(folder))
    if cell == "cut":
        for file in folder.glob("*.arrow"):
            file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"saved"):
        load_dataset_task(chat, folder)


# Answers and responses that were made to be slow to read

PIECES = (
    "1", "1,", "1,111,", "(1", "[1,", "1/", "1^", "x", "x^{", "-", "- ", "$", "$1", "\\frac{", "\\frac1", "\\boxed{",
    " ", "\t", "1 ", "111 ", "1.", "..", "{", "}", "=", "is ", "minus ", "%", "\u00bd", "\u00b2", "*1*", "**",
    "{,}", "\\,", "answer", "answer:", "####", "sqrt(", "\\text{", "_", "a_", "1e9", "million ", "\\left", "\\times ",
    "\\boxed ", "\u2212", "\0",
)  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_reading_numbers_takes_time_in_proportion(piece: str) -> None:
    def seconds(length: int) -> float:
        text, started = piece * (length // len(piece)), time.process_time()
        last_number(text)
        with suppress(UnreadableAnswer):
            read_answer(text)
        return time.process_time() - started

    assert seconds(80_000) < 12 * max(seconds(20_000), 0.02)  # four times; sixteen times would be a square


def test_an_answer_is_no_essay() -> None:
    with pytest.raises(UnreadableAnswer, match="it has 10,001 characters"):
        read_answer("1" * 10_001)
    assert read_answer("a long solution " * 10_000 + "#### 7").value == 7
