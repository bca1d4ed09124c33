"""The reference of an objective comes to the loss by a door of its own: it is held to what a local teacher is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import api
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import ContractError, LimbeckError, ModelError
from tests import tiny


def recipe(reference: str, output: Path, **tables: Any) -> Recipe:
    return parse_recipe(
        {
            "steps": 2,
            "threads": 1,
            "output": str(output),
            "student": {"model": tiny.folder_of("llama")},
            "teacher": {"model": tiny.folder_of("llama-tied")},
            "task": {"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 4, "prompts_per_step": 4},
            "objective": {"reference": {"model": reference, "weight": 0.5}},
            "eval": {"prompts": 4},
            "record": {"every": 0},
            **tables,
        }
    )


def test_a_reference_with_another_tokenizer_is_refused_by_its_own_name(tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny.save(other)
    alphabet = list(tiny.ALPHABET)
    alphabet[10], alphabet[11] = alphabet[11], alphabet[10]
    tiny.character_tokenizer(tuple(alphabet)).save_pretrained(other)
    with pytest.raises(ContractError, match=r"and reference .* have different vocabularies: 2 tokens differ"):
        api.check(recipe(str(other), tmp_path))


def test_a_reference_with_fewer_rows_than_the_tokenizer_has_ids_is_refused(tmp_path: Path) -> None:
    narrow = tiny.save(tmp_path / "narrow", vocab_size=90)
    with pytest.raises(LimbeckError, match="output head only 90 rows"):
        api.check(recipe(narrow, tmp_path))


def test_padding_of_a_reference_is_left_out_on_both_sides(tmp_path: Path) -> None:
    padded = tiny.save(tmp_path / "padded", vocab_size=128)
    result = limbeck.train(recipe(padded, tmp_path))
    assert all(line["reverse_kl/reference"] > 0 for line in result.steps)


def test_a_reference_that_was_baked_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny.folder_of("llama"), tmp_path / "baked")
    path = tmp_path / "baked" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "limbeck_temperature": 0.7}))
    with pytest.raises(ModelError, match=r"objective\.reference\.model = .* for temperature 0\.7"):
        api.check(recipe(str(path.parent), tmp_path))


def test_prompts_fit_into_the_context_of_the_reference_too(tmp_path: Path) -> None:
    """Learned positions end with a traceback in the middle of a run; rotary ones go on where nothing was learned."""
    short = tiny.build(tiny.config_of("llama"))
    short.config.max_position_embeddings = 8
    short.save_pretrained(tmp_path / "short")
    tiny.character_tokenizer().save_pretrained(tmp_path / "short")
    with pytest.raises(LimbeckError, match="leaves no place for a prompt in a context of 8"):
        api.check(recipe(str(tmp_path / "short"), tmp_path, rollout={"max_tokens": 8, "prompts_per_step": 4}))


def test_a_reference_that_is_the_student_has_no_kl_at_the_first_step(tmp_path: Path) -> None:
    first, second = limbeck.train(recipe(tiny.folder_of("llama"), tmp_path, learner={"lr": 1e-2})).steps
    assert first["reverse_kl/reference"] == pytest.approx(0, abs=1e-6)
    assert second["reverse_kl/reference"] > 1e-6
