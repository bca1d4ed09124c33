"""Columns inside columns: tables, lists, JSON text, and what leads nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import DataError
from limbeck.tasks.paths import column_of, value_at

from .helpers import everything, load

KEYS = st.text("ab_ é", min_size=1, max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("a1é")


NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=6)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, NESTED, min_size=1), st.data())
def test_a_path_leads_to_the_part_it_names_through_json_text_at_any_depth(values: dict[str, Any], data: Any) -> None:
    """Walk down at random; at each table or list the rest may be JSON text instead."""

    def walk(value: Any) -> tuple[Any, list[str], Any]:
        if not isinstance(value, dict | list) or not value or data.draw(st.booleans()):
            return value, [], value
        step = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        part, path, found = walk(value[step])
        changed = {**value, step: part} if isinstance(value, dict) else [*value[:step], part, *value[step + 1 :]]
        return (json.dumps(changed) if data.draw(st.booleans()) else changed), [str(step), *path], found

    column = data.draw(st.sampled_from(sorted(values)))
    part, path, found = walk(values[column])
    row = {**values, column: part}
    assert value_at(row, ".".join([column, *path])) == found or not path
    assert column_of(row, ".".join([column, *path])) == column


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.b", 1), ("a.c.0", "x"), ("a.c[1].d", "y"), ("a.c.-1.d", "y"), ("a.c.7", None), ("a.z", None),
        ("z.y.x", None), ("null.b", None), ("x.y", "literal"), ("text.n", 1.5),
    ],
)  # fmt: skip
def test_paths(path: str, expected: Any) -> None:
    row = {"a": {"b": 1, "c": ["x", {"d": "y"}]}, "null": None, "x.y": "literal", "x": {"y": 0}, "text": '{"n": 1.50}'}
    assert value_at(row, path) == expected
    assert value_at(row, "text.n", spelled=True) == "1.50"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.b.c", r"'a\.b' is 1 \(int\), which has no 'c'"),
        ("a.c.d", r"'a\.c' is \['x'\] \(list\), which has no 'd'"),
        ("text.b", r"'text' is 'hello', and 'text\.b' leads into it: it is not JSON"),
        ("number.b", r"'number' is '7', .*expected the JSON of a table or a list"),
        ("deep.b", r"it is not JSON"),
    ],
)
def test_a_path_through_what_has_no_parts_is_named(path: str, message: str) -> None:
    row = {"a": {"b": 1, "c": ["x"]}, "text": "hello", "number": "7", "deep": "[" * 100_000}
    with pytest.raises(DataError, match=message):
        value_at(row, path)


def test_numbers_inside_columns_keep_the_text_of_a_json_file(write, chat) -> None:
    rows = [
        '{"prompt": "a", "m": {"n": [7.50]}}',
        r'{"prompt": "b", "m": "{\"n\": [1e-05]}"}',
        '{"prompt": "c", "m": null}',
    ]
    task = load(write(*rows), chat, columns={"answer": "m.n.0"})
    assert [prompt.answer for prompt in everything(task)] == ["7.50", "1e-05", None]


def test_numbers_inside_columns_of_parquet_become_the_shortest_exact_text(tmp_path, chat) -> None:
    import pyarrow
    from pyarrow import parquet

    inner = pyarrow.struct([("n", pyarrow.list_(pyarrow.float32())), ("whole", pyarrow.float64())])
    values = [{"n": [0.1], "whole": 72.0}, None, {"n": [1 / 3], "whole": None}]
    table = pyarrow.table({"prompt": list("abc"), "m": pyarrow.array(values, inner)})
    parquet.write_table(table, tmp_path / "made.parquet")
    for path, texts in (("m.n.0", ["0.1", None, "0.33333334"]), ("m.whole", ["72", None, None])):
        task = load(str(tmp_path / "made.parquet"), chat, columns={"answer": path})
        assert [prompt.answer for prompt in everything(task)] == texts
