"""Recipes: strict, helpful about mistakes, and the shipped ones are whole."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import limbeck
from limbeck import api
from limbeck.config.objective import JSDConfig, ReverseKLConfig
from limbeck.config.recipe import Recipe, RolloutConfig, dotted_keys, load_recipe, parse_recipe
from limbeck.config.teacher import LocalTeacherConfig
from limbeck.errors import RecipeError

ROOT = Path(__file__).parents[2]
MINIMAL = {
    "student": {"model": "demo:student"},
    "teacher": {"model": "demo:teacher"},
    "task": {"kind": "arithmetic"},
}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem


def test_there_are_shipped_recipes() -> None:
    assert {"demo.toml", "smollm2.toml"} <= {path.name for path in (ROOT / "recipes").glob("*.toml")}


def test_defaults_are_filled_in() -> None:
    recipe = parse_recipe(MINIMAL)
    assert isinstance(recipe.objective, ReverseKLConfig)
    assert isinstance(recipe.teacher, LocalTeacherConfig)
    assert recipe.objective.support == "full"


def test_overrides_in_order_and_of_every_type() -> None:
    recipe = parse_recipe(
        MINIMAL,
        [
            "rollout.temperature=0.7", "steps=5", "steps=6", "learner.lora.rank=4", "student.model=some/where",
            'name="quoted"', "objective.support=sampled", "learner.betas=[0.8, 0.9]", "eval.greedy=true",
        ],
    )  # fmt: skip
    assert recipe.rollout.temperature == 0.7
    assert recipe.steps == 6
    assert recipe.learner.lora.rank == 4
    assert recipe.student.model == "some/where"
    assert recipe.name == "quoted"
    assert recipe.objective.support == "sampled"
    assert recipe.learner.betas == (0.8, 0.9)
    assert recipe.eval.greedy is True


def test_overrides_choose_the_kind_of_a_union() -> None:
    recipe = parse_recipe(MINIMAL, ["objective.divergence=jsd", "objective.beta=0.25"])
    assert isinstance(recipe.objective, JSDConfig)
    assert recipe.objective.beta == 0.25


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.temprature=0.7", "rollout: unknown key 'temprature'. Did you mean 'temperature'?"),
        ("task.grader.kind='exact'", "task: unknown key 'grader'. It goes with kind = 'file'"),
        ("objective.beta=0.5", "objective: unknown key 'beta'. It goes with divergence = 'jsd'."),
        ("teacher.url='http://there'", "teacher: kind is missing, and its keys do not say which is meant"),
        ("steps=true", "steps is true, expected a number"),
        ("learner.lr=true", "lr is true, expected a number"),
        ("rollout.stop_ids=[1, true]", "stop_ids is [1, true], expected a number"),
        ("temperature=0.7", "unknown key 'temperature'. There is 'rollout.temperature'."),
        ("learning_rate=1e-5", "unknown key 'learning_rate'. `learning_rate` is `learner.lr` here."),
        ("learner.learning_rate=1e-5", "learner: unknown key 'learning_rate'. `learning_rate` is `learner.lr` here."),
        ("rollout.n=4", "`n` is `rollout.samples_per_prompt` here."),
        ("num_train_epochs=3", "`num_train_epochs` is `steps` here, counted in updates, not in passes over the data."),
        ("trackers=wandb", "trackers is 'wandb', expected a list of tables: trackers=[{kind = \"wandb\"}]"),
        ('trackers=["wandb", "tensorboard"]', 'trackers=[{kind = "wandb"}, {kind = "tensorboard"}]'),
        ('trackers={kind = "wandb"}', 'trackers=[{kind = "wandb"}]'),
        ("trackers=3", 'trackers is 3, expected a list of tables: trackers=[{kind = "tensorboard"}]'),
        ("rollout.sources=teacher", 'sources=[{from = "teacher"}]'),
        ("step=7", "unknown key 'step'. Did you mean 'steps'?"),
        ("learner.lora.r=4", "learner.lora: unknown key 'r'"),
        ("objective.suport=full", "objective: unknown key 'suport'. Did you mean 'support'?"),
        ("task.digit=2", "task: unknown key 'digit'. Did you mean 'digits'?"),
        ("rollout.temperature=0", "rollout.temperature: Input should be greater than or equal to 0.001 (got 0)"),
        ("rollout.temperature=-1", "rollout.temperature: Input should be greater than or equal to 0.001"),
        ("rollout.temperature=inf", "rollout.temperature = inf is not finite"),
        ("rollout.temperature=warm", "rollout.temperature: Input should be a valid number"),
        ("steps=0", "steps: Input should be greater than or equal to 1"),
        ("teacher.kind=locall", "teacher: unknown kind 'locall'. Did you mean 'local'?"),
        ("task.kind=arithmetics", "task: unknown kind 'arithmetics'. Did you mean 'arithmetic'?"),
        ("task.kind=zzz", "task: unknown kind 'zzz'. There are: arithmetic, "),
        ("objective.divergence=reversekl", "objective: unknown divergence 'reversekl'. Did you mean 'reverse_kl'?"),
        ("teacher.kind=vlm", "teacher: unknown kind 'vlm'. Did you mean 'vllm'?"),
        ("learner.lr=0", "learner.lr: Input should be above 0 (got 0)"),
        ("rollout=5", "rollout: expected a table (got 5)"),
        ("teacher=5", "teacher: expected a table (got 5)"),
        ("eval.sets=5", "eval.sets: expected a table (got 5)"),
        ("objective.support=0", "objective.support"),
        ("name=../evil", "name: '../evil' is no name; expected a letter or a digit, and then letters"),
        ("rollout.top_p=0.9 ", None),
    ],
)
def test_mistakes_are_named(override: str, message: str | None) -> None:
    if message is None:
        assert parse_recipe(MINIMAL, [override]).rollout.top_p == 0.9
        return
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["rollout.temperature", "=3", ".a=1", "a..b=1"])
def test_overrides_that_are_not_key_value(override: str) -> None:
    with pytest.raises(RecipeError, match=r"not of the form table\.key=value"):
        parse_recipe(MINIMAL, [override])


@pytest.mark.parametrize("overrides", ["learner.lr=3e-4", {"steps": 3}, [3], None, b"a=1"])
def test_overrides_that_are_no_list(overrides: Any, tmp_path: Path) -> None:
    (path := tmp_path / "a.toml").write_text("")
    for call in (
        lambda: parse_recipe(MINIMAL, overrides),
        lambda: load_recipe(path, overrides),
        lambda: limbeck.train(MINIMAL, overrides),
        lambda: limbeck.evaluate(parse_recipe(MINIMAL), overrides),
        lambda: limbeck.sft(MINIMAL, overrides),
        lambda: api.check(path, overrides),
    ):
        with pytest.raises(RecipeError, match=r"overrides is .*, expected a list of 'key=value'"):
            call()


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(RecipeError, match="steps is a value, not a table"):
        parse_recipe({**MINIMAL, "steps": 3}, ["steps.a=1"])


def test_missing_tables_are_named() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({})
    for table in ("student", "teacher", "task"):
        assert f"{table}: missing" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.top_p=0.9", "objective.support=sampled"], "would be biased"),
        (["rollout.top_k=5", "objective.support=20"], "would be biased"),
        (["rollout.min_p=0.1", "objective.discount=0.5"], "as if it were whole"),
        (["objective.task_reward.weight=1.0"], "samples_per_prompt = 1"),
    ],
)
def test_combinations_that_cannot_work(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(MINIMAL, overrides)


def test_a_changed_copy_is_checked() -> None:
    recipe = parse_recipe(MINIMAL, ["rollout.sources=[{from='student', share=0.5}, {from='teacher', share=0.5}]"])
    copy = recipe.model_copy(update={"steps": 7})
    assert copy == parse_recipe(recipe.model_dump(mode="json", exclude_none=True), ["steps=7"])
    assert copy.model_fields_set == recipe.model_fields_set | {"steps"}
    assert copy.model_dump(exclude_unset=True) == {**recipe.model_dump(exclude_unset=True), "steps": 7}
    assert recipe.model_copy() == recipe
    assert recipe.rollout.sources[0].model_copy(update={"share": 0.25}).share == 0.25


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"stepz": 3}, "unknown key 'stepz'. Did you mean 'steps'?"),
        ({"steps": -3}, "steps: Input should be greater than or equal to 1"),
        ({"steps": True}, "steps is true, expected a number"),
        ({"rollout": 3}, "rollout: expected a table"),
        ({"objective": ReverseKLConfig(support="sampled"), "rollout": RolloutConfig(top_p=0.9)}, "would be biased"),
    ],
)
def test_a_copy_that_cannot_be_is_refused(update: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL).model_copy(update=update)
    assert message in str(caught.value)


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(MINIMAL).steps = 3  # type: ignore[misc]


def test_a_run_folder_is_read_as_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = parse_recipe(MINIMAL)
    folder = tmp_path / run.output / run.name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(run.to_toml())
    for named in (folder, folder.relative_to(tmp_path)):
        assert load_recipe(named, ["steps=7"]) == parse_recipe({**MINIMAL, "steps": 7})
    copy = folder.rename(tmp_path / "copy")
    with pytest.raises(
        RecipeError, match=rf"is of the run in {run.output}/{run.name}.*Add output={tmp_path} name=copy"
    ):
        load_recipe(copy)
    assert load_recipe(copy, [f"output={tmp_path}", "name=copy"]).name == "copy"
    assert load_recipe(copy / "recipe.toml") == run


def test_what_is_no_recipe_says_what_is_one() -> None:
    with pytest.raises(RecipeError, match=r"is 5 \(int\).*TOML file.*run's folder.*dict.*Recipe"):
        load_recipe(5)  # type: ignore[arg-type]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match=r"no recipe at .*recipe\.toml"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.toml").mkdir()
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(broken)


@given(st.floats(0.01, 5), st.integers(1, 10**6), st.sampled_from(["sampled", "full", 7]), st.integers(0, 2**31))
def test_resolved_recipes_read_back_as_themselves(
    temperature: float, steps: int, support: str | int, seed: int
) -> None:
    recipe = parse_recipe(
        MINIMAL,
        [f"rollout.temperature={temperature}", f"steps={steps}", f"objective.support={support}", f"seed={seed}"],
    )
    assert parse_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_dotted_keys_reach_into_unions() -> None:
    keys = set(dotted_keys(Recipe))
    assert {"rollout.temperature", "objective.beta", "objective.support", "task.digits", "learner.lora.rank"} <= keys


TEACHERS: dict[str, dict[str, object]] = {
    "local": {"model": "m"},
    "limbeck": {"kind": "limbeck", "url": "http://h:1"},
    "rescaled": {"kind": "limbeck", "url": "http://h:1", "temperature_method": "rescale"},
    "head": {"kind": "limbeck", "url": "http://h:1", "head": "m"},
    "sglang": {"kind": "sglang", "url": "http://h:1"},
    "vllm": {"kind": "vllm", "url": "http://h:1"},
    "own": {"kind": "python", "factory": "a:b"},
}
LOCAL_MEMBER = {"kind": "local", "model": "m"}


@pytest.mark.parametrize(
    ("members", "support"),
    [
        (["local"], ("full", None)),
        (["head"], ("full", None)),
        (["limbeck"], ("student_top", 20)),
        (["rescaled"], (20, None)),
        (["sglang"], (20, None)),
        (["vllm"], (20, None)),
        (["own"], ("sampled", None)),
        (["limbeck", "head"], ("student_top", 20)),
        (["limbeck", "limbeck"], ("student_top", 20)),
        (["limbeck", "vllm"], (20, None)),
        (["limbeck", "own"], (20, None)),
        (["head", "head"], ("full", None)),
    ],
)
def test_a_support_that_is_not_chosen_is_the_best_that_every_teacher_gives(
    members: list[str], support: tuple[object, object]
) -> None:
    """Of remote ones at equal bytes: docs/concepts/mathematics.md."""
    tables = [TEACHERS[name] for name in members]
    routed = {"kind": "routed", "default": "t0", "teachers": {f"t{i}": table for i, table in enumerate(tables)}}
    given = {**MINIMAL, "teacher": tables[0] if len(tables) == 1 else routed}
    objective = parse_recipe(given).objective
    assert (objective.support, objective.k) == support
    again = Recipe.model_validate({**given, "teacher": parse_recipe(given).teacher}).objective
    assert (again.support, again.k) == support
    assert parse_recipe(given, ["objective.support=7"]).objective.support == 7
    if support[0] == "student_top":
        assert parse_recipe(given, ["objective.k=4"]).objective.k == 4
        own = {**given, "engine": {"kind": "python", "factory": "a:b"}}
        assert parse_recipe(own).objective.support == 20  # it may not know of ids
    else:
        with pytest.raises(RecipeError, match=r"objective.* k = 4 is of support = 'student_top'"):
            parse_recipe(given, ["objective.k=4"])
