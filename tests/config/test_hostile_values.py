"""Every key of every table of a recipe, with values that are wrong: accepted for good, or refused in one message.

The tables are walked, so a key that is added is tested as it is added.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from limbeck.config.base import Config, configs_of, fields_of
from limbeck.config.environment import AgentEnvironmentConfig
from limbeck.config.recipe import Recipe, checked_again, load_recipe, parse_recipe
from limbeck.config.recipe_file import MAX_BYTES
from limbeck.config.sources import DatasetSourceConfig
from limbeck.config.task import AgentTaskConfig
from limbeck.config.teacher import DatasetTeacherConfig
from limbeck.config.values import LONGEST_TEXT
from limbeck.errors import RecipeError

MINIMAL = {"student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"}, "task": {"kind": "arithmetic"}}
NEEDED = {  # a good value of every key that has no default
    "model": "a", "url": "http://host:1", "factory": "a:b", "function": "a:b", "pattern": "(a)", "path": "a.jsonl",
    "name": "a", "weight": 1.0, "teachers": {"a": {"kind": "local", "model": "a"}},
    "prompt": "a", "completion": "b",
    "tasks": {"a": {"kind": "arithmetic"}},
}  # fmt: skip
HOSTILE: dict[str, Any] = {
    "twenty digits": 10**20, "a thousand digits": 10**1000, "negative": -1, "64 bits": 2**63, "-64 bits": -(2**63),
    "true": True, "NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "1e300": 1e300, "1e-320": 1e-320,
    "empty": "", "NUL": "a\0b", "escape": "\x1b[31m", "surrogate": "a\ud800", "line break": "a\nb", "long": "x" * 300,
    "very long": "x" * 10**6, "nested": [[[[1]]]], "very nested": None, "empty list": [], "a table": {"a": 1},
    "a long list": [1] * 20_000, "true in a list": [1, True], "NaN in a list": [float("nan"), 0.5], "ones": [1, 1],
    "negative in a list": [-1], "NUL in a list": ["a\0b"], "NUL in a key": {"a\0b": 1}, "..": "..", "../..": "../..",
    "a/b": "a/b", "null": None,
}  # fmt: skip
for _ in range(10_000):
    HOSTILE["very nested"] = [HOSTILE["very nested"]]


def tables(
    section: type[Config] = Recipe, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Config]]]:
    yield path, section
    for key, info in fields_of(section).items():
        for below in configs_of(info.annotation):
            yield from tables(below, (*path, key))


TABLES = list(tables())
FIRST = {cls: path for path, cls in reversed(TABLES)}  # of tables in several places
LEAVES = [
    (path, cls, key) for cls, path in FIRST.items() for key, f in fields_of(cls).items() if not configs_of(f.annotation)
]


def recipe_with(path: tuple[str, ...], section: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """A recipe that is good but for `values`, which are in the table at `path`."""
    table: dict[str, Any] = {
        k: NEEDED[k] for k, info in section.model_fields.items() if info.is_required() and k in NEEDED
    }
    for tag in ("kind", "divergence", "from"):
        if tag in fields_of(section):
            table[tag] = get_args(fields_of(section)[tag].annotation)[0]
    if section in (DatasetSourceConfig, AgentTaskConfig):
        table["path"] = "a.jsonl"
    if section is Recipe:
        table |= MINIMAL
    table |= values
    for place, key in reversed(list(enumerate(path))):
        above = next(cls for at, cls in TABLES if at == path[:place] and key in fields_of(cls))
        named = {name: {"a": table} for name in ("teachers", "tasks", "sets")}
        many = {"trackers": [table], "few_shot": [table], "sources": [table], **named}
        table = recipe_with((), above, {key: many.get(key, table)})
    return table


@pytest.mark.parametrize(("path", "section"), TABLES, ids=lambda x: ".".join(x) if isinstance(x, tuple) else x.__name__)
def test_every_table_has_a_good_recipe_to_begin_with(path: tuple[str, ...], section: type[Config]) -> None:
    parse_recipe(recipe_with(path, section, {}) | extra(path, section))


def extra(path: tuple[str, ...], section: type[Config]) -> dict[str, Any]:
    """What a table asks of another one."""
    if section is DatasetTeacherConfig:
        return {"rollout": {"sources": [{"from": "dataset", "path": "a.jsonl"}]}}
    if section is AgentEnvironmentConfig:
        return {"task": {"kind": "agent", "function": "a:b", "path": "a.jsonl"}}
    return {"rollout": {"samples_per_prompt": 2}} if "task_reward" in path else {}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_key_takes_a_hostile_value_for_good_or_refuses_it_in_one_message(name: str) -> None:
    started, refused, problems = time.monotonic(), 0, []
    for path, section, key in LEAVES:
        table = recipe_with(path, section, {key: HOSTILE[name]}) | extra(path, section)
        try:
            recipe = parse_recipe(table)
        except RecipeError as error:
            problems += [] if key in str(error) and len(str(error)) < 2000 else [f"{path} {key}: {error}"]
            refused += 1
            continue
        again = parse_recipe(tomllib.loads(recipe.to_toml()))  # what is accepted can be written down and read
        assert again.model_dump() == recipe.model_dump(), (path, key)
        assert checked_again(recipe) == recipe
    assert not problems
    assert refused >= len(LEAVES) - len([leaf for leaf in LEAVES if leaf[2] in ALLOWED.get(name, ())])
    assert time.monotonic() - started < 60


# Values that are good for some keys: every other key must refuse them.
TEXTS = {key for _, cls, key in LEAVES if "str" in str(fields_of(cls)[key].annotation)}
ALLOWED: dict[str, set[str]] = {
    "true": {key for _, cls, key in LEAVES if fields_of(cls)[key].annotation in (bool, bool | None)},
    **dict.fromkeys(("..", "../..", "a/b", "empty", "line break", "long", "null"), TEXTS),
    "empty list": {"stop_ids", "target_modules", "trackers", "sources"},
    "a table": {"options", "template_options", "weights"},
    "null": {key for _, cls, key in LEAVES if "None" in str(fields_of(cls)[key].annotation)},
    "ones": {"stop_ids"},
    "1e-320": {
        "top_p",
        "min_p",
        "betas",
        *(key for _, cls, key in LEAVES if fields_of(cls)[key].annotation is float),
    },
}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=12345678901234567890", "seed = 12345678901234567890 does not fit into 64 bits"),
        ("seed=9223372036854775807", None),
        ("rollout.samples_per_prompt=1000000000", "rollout.samples_per_prompt: Input should be less than or equal to"),
        ("rollout.stop_ids=[-1]", "rollout.stop_ids.0: Input should be greater than or equal to 0 (got -1)"),
        ("rollout.stop_ids=[[1]]", "rollout.stop_ids.0: Input should be a valid integer (got [1])"),
        ("rollout.stop_ids=[1.5]", "rollout.stop_ids.0: Input should be a valid integer"),
        ("learner.betas=[1, 1]", "learner.betas.0: Input should be less than 1 (got 1)"),
        ("learner.betas=[0.9]", "learner.betas"),
        ('output="a\\u0000b"', r"output = 'a\x00b' has the character U+0000 in it"),
        ('output=""', "output: String should have at least 1 character"),
        (f"output={'x' * 300}", "has 300 bytes; a file's name has at most 255"),
        (f"name={'x' * 300}", "name: String should have at most 100 characters"),
        ("name=..", "name: '..' is no name; expected a letter or a digit"),
        ('name="a\\n"', "is no name"),
        ("teacher.url=http://a:99999", "is no address; expected http://HOST:PORT"),
        ("teacher.url=http://", "is no address"),
        ("teacher.url=http://[", "is no address"),
        ("teacher.url=http://me:secret@a", "url has a name, a password"),
        ("teacher.url=http://a b", "is no address"),
        ("teacher.url=[]", "teacher.url"),
        ("rollout.samples_per_prompt=16384 ", None),
        ("eval.samples_per_prompt=16384", "[eval] asks for 128 prompts times 16384 samples_per_prompt"),
        ("learner.lora.target_modules='('", "learner.lora.target_modules: pattern '(' is not a regular"),
        ("threads=100000", "threads: Input should be less than or equal to 1024"),
        ("steps=" + "9" * 5000, "the override's value '9999"),
        ("steps=" + "[" * 5000, "the override's value '[[[["),
        ("steps=1\nname = 'other'", "steps: Input should be a valid integer"),
        ("a." * 5000 + "b=1", "is not of the form"),
        (f"{'k' * 10_000}=1", "unknown key 'kkkk"),
        ("task.system=" + "a\ud800", "has the character U+D800"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_overrides_are_refused_by_name(override: str, message: str | None) -> None:
    more = {"kind": "sglang", "url": "http://a"} if override.startswith("teacher.url") else MINIMAL["teacher"]
    task = {"kind": "file", "path": "a.jsonl"} if override.startswith("task") else MINIMAL["task"]
    table = {**MINIMAL, "teacher": more, "task": task}
    if message is None:
        parse_recipe(table, [override])
        return
    with pytest.raises(RecipeError) as caught:
        parse_recipe(table, [override])
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfes\x00", "not in UTF-8"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"steps = 1\nsteps = 2", "is not TOML"),
        (b"steps = " + b"9" * 10_000, "is not TOML"),
        (b"steps = 1979-05-27", "steps: Input should be a valid integer"),
        (b"#" * (MAX_BYTES + 1), "has more than 1,048,576 bytes"),
        (b"".join(b"k%d = 1\n" % n for n in range(20_000)), "more than 10,000 values"),
        (b"\xef\xbb\xbf[student]\nmodel = 'a'\n[teacher]\nmodel = 'a'\n[task]\nkind = 'arithmetic'", None),
    ],
    ids=["UTF-16", "nested", "twice", "digits", "date", "large", "many", "BOM"],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    if message is None:
        assert load_recipe(path).student.model == "a"
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, {"steps": 1}, 7, None])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_a_copy_of_a_recipe_that_was_changed_is_checked_again() -> None:
    recipe = parse_recipe(MINIMAL)
    assert checked_again(recipe) == recipe
    for change in ({"steps": True}, {"seed": 10**20}, {"output": "a\0"}, {"rollout": None}, {"teacher": "junk"}):
        with pytest.raises(RecipeError, match=next(iter(change))):
            checked_again(recipe.model_copy(update=change))


def test_mistakes_beyond_ten_are_counted() -> None:
    with pytest.raises(RecipeError, match="and 490 more"):
        parse_recipe(MINIMAL, [f"rollout.stop_ids=[{', '.join(['-1'] * 500)}]"])


def test_a_text_may_have_lines_and_a_name_may_not() -> None:
    task = {"kind": "file", "path": "a.jsonl", "system": "Be brief.\n\tAlways. 👩\u200d🔬"}
    assert parse_recipe({**MINIMAL, "task": task})
    with pytest.raises(RecipeError, match=f"at most {LONGEST_TEXT:,}|more than"):
        parse_recipe({**MINIMAL, "task": {**task, "system": "x" * (LONGEST_TEXT + 1)}})
    with pytest.raises(RecipeError, match=r"task\.path: .*expected one line"):
        parse_recipe({**MINIMAL, "task": {**task, "path": "a\nb"}})


@pytest.mark.parametrize("pattern", ["(" * 5000 + ")" * 5000, "(a{99999999999999})", "(a"])
def test_patterns_that_do_not_compile_are_refused(pattern: str) -> None:
    task = {"kind": "file", "path": "a.jsonl", "grader": {"kind": "regex", "pattern": pattern}}
    with pytest.raises(RecipeError, match=r"is not a regular expression|groups"):
        parse_recipe({**MINIMAL, "task": task})
