"""What a teacher is asked is what its own tokenizer makes of its own rendered chat with that answer.

Tokenizers differ in what they put where a text begins after a special token, and templates in whether one does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from limbeck.config.view import RetokenizedViewConfig
from limbeck.records import Chat, Failure, Key, Prompt, Rollout, Sampled, Sampling, Turn, View, single_turn
from limbeck.teacher_views.prompts import TeacherPrompts
from limbeck.teacher_views.retokenized import RetokenizedView
from limbeck.teacher_views.spelling import Speller

from .tokenizers import CHATML, INST, INST_NAMES, LINES, TAG_NAMES, TAGS, byte_level, sentence_piece, unigram

CHATML_NAMES = ("<unk>", "<|im_start|>", "<|im_end|>")
KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes, chatml": lambda: byte_level(eos="<|im_end|>"),
    "bytes, inst": lambda: byte_level(template=INST, special=INST_NAMES, eos="</s>"),
    "bytes with a blank, tags": lambda: byte_level(template=TAGS, special=TAG_NAMES, eos="<|end|>", blank=True),
    "unigram always, chatml": lambda: unigram("always", CHATML, CHATML_NAMES, "<|im_end|>"),
    "unigram always, tags": lambda: unigram("always"),
    "unigram first, tags": lambda: unigram("first"),
    "pieces, inst": sentence_piece,
    "pieces, inst a token": lambda: sentence_piece(special=INST_NAMES),
    "pieces, lines": lambda: sentence_piece(template=LINES.replace("<|end|>", "</s>")),
    "pieces, tags": lambda: sentence_piece(template=TAGS, special=TAG_NAMES, eos="<|end|>"),
    "pieces, phi-3": lambda: sentence_piece(template=LINES, special=TAG_NAMES, eos="<|end|>", rstrip=True),
}
ANSWERS = ("hello world", "46", "def add", "naïve 東京 🙂", " lead")
QUESTION = {"role": "user", "content": "12+34="}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@cache
def view_between(student: str, teacher: str) -> RetokenizedView:
    ours, theirs = tokenizer_of(student), tokenizer_of(teacher)
    prompts = TeacherPrompts(RetokenizedViewConfig(), ours, theirs)
    return RetokenizedView(Speller(ours, [ours.eos_token_id]), Speller(theirs), prompts)


@cache
def rendered(kind: str, *texts: str) -> list[int]:
    """A question, an answer, and so on; up to an answer's end of turn, or to where an answer begins."""
    tokenizer = tokenizer_of(kind)
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    asks = len(texts) % 2 == 1
    ids = list(tokenizer.apply_chat_template(chat, add_generation_prompt=asks, return_dict=False))
    return ids if asks else ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]


def rollout_of(kind: str, response: list[int]) -> Rollout:
    prompt = Prompt("p", tuple(rendered(kind, "12+34=")), text="12+34=", chat=Chat((QUESTION,)))
    sampled = Sampled(np.array(response), np.zeros(len(response), np.float32), "stop", 0)
    return single_turn(prompt, Key("p"), sampled, Sampling(1.0, 100))


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
def test_the_teacher_is_asked_its_own_rendered_chat(student: str, teacher: str) -> None:
    """Token by token, and nothing of it is left out. An answer that the student cannot tell from another is that."""
    begin = len(rendered(student, "12+34="))
    for answer in ANSWERS:
        ids = rendered(student, "12+34=", answer)
        same = ids == rendered(student, "12+34=", answer.lstrip())
        found = view_between(student, teacher).see(rollout_of(student, ids[begin:]), "sampled")
        assert isinstance(found, View)
        assert found.request.token_ids.tolist() == rendered(teacher, "12+34=", answer.lstrip() if same else answer)
        assert found.left_out == {}
        assert (found.student_group >= 0).all()


@pytest.mark.parametrize(
    ("student", "teacher"), [("pieces, tags", "unigram always, tags"), ("unigram first, tags", "pieces, phi-3")]
)
def test_later_turns_are_its_own_rendered_chat_too(student: str, teacher: str) -> None:
    """What a user says then, and the next answer, begin after special tokens as well."""
    texts = ("12+34=", "46", "hello", "def add")
    ids = np.array(rendered(student, *texts))
    ends = [len(rendered(student, *texts[:n])) for n in (1, 2, 3, 4)]
    trained = ((np.arange(len(ids)) >= ends[0]) & (np.arange(len(ids)) < ends[1])) | (np.arange(len(ids)) >= ends[2])
    roles = ("context", "student", "user", "student")
    turns = tuple(
        Turn(begin, end, role, finish="stop" if role == "student" else None)  # type: ignore[arg-type]
        for begin, end, role in zip([0, *ends[:-1]], ends, roles, strict=True)
    )
    prompt = Prompt("p", tuple(rendered(student, "12+34=")), text="12+34=", chat=Chat((QUESTION,)))
    count = int(trained.sum())
    zeros = np.zeros(count, np.float32)
    rollout = Rollout(prompt, Key("p"), 0, ids, trained, zeros, np.zeros(count, np.int64), Sampling(1.0, 100), turns)
    found = view_between(student, teacher).see(rollout, "sampled")
    assert isinstance(found, View)
    assert found.request.token_ids.tolist() == rendered(teacher, *texts)


def test_a_student_that_leaves_its_blank_out_is_read_as_it_stands() -> None:
    """It is not what the student is shown of answers, so the teacher is not shown its own kind of answer either."""
    ours, theirs = tokenizer_of("pieces, tags"), tokenizer_of("pieces, inst")
    bare = [*Speller(ours).encode("hello").ids, ours.eos_token_id]
    found = view_between("pieces, tags", "pieces, inst").see(rollout_of("pieces, tags", bare), "sampled")
    assert isinstance(found, View)
    assert found.request.scored_ids.tolist() == [*Speller(theirs).encode("hello").ids, theirs.eos_token_id]


def test_an_answer_that_names_a_special_token_says_its_name() -> None:
    """It does not become the token, and still begins as answers do."""
    ours, theirs = tokenizer_of("bytes, chatml"), tokenizer_of("pieces, tags")
    ids = [*Speller(ours).encode("hello <|user|>").ids, ours.eos_token_id]
    found = view_between("bytes, chatml", "pieces, tags").see(rollout_of("bytes, chatml", ids), "sampled")
    assert isinstance(found, View)
    scored = found.request.scored_ids.tolist()
    assert theirs.convert_tokens_to_ids("<|user|>") not in scored
    assert b"".join(Speller(theirs).say(scored)) == b" hello <|user|><|end|>"


def answer_of(view: RetokenizedView, text: str, *, end: bool = True) -> Rollout:
    ours = view.student
    return rollout_of("bytes, chatml", [*ours.encode(text).ids, *([ours.tokenizer.eos_token_id] if end else [])])


@cache
def view_of_strict_teacher() -> RetokenizedView:
    """Its tokenizer drops the blanks at a text's end."""
    ours, theirs = tokenizer_of("bytes, chatml"), unigram("first", CHATML, CHATML_NAMES, "<|im_end|>", strips=True)
    prompts = TeacherPrompts(RetokenizedViewConfig(), ours, theirs)
    return RetokenizedView(Speller(ours, [ours.eos_token_id]), Speller(theirs), prompts)


@pytest.mark.parametrize("blanks", ["   ", " ", "\n", "\n \n"])
def test_blanks_that_the_teacher_drops_are_compared_with_what_comes_next(blanks: str) -> None:
    """They are not free: the group of the end of the turn is that of the blanks too."""
    view = view_of_strict_teacher()
    found = view.see(answer_of(view, blanks), "sampled")
    assert isinstance(found, View)
    assert found.groups is not None
    assert found.request.scored_ids.tolist() == [view.teacher.tokenizer.eos_token_id]
    assert set(found.student_group.tolist()) == {0} == set(found.teacher_group.tolist())
    assert (found.groups.sizes.tolist(), found.left_out) == ([len(blanks)], {})
    bare = view.see(answer_of(view, blanks, end=False), "sampled")
    assert isinstance(bare, View)
    assert bare.left_out == {"no_text": len(bare.student_group)}
    assert bare.request.scored_ids.tolist() == []
    assert (bare.student_group == -1).all()


def test_a_response_that_is_too_long_for_the_teacher_alone_is_a_failure_of_that_response() -> None:
    """Counted in the teacher's tokens."""
    ours, theirs = tokenizer_of("bytes, chatml"), tokenizer_of("pieces, tags")
    view = RetokenizedView(Speller(ours, [ours.eos_token_id]), Speller(theirs), lambda prompt: [5] * 10)
    view.context = 14
    assert isinstance(view.see(answer_of(view, "46"), "sampled"), View)
    found = view.see(answer_of(view, "naïve 東京"), "sampled")
    assert isinstance(found, Failure)
    assert re.search(r"are \d\d tokens of .* context is 14\. Lower rollout\.max_tokens, .*min_scored_fr", found.message)
