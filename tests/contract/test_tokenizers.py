"""Two tokenizers are compared, nothing is changed, and each difference is refused with the reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tokenizers

from limbeck.contract.tokenizers import check_same_tokenizer, check_tokenizers
from limbeck.errors import ContractError
from limbeck.models.causal_lm import CausalLM
from tests import tiny


def pair(**teacher: Any) -> tuple[CausalLM, CausalLM]:
    """A student and a teacher of one tokenizer, but for what is given."""
    student, other = tiny.fresh(), tiny.fresh("qwen2")
    other.tokenizer = tiny.character_tokenizer(**teacher)
    return student, other


def refusal(student: CausalLM, teacher: CausalLM, **options: bool) -> str:
    with pytest.raises(ContractError) as caught:
        check_tokenizers(student, teacher, **options)
    message = str(caught.value)
    assert "\n" not in message
    (result,) = caught.value.results
    assert not result.ok
    assert result.remedy
    assert message.endswith(result.remedy)
    assert len(result.measured) <= 80
    return message


def test_one_tokenizer_is_fine() -> None:
    student, teacher = pair()
    result = check_tokenizers(student, teacher)
    assert result.probe == "tokenizer"
    assert "100 tokens" in result.measured


@pytest.mark.parametrize("rows", [(128, 100), (100, 128), (112, 128), (128, 128)])
def test_tables_padded_to_other_sizes_are_fine_and_stay_as_they_are(rows: tuple[int, int]) -> None:
    student, teacher = pair()
    for lm, count in zip((student, teacher), rows, strict=True):
        lm.model.resize_token_embeddings(count)
        lm.vocabulary = count
    result = check_tokenizers(student, teacher)
    assert (student.vocabulary, teacher.vocabulary) == rows
    assert str(min(rows)) in result.expected
    assert result.measured.endswith(f"{rows[0]} and {rows[1]} rows")


def test_other_ids_for_the_same_tokens_are_refused() -> None:
    alphabet = list(tiny.ALPHABET)
    alphabet[10], alphabet[11] = alphabet[11], alphabet[10]
    message = refusal(*pair(alphabet=tuple(alphabet)))
    assert "2 tokens differ" in message
    assert f"{tiny.ALPHABET[10]!r} (id 10 against 11)" in message


def test_a_token_more_is_refused_on_either_side() -> None:
    """A token the other does not have: its id would mean nothing there."""
    message = refusal(*pair(alphabet=(*tiny.ALPHABET, "<extra>")))
    assert "'<extra>' (id None against 100)" in message
    student, teacher = pair()
    student.tokenizer.add_tokens(["<extra>"])
    assert "'<extra>' (id 100 against None)" in refusal(student, teacher)


def test_another_splitting_of_text_is_refused() -> None:
    """One map is not one tokenizer: this one lowers its letters first."""
    student, teacher = pair()
    teacher.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    assert "split 'Hello, world" in refusal(student, teacher)


def test_another_beginning_is_refused() -> None:
    student, teacher = pair()
    teacher.tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", 0)]
    )
    assert "split 'Hello, world" in refusal(student, teacher)


def test_another_end_token_is_refused() -> None:
    message = refusal(*pair(eos_token="<assistant>"))
    assert "'<eos>' (1)" in message
    assert "'<assistant>' (4)" in message


def test_another_chat_template_is_refused_unless_it_is_accepted() -> None:
    student, teacher = pair()
    teacher.tokenizer.chat_template = tiny.TEMPLATE.replace("<assistant>", "<assistant>\n")
    message = refusal(student, teacher)
    assert "'<user>Hi<assistant>'" in message
    assert "teacher.same_chat_template = false" in message
    check_tokenizers(student, teacher, same_chat_template=False)


def test_templates_that_write_the_same_are_the_same() -> None:
    student, teacher = pair()
    teacher.tokenizer.chat_template = "{# the same #}" + tiny.TEMPLATE
    check_tokenizers(student, teacher)


def test_a_head_smaller_than_the_tokenizer_is_refused() -> None:
    """Its last tokens could be sampled from prompts, and never scored."""
    student, teacher = pair()
    teacher.model.resize_token_embeddings(99)
    teacher.vocabulary = 99
    with pytest.raises(ContractError, match=r"ids up to 99.*only 99 rows.*resize_token_embeddings"):
        check_tokenizers(student, teacher)


# Chat templates


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_template_on_one_side_alone_is_for_the_user_to_decide(side: str) -> None:
    """A base student and an instruct teacher would both be given raw text."""
    student, teacher = pair()
    (student if side == "student" else teacher).tokenizer.chat_template = None
    message = refusal(student, teacher)
    assert "none" in message
    assert "teacher.same_chat_template = false" in message
    check_tokenizers(student, teacher, same_chat_template=False)


def test_two_models_without_a_template_are_alike() -> None:
    student, teacher = pair()
    student.tokenizer.chat_template = teacher.tokenizer.chat_template = None
    check_tokenizers(student, teacher)


RAISES = "{{ raise_exception('roles must alternate') }}"
BROKEN = "{% for message in messages %}"
NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + (
    tiny.TEMPLATE
)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(("template", "reason"), [(RAISES, "roles must alternate"), (BROKEN, "end of template|endfor")])
def test_a_template_that_raises_is_named(side: str, template: str, reason: str) -> None:
    student, teacher = pair()
    (student if side == "student" else teacher).tokenizer.chat_template = template
    with pytest.raises(ContractError, match=rf"chat template of {side} .*cannot be rendered.*({reason})"):
        check_tokenizers(student, teacher)


def test_named_templates_without_a_default_are_named() -> None:
    student, teacher = pair()
    teacher.tokenizer.chat_template = {"rag": tiny.TEMPLATE, "tool": tiny.TEMPLATE}
    with pytest.raises(ContractError, match=r"chat template of teacher .*cannot be rendered"):
        check_tokenizers(student, teacher)


def test_templates_that_both_want_a_system_message_are_compared_with_one() -> None:
    student, teacher = pair()
    student.tokenizer.chat_template = teacher.tokenizer.chat_template = NEEDS_SYSTEM
    check_tokenizers(student, teacher)
    teacher.tokenizer.chat_template = NEEDS_SYSTEM.replace("<assistant>", "<assistant>\n")
    assert "different chat templates" in refusal(student, teacher)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_templates_that_differ_in_what_one_message_does_not_show_are_refused(role: str) -> None:
    """A run with a system message, or with several turns, would ask the teacher in a form that it does not know."""
    student, teacher = pair()
    shown = "message['role'] + '>' + message['content']"
    assert shown in tiny.TEMPLATE
    hidden = f"(message['role'] if message['role'] != '{role}' else 'user') + '>' + message['content']"
    teacher.tokenizer.chat_template = tiny.TEMPLATE.replace(shown, hidden)
    assert "different chat templates" in refusal(student, teacher)
    check_tokenizers(student, teacher, same_chat_template=False)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_chat_that_one_template_does_not_take_is_not_held_against_it(role: str) -> None:
    student, teacher = pair()
    raises = "{% for message in messages %}{% if message['role'] == '" + role + "' %}{{ raise_exception('no') }}"
    teacher.tokenizer.chat_template = raises + "{% endif %}{% endfor %}" + tiny.TEMPLATE
    check_tokenizers(student, teacher)


def test_long_templates_are_shown_from_where_they_differ() -> None:
    student, teacher = pair()
    for lm, end in ((student, "1"), (teacher, "2")):
        lm.tokenizer.chat_template = "-" * 1000 + end + "-" * 1000
    assert re.search(r"\.\.\.'-{50}1-+' against \.\.\.'-{50}2-+'", refusal(student, teacher))


def test_templates_that_both_raise_always_are_named() -> None:
    student, teacher = pair()
    student.tokenizer.chat_template = teacher.tokenizer.chat_template = RAISES
    with pytest.raises(ContractError, match=r"chat template of student .*cannot be rendered"):
        check_tokenizers(student, teacher)


def test_the_reference_of_an_objective_is_compared_by_its_own_name() -> None:
    ours, theirs = tiny.character_tokenizer(), tiny.character_tokenizer(eos_token="<assistant>")
    with pytest.raises(ContractError, match="the reference would score every ending as wrong"):
        check_same_tokenizer("s", ours, "r", theirs, role="reference", accept="")
    theirs = tiny.character_tokenizer()
    theirs.chat_template = None
    with pytest.raises(
        ContractError, match=r"student s and reference r have different chat templates.*one template\.$"
    ):
        check_same_tokenizer("s", ours, "r", theirs, role="reference", accept="")
