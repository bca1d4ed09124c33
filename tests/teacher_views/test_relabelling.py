"""Which token of a teacher stands for which of the student's, over templates of many kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from limbeck.errors import ModelError
from limbeck.models.head import Head
from limbeck.teacher_views.relabelling import Relabelling, _permutation, relabelling_of
from limbeck.teacher_views.template_tokens import template_tokens_of
from tests import tiny

from .templates import (
    CHATML,
    ENDS_EARLIER_TURNS,
    LETTERS,
    LLAMA3,
    MISTRAL,
    OPENS_THINKING,
    PLAIN,
    SPECIAL,
    THINKING,
    tokenizer_of,
)

TOKENIZER = tokenizer_of(None)
ID = {token: TOKENIZER.convert_tokens_to_ids(token) for token in (*SPECIAL, "<eos>")}


@pytest.mark.parametrize(
    ("template", "end", "thinking"),
    [
        (CHATML, "<|im_end|>", (None, None)),
        (LLAMA3, "<|eot|>", (None, None)),
        (MISTRAL, "</s>", (None, None)),
        (ENDS_EARLIER_TURNS, "<|eot|>", (None, None)),
        (PLAIN, "<eos>", (None, None)),
        (None, "<eos>", (None, None)),
        (THINKING, "<|im_end|>", ("<think>", "</think>")),
        (OPENS_THINKING, "<|eot|>", ("[THINK]", "[/THINK]")),
    ],
    ids=["chatml", "llama3", "mistral", "ends-earlier-turns", "plain", "none", "thinking", "opens-thinking"],
)
def test_marks_are_found_by_rendering(template, end, thinking) -> None:
    found = template_tokens_of(tokenizer_of(template))
    assert found.end_of_turn == ID[end]
    assert (found.opening, found.closing) == tuple(None if tag is None else ID[tag] for tag in thinking)


def test_ends_of_turn_stand_for_each_other_and_nothing_else_changes() -> None:
    found = relabelling_of(tokenizer_of(CHATML), tokenizer_of(LLAMA3))
    assert found.pairs == {ID["<|im_end|>"]: ID["<|eot|>"], ID["<|eot|>"]: ID["<|im_end|>"]}
    assert not found.masked
    assert relabelling_of(tokenizer_of(CHATML), tokenizer_of(CHATML)).is_identity


WITHOUT_THINKING = tuple(token if "hink" not in token.lower() else f"<|r{i}|>" for i, token in enumerate(SPECIAL))


def test_thinking_tags_are_mapped_or_masked() -> None:
    found = relabelling_of(tokenizer_of(THINKING), tokenizer_of(OPENS_THINKING))
    ids = np.array([ID["<think>"], ID["</think>"], ID["<|im_end|>"]])
    assert found.to_teacher(ids).tolist() == [ID["[THINK]"], ID["[/THINK]"], ID["<|eot|>"]]
    without = relabelling_of(tokenizer_of(THINKING), tokenizer_of(CHATML, special=WITHOUT_THINKING))
    assert {id_: why for id_, why in without.masked.items() if why == "thinking"} == {
        ID["<think>"]: "thinking",
        ID["</think>"]: "thinking",
    }
    assert relabelling_of(tokenizer_of(CHATML), tokenizer_of(THINKING)).is_identity  # the student has none to map


def test_a_token_that_the_teachers_template_does_not_use_is_the_one_of_its_name() -> None:
    assert relabelling_of(tokenizer_of(THINKING), tokenizer_of(CHATML)).is_identity
    swapped = tuple({"<think>": "</think>", "</think>": "<think>"}.get(token, token) for token in SPECIAL)
    found = relabelling_of(tokenizer_of(THINKING), tokenizer_of(CHATML, special=swapped))
    assert found.pairs == {ID["<think>"]: ID["</think>"], ID["</think>"]: ID["<think>"]}
    assert not found.masked


def test_stop_tokens_and_tokens_that_are_special_on_one_side_alone_are_found_by_name() -> None:
    student = tiny.character_tokenizer(("<pad>", "<eos>", "<unk>", "<|halt|>", "<|rest|>", *LETTERS))
    teacher = tiny.character_tokenizer(("<pad>", "<eos>", "<unk>", "<|rest|>", "<|other|>", *LETTERS))
    teacher.add_tokens([AddedToken("<|rest|>", special=True, normalized=False)], special_tokens=True)
    halt, rest = student.convert_tokens_to_ids(["<|halt|>", "<|rest|>"])
    found = relabelling_of(student, teacher, stop_ids=(halt,))
    assert found.id_of(rest) == teacher.convert_tokens_to_ids("<|rest|>")
    assert found.masked == {halt: "end_of_turn"}


def test_special_tokens_of_other_ids_and_names() -> None:
    """The same text vocabulary, other special tokens in its first places: mapped by what they are for, then by name."""
    theirs = ("<|eot|>", "<|header|>", *SPECIAL[4:10], "[THINK]", "[/THINK]", "<|extra|>", "<|more|>")
    teacher = tokenizer_of(LLAMA3, special=theirs)
    found = relabelling_of(tokenizer_of(CHATML), teacher)
    ours = {name: np.array([ID[name]]) for name in SPECIAL}
    assert found.to_teacher(ours["<|im_end|>"]) == teacher.convert_tokens_to_ids("<|eot|>")
    for name in ("<|header|>", "[INST]", "<think>"):
        assert found.to_teacher(ours[name]) == teacher.convert_tokens_to_ids(name)
    assert found.masked[ID["<|im_start|>"]] == "special_token"


@given(st.dictionaries(st.integers(0, 12), st.integers(0, 12)))
def test_whatever_is_mapped_each_token_stands_for_one(wanted: dict[int, int]) -> None:
    given_ = {}
    for ours, theirs in wanted.items():
        if theirs not in given_.values():
            given_[ours] = theirs
    found = Relabelling(_permutation(given_))
    ids = np.arange(13)
    assert sorted(found.to_teacher(ids)) == list(range(13))
    assert np.array_equal(found.to_student(found.to_teacher(ids)), ids)
    assert all(found.to_teacher(np.array([ours])) == theirs for ours, theirs in given_.items())


@settings(max_examples=20)
@given(st.permutations(range(4)))
def test_a_head_in_our_order_has_the_teachers_logits_under_our_names(order: list[int]) -> None:
    found = Relabelling({ours: theirs for ours, theirs in enumerate(order) if ours != theirs})
    head = Head(torch.randn(6, 3), torch.randn(6), softcap=2.0)
    hidden_d = torch.randn(1, 3)
    expected = head.logits(hidden_d)[0, found.to_teacher(np.arange(6))]
    assert torch.equal(found.head(head).logits(hidden_d)[0], expected)


def test_a_token_without_a_row_is_named() -> None:
    with pytest.raises(ModelError, match="uses token 7, but student and teacher share ids 0 to 5"):
        Relabelling({2: 7, 7: 2}).head(Head(torch.zeros(6, 3)))
