"""What a teacher with another tokenizer is asked, and which of its tokens are compared with which of the student's."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from limbeck.errors import ModelError
from limbeck.models.token_bytes import TokenBytes
from limbeck.records import (
    Chat,
    Failure,
    Groups,
    Key,
    Prompt,
    Rollout,
    Sampled,
    Sampling,
    Turn,
    View,
    single_turn,
)
from limbeck.teacher_views.retokenized import RetokenizedView
from limbeck.teacher_views.spelling import Speller

from .tokenizers import byte_level, characters, sentence_piece, word_piece

KINDS = {
    "bytes-400": lambda: byte_level(400, template=None),
    "bytes-270": lambda: byte_level(270, template=None),
    "bytes-nfc": lambda: byte_level(350, template=None, nfc=True),
    "sentence-piece": lambda: sentence_piece(200, None),
    "characters": characters,
}
kinds = st.sampled_from(sorted(KINDS))
VIEWS: dict[tuple[str, str], RetokenizedView] = {}


def view_of(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> RetokenizedView:
    def prompts(prompt: Prompt) -> Sequence[int]:
        ids: list[int] = teacher(prompt.text)["input_ids"]
        return ids

    return RetokenizedView(Speller(student, [student.eos_token_id]), Speller(teacher), prompts)


def view_between(student: str, teacher: str) -> RetokenizedView:
    if (student, teacher) not in VIEWS:
        VIEWS[student, teacher] = view_of(KINDS[student](), KINDS[teacher]())
    return VIEWS[student, teacher]


def rollout_of(student: PreTrainedTokenizerFast, response: Sequence[int], finish: str = "stop") -> Rollout:
    prompt = Prompt("p", tuple(student("12+34=")["input_ids"]), text="12+34=")
    ids = np.array(response, dtype=np.int64)
    sampled = Sampled(ids, np.zeros(len(ids), np.float32), finish, 0)  # type: ignore[arg-type]
    return single_turn(prompt, Key("p"), sampled, Sampling(1.0, 100))


def seen(view: RetokenizedView, rollout: Rollout) -> tuple[View, Groups]:
    found = view.see(rollout, "sampled")
    assert isinstance(found, View)
    assert found.groups is not None
    return found, found.groups


def check(view: RetokenizedView, rollout: Rollout, found: View, groups: Groups) -> None:
    """Each group says the same on both sides, as far as both can say it, and what is in none is counted."""
    ours = view.student.say(rollout.response_ids)
    theirs = view.teacher.say(found.request.scored_ids)
    assert len(groups.student) == len(ours) == rollout.trained.sum()
    assert len(groups.teacher) == len(theirs) == found.request.scored.sum()
    assert sum(found.left_out.values()) == (groups.student == -1).sum()
    for side in (groups.student, groups.teacher):
        assert set(side.tolist()) - {-1} == set(range(len(groups.sizes)))
        assert (np.diff(side[side >= 0]) >= 0).all()
    changed_nothing = unicodedata.is_normalized("NFC", b"".join(ours).decode(errors="replace"))
    end = view.teacher.atoms[view.teacher.tokenizer.eos_token_id].encode()
    for g, size in enumerate(groups.sizes.tolist()):
        said = [
            b"".join(piece for piece, of in zip(pieces, side, strict=True) if of == g)
            for pieces, side in ((ours, groups.student), (theirs, groups.teacher))
        ]
        readable, same = said[0].decode(errors="replace"), b"<unk>" not in said[1] and changed_nothing
        if size == 0:
            assert said[1] in (end, said[0])
        elif "\ufffd" not in readable and same:
            assert said[0] == said[1]
            assert len(said[0]) == size


@settings(max_examples=120, deadline=None, derandomize=True)
@given(student=kinds, teacher=kinds, data=st.data())
def test_whatever_a_student_samples_groups_say_the_same_bytes(student: str, teacher: str, data: st.DataObject) -> None:
    """Any ids at all, special ones too: broken UTF-8, characters in pieces, splits that nobody would write."""
    view = view_between(student, teacher)
    ids = data.draw(st.lists(st.integers(0, len(view.student.tokenizer) - 1), max_size=12))
    finish = data.draw(st.sampled_from(["stop", "length"]))
    rollout = rollout_of(view.student.tokenizer, ids, finish)
    check(view, rollout, *seen(view, rollout))


texts = st.text(max_size=10) | st.lists(
    st.sampled_from(
        ["hello", " world", "é", "e\u0301", "🙂", "👩‍👩‍👧", "東京", "\n", "  ", "12", "<|im_end|>", "\u202e", "ß"]
    )
).map("".join)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(student=kinds, teacher=kinds, text=texts)
def test_text_that_both_can_write_is_compared_whole(student: str, teacher: str, text: str) -> None:
    """Whatever the text: nothing of a whole response is left out."""
    view = view_between(student, teacher)
    ids = view.student.encode(text).ids
    rollout = rollout_of(view.student.tokenizer, [*ids, view.student.tokenizer.eos_token_id])
    found, groups = seen(view, rollout)
    check(view, rollout, found, groups)
    assert found.left_out == {}
    assert groups.sizes.sum() == groups.text_bytes


@settings(max_examples=50, deadline=None, derandomize=True)
@given(kind=kinds, text=texts, finish=st.sampled_from(["stop", "length"]))
def test_one_tokenizer_on_both_sides_is_the_same_view(kind: str, text: str, finish: str) -> None:
    """Each token is a group of its own, with itself, wherever the response is cut."""
    view = view_between(kind, kind)
    ids = [id_ for id_ in view.student.encode(text).ids if id_ not in view.student.atoms]
    ids = view.student.encode(b"".join(view.student.say(ids)).decode(errors="replace")).ids  # as it would be written
    if set(ids) & set(view.student.atoms):
        return  # what has no token
    found, groups = seen(view, rollout_of(view.student.tokenizer, ids, finish))
    assert found.left_out == {}
    assert found.request.scored_ids.tolist() == list(ids)
    assert groups.student.tolist() == groups.teacher.tolist() == list(range(len(ids)))


def test_the_end_of_a_turn_is_the_end_of_a_turn_and_others_go_by_name() -> None:
    """ChatML's <|im_end|> for Mistral's </s>; what neither has is not seen, and counted."""
    chatml, inst = byte_level(), sentence_piece()
    ours, theirs = Speller(chatml, [chatml.eos_token_id]), Speller(inst)
    assert ours.counterpart(chatml.convert_tokens_to_ids("<|im_end|>"), theirs) == inst.eos_token_id
    assert ours.counterpart(chatml.eos_token_id, theirs) == inst.eos_token_id
    assert ours.counterpart(chatml.convert_tokens_to_ids("<|im_start|>"), theirs) is None
    assert theirs.counterpart(inst.eos_token_id, ours) == chatml.convert_tokens_to_ids("<|im_end|>")


def test_the_blank_that_a_template_puts_before_an_answer_is_that_templates() -> None:
    """Mistral's answers begin with a blank that is the template's, ChatML's do not."""
    chatml, inst = byte_level(), sentence_piece()
    assert (Speller(chatml).lead, Speller(inst).lead) == ("", " ")
    pieces, bytes_ = Speller(inst), Speller(chatml)
    assert pieces.tokenizer.convert_ids_to_tokens(list(pieces.encode("hello", " ").ids))[0].startswith("▁")
    assert not pieces.tokenizer.convert_ids_to_tokens(list(pieces.encode("hello").ids))[0].startswith("▁")
    assert b"".join(bytes_.token_bytes.of(bytes_.encode("hello").ids)) == b"hello"  # type: ignore[arg-type]


@pytest.mark.parametrize(("student", "teacher"), [("bytes-270", "bytes-400"), ("characters", "bytes-400")])
def test_the_open_end_of_a_response_that_was_cut_off_is_not_compared(student: str, teacher: str) -> None:
    """The teacher would have gone on within its token: "hel" is not what it says when it says "hello"."""
    view = view_between(student, teacher)
    ids = view.student.encode("the hel").ids
    found, groups = seen(view, rollout_of(view.student.tokenizer, ids, "length"))
    assert found.left_out.keys() == {"open"}
    assert groups.student[-1] == -1
    whole, _ = seen(view, rollout_of(view.student.tokenizer, ids, "stop"))
    assert whole.left_out == {}


def test_nothing_that_is_said_is_free() -> None:
    """What the teacher has no token for, what is no UTF-8 and a special token of the student's alone are scored too."""
    view = view_between("bytes-400", "characters")
    unknown, start = view.teacher.tokenizer.unk_token_id, view.student.tokenizer.convert_tokens_to_ids("<|im_start|>")
    found, groups = seen(view, rollout_of(view.student.tokenizer, view.student.encode("1é2").ids))
    assert found.request.scored_ids.tolist() == [5, unknown, 6]
    assert (groups.sizes.tolist(), found.left_out) == ([1, 2, 1], {})
    broken = view.student.encode("é").ids[:1] if len(view.student.encode("é").ids) > 1 else [168]
    found, groups = seen(view, rollout_of(view.student.tokenizer, [*view.student.encode("1").ids, *broken]))
    assert (groups.student >= 0).all()
    found, _ = seen(view, rollout_of(view.student.tokenizer, [start]))
    spelled = view.teacher.tokenizer.convert_ids_to_tokens(found.request.scored_ids.tolist())
    assert "".join(spelled) == "<|im_start|>"


def two_turns(student: PreTrainedTokenizerFast) -> Rollout:
    """An answer, what a user says then, and another answer."""
    chat = Chat(({"role": "user", "content": "12+34="},))
    prompt = Prompt(
        "p", tuple(student("<|im_start|>user\n12+34=<|im_end|>\n<|im_start|>assistant\n")["input_ids"]), chat=chat
    )
    parts = [
        student("46<|im_end|>")["input_ids"],
        student("\n<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n")["input_ids"],
        student("helping<|im_end|>")["input_ids"],
    ]
    ends = np.cumsum([len(prompt.token_ids), *map(len, parts)]).tolist()
    ids = np.array([*prompt.token_ids, *parts[0], *parts[1], *parts[2]], dtype=np.int64)
    place = np.arange(len(ids))
    trained = ((place >= ends[0]) & (place < ends[1])) | (place >= ends[2])
    turns = tuple(
        Turn(a, b, role, finish="stop" if role == "student" else None)  # type: ignore[arg-type]
        for (a, b), role in zip(pairwise([0, *ends]), ("context", "student", "user", "student"), strict=True)
    )
    count = int(trained.sum())
    zeros = np.zeros(count, np.float32)
    return Rollout(prompt, Key("p"), 0, ids, trained, zeros, np.zeros(count, np.int64), Sampling(1.0, 100), turns)


def test_what_stands_between_turns_is_seen_and_not_scored() -> None:
    """In the teacher's tokens, each turn by itself; a special token that it does not have is named."""
    student, teacher = byte_level(270), byte_level(400)
    rollout = two_turns(student)
    view = RetokenizedView(Speller(student), Speller(teacher), lambda prompt: teacher("12+34=")["input_ids"])
    found, groups = seen(view, rollout)
    check(view, rollout, found, groups)
    assert found.left_out == {}
    scored = b"".join(view.teacher.say(found.request.scored_ids)).decode()
    assert scored == "46<|im_end|>helping<|im_end|>"
    whole = b"".join(view.teacher.say(found.request.token_ids)).decode()
    assert (
        whole == "12+34=46<|im_end|>\n<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\nhelping<|im_end|>"
    )
    inst = sentence_piece()
    other = RetokenizedView(Speller(student), Speller(inst), lambda prompt: inst("12+34=")["input_ids"])
    failure = other.see(rollout, "sampled")
    assert isinstance(failure, Failure)
    assert "has the special token '<|im_start|>'" in failure.message


def test_a_rollout_with_another_prefix_is_a_failure() -> None:
    view = view_between("bytes-400", "characters")
    rollout = rollout_of(view.student.tokenizer, [70])
    found = view.see(replace(rollout, prompt=Prompt("p", (1, 2), text="12+34=")), "sampled")
    assert isinstance(found, Failure)
    assert "does not begin with the tokens of its prompt" in found.message


def test_tokens_without_bytes_are_refused() -> None:
    with pytest.raises(ModelError, match="has the decoder WordPiece, whose tokens have no bytes of their own"):
        TokenBytes(word_piece())
