"""Two models of one tokenizer: the same map, the same splitting, the same end, the same chat template.

Nothing is changed by comparing. Which vocabulary two models are compared over is for the caller to derive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.errors import ContractError
from limbeck.records import ProbeResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.causal_lm import CausalLM

PLAIN_TEXTS = (
    "Hello, world! 12+34=46",
    "  leading spaces,\ttabs\nand lines",
    "naïve café — 東京 🙂",
)
PROBE_TEXTS = (*PLAIN_TEXTS, "<|im_end|></s>")
CHAT = ({"role": "user", "content": "Hi"},)
WITH_SYSTEM = ({"role": "system", "content": "Be brief."}, *CHAT)  # for templates that raise without one
TURNS = (*CHAT, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And now?"})
ACCEPT = "teacher.same_chat_template = false"
SHOWN = 200  # characters of a rendered template
ONE_FAMILY = "Distillation compares them token by token: choose models of one tokenizer family."


def check_tokenizers(
    student: CausalLM,
    other: CausalLM,
    same_chat_template: bool = True,
    role: str = "teacher",
    accept: str = ACCEPT,
    own_prompt: bool = False,
) -> ProbeResult:
    """Compare the tokenizers and heads of two loaded models; see `check_same_tokenizer`.

    Embedding tables padded to different sizes over one tokenizer are fine: both distributions are taken over the
    smaller table.
    """
    ours, theirs = student.tokenizer, other.tokenizer
    check_same_tokenizer(student.name, ours, other.name, theirs, same_chat_template, role, accept, own_prompt)
    vocab = student.tokenizer.get_vocab()
    shared, needed = min(student.vocabulary, other.vocabulary), max(vocab.values()) + 1
    if shared < needed:
        raise _refusal(
            f"the tokenizer has ids up to {needed - 1}, but an output head has only {shared} rows.",
            "Resize it with model.resize_token_embeddings(len(tokenizer)).",
            f"{shared} rows",
            f"{needed} or more",
        )
    sizes = f"{student.vocabulary} and {other.vocabulary} rows"
    return ProbeResult("tokenizer", f"{len(vocab)} tokens, {sizes}", f"one map; compared over {shared}")


def check_same_tokenizer(
    student: str,
    ours: PreTrainedTokenizerBase,
    other: str,
    theirs: PreTrainedTokenizerBase,
    same_chat_template: bool = True,
    role: str = "teacher",
    accept: str = ACCEPT,
    own_prompt: bool = False,
) -> ProbeResult:
    """Map, splitting, end and, unless the user decided otherwise, chat template.

    `role` is what `other` is for, such as "reference", and `accept` the setting with which a user accepts another
    chat template; empty where there is none. With `own_prompt` the other has its own chat template and
    special tokens, whose counterparts `teacher_views.relabelling` finds: only plain text must be alike. Raises
    `ContractError`.
    """
    pair = f"student {student} and {role} {other}"
    ours_map, theirs_map = ours.get_vocab(), theirs.get_vocab()
    if own_prompt:
        special = {
            *ours.get_added_vocab(),
            *theirs.get_added_vocab(),
            *ours.all_special_tokens,
            *theirs.all_special_tokens,
        }
        ours_map, theirs_map = ({t: i for t, i in ids.items() if t not in special} for ids in (ours_map, theirs_map))
    if ours_map != theirs_map:
        differing = sorted(t for t in {*ours_map, *theirs_map} if ours_map.get(t) != theirs_map.get(t))
        token = differing[0]
        raise _refusal(
            f"{pair} have different vocabularies: {len(differing)} tokens differ, such as {token!r} (id "
            f"{ours_map.get(token)} against {theirs_map.get(token)}).",
            ONE_FAMILY,
            f"{len(differing)} tokens differ",
            "one map of tokens to ids",
        )
    for text in PLAIN_TEXTS if own_prompt else PROBE_TEXTS:
        if ours(text).input_ids != theirs(text).input_ids:
            raise _refusal(
                f"{pair} share a vocabulary but split {text!r} differently: {ours(text).input_ids[:12]} against "
                f"{theirs(text).input_ids[:12]}.",
                ONE_FAMILY,
                f"{text!r} is split differently",
                "one splitting",
            )
    if own_prompt:
        return ProbeResult("tokenizer", f"{other}: {len(theirs_map)} tokens of plain text", "the student's")
    if ours.eos_token_id != theirs.eos_token_id:
        raise _refusal(
            f"the student ends with token {ours.eos_token!r} ({ours.eos_token_id}), the {role} with "
            f"{theirs.eos_token!r} ({theirs.eos_token_id}): the {role} would score every ending as wrong.",
            "Give both the same eos_token in tokenizer_config.json.",
            f"ends {ours.eos_token!r} and {theirs.eos_token!r}",
            "one end token",
        )
    if same_chat_template:
        _check_templates(f"student {student}", ours, f"{role} {other}", theirs, role, accept)
    return ProbeResult("tokenizer", f"{other}: {len(theirs_map)} tokens", "the student's")


def spellings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Up to two pairs of token sequences with one text: a text's own tokens and its characters'; an id and its text's.

    Empty for a tokenizer that has one sequence for every text.
    """

    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    def decode(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    pairs = []
    for text in PROBE_TEXTS[:2]:
        whole, split = encode(text), [token for character in text for token in encode(character)]
        if whole != split and decode(whole) == decode(split):
            pairs.append((whole, split))
            break
    for token in ids:
        again = encode(decode([token]))
        if again and again != [token] and decode(again) == decode([token]):
            pairs.append(([token], again))
            break
    return pairs


def _check_templates(
    student: str, ours: PreTrainedTokenizerBase, other: str, theirs: PreTrainedTokenizerBase, role: str, accept: str
) -> None:
    """Both render the same chats the same: a message, one after a system's, several turns; or neither exists.

    Raises `ContractError`.
    """
    or_accept = f", or accept the difference with {accept}." if accept else "."
    if not ours.chat_template and not theirs.chat_template:
        return
    both_render = False
    for chat in (CHAT, WITH_SYSTEM, TURNS):
        rendered = {name: _render(tokenizer, chat) for name, tokenizer in ((student, ours), (other, theirs))}
        errors = {name: result for name, result in rendered.items() if isinstance(result, Exception)}
        if errors and (both_render or (len(errors) == len(rendered) and chat is CHAT)):
            continue  # a template need not take every chat, and both may want a system message
        for name, error in errors.items():
            raise _refusal(
                f"the chat template of {name} cannot be rendered: {type(error).__name__}: {error}.",
                f"Correct it in the model's folder{or_accept}",
                "a template that raises",
                "one that renders a user's message",
            )
        if rendered[student] != rendered[other]:
            shown = dict(zip(rendered, _from_first_difference(*rendered.values()), strict=True))
            raise _refusal(
                f"{student} and {other} have different chat templates: {shown[student]} against {shown[other]}. The "
                f"{role} would score answers to prompts in a form that it was not made for.",
                f"Give both one template{or_accept}",
                "two chat templates" if None not in rendered.values() else "one chat template for two models",
                "one for both, or none",
            )
        both_render = True


def _from_first_difference(one: str | None, other: str | None) -> list[str]:
    """Two rendered templates, none where there is none, so that a reader sees in what they differ."""
    pairs = enumerate(zip(one or "", other or "", strict=False))  # one may go on where the other ends
    common = next((place for place, (a, b) in pairs if a != b), min(len(one or ""), len(other or "")))
    start = 0 if common < SHOWN // 2 else common - SHOWN // 4
    return [
        "none" if text is None else f"{'...' if start else ''}{text[start : start + SHOWN]!r}" for text in (one, other)
    ]


def _render(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, str]]) -> Any:
    """The text; None without a template; or what the template raised: it is a program, and may raise anything."""
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    except Exception as error:
        return error


def _refusal(problem: str, remedy: str, measured: str, expected: str) -> ContractError:
    return ContractError(f"{problem} {remedy}", [ProbeResult("tokenizer", measured, expected, ok=False, remedy=remedy)])
