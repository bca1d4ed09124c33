"""Rows with completions: which tokens follow the prompt, where they end, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.config.sources import DatasetSourceConfig
from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.completions import Completion, CompletionEncoder, Limits, load_completions
from tests import tiny

EOS = 1
LIMITS = Limits(stop_ids=(EOS,), vocabulary=1000, max_tokens=30, context=60)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml() -> PreTrainedTokenizerFast:
    tokenizer = tiny.character_tokenizer((*tiny.ALPHABET, "\n", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def loaded(
    tmp_path: Path,
    *rows: dict[str, Any],
    tokenizer: Any = None,
    limits: Limits = LIMITS,
    chat: bool = True,
    **more: Any,
) -> list[Completion]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = CompletionEncoder(tokenizer or tiny.character_tokenizer(), chat, more.pop("system", None))
    return load_completions(DatasetSourceConfig(path=str(path), **more), encoder, limits)


def said(tokenizer: Any, one: Completion) -> tuple[str, str]:
    return tokenizer.decode(one.prompt.token_ids), tokenizer.decode(one.token_ids)


def test_a_completion_follows_the_prompt_that_the_student_gets_and_ends_with_a_stop_token(tmp_path: Path) -> None:
    tokenizer = tiny.character_tokenizer()
    (raw,) = loaded(tmp_path, {"prompt": "1+1=", "completion": "2"}, chat=False)
    assert said(tokenizer, raw) == ("1+1=", "2<eos>")
    (chat,) = loaded(tmp_path, {"prompt": "1+1=", "completion": "2", "id": "sum"}, system="Add.")
    assert said(tokenizer, chat) == ("<system>Add.<user>1+1=<assistant>", "2<eos>")
    assert (chat.prompt.id, chat.prompt.task) == ("sum", "rows")


def test_the_end_of_a_turn_that_the_template_writes_is_the_stop_token_where_the_model_has_it(tmp_path: Path) -> None:
    tokenizer = chatml()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n"}]}]
    (stopping,) = loaded(tmp_path, *rows, tokenizer=tokenizer, limits=Limits((EOS, end), 1000, 30, None))
    assert said(tokenizer, stopping)[1] == "b\n<|im_end|>"
    (other,) = loaded(tmp_path, *rows, tokenizer=tokenizer)
    assert said(tokenizer, other)[1] == "b\n<|im_end|>\n<eos>"


def test_of_a_chat_only_the_last_message_is_the_completion(tmp_path: Path) -> None:
    user, first, last = ({"role": r, "content": c} for r, c in (("user", "u"), ("assistant", "x"), ("assistant", "y")))
    whole = {"messages": [user, first, user, last]}
    split = {"prompt": [user, first, user], "completion": [last]}
    mixed = {"prompt": [user, first, user], "completion": "y"}
    tokenizer = tiny.character_tokenizer()
    for row in (whole, split, mixed):
        (one,) = loaded(tmp_path, row)
        assert said(tokenizer, one) == ("<user>u<assistant>x<user>u<assistant>", "y<eos>")


@pytest.mark.parametrize(
    ("row", "more", "why"),
    [
        ({"prompt": "a"}, {}, "line 1: there is no 'completion'"),
        ({"messages": [{"role": "user", "content": "a"}]}, {}, "there is no 'completion'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, {}, "expected a list of one message or more"),
        ({"prompt": "a", "completion": 7}, {}, "'completion' is 7"),
        ({"prompt": [], "completion": 7}, {}, "'completion' is 7"),
        ({"prompt": "a", "completion": ""}, {}, "the completion is empty"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, {}, "has to be one too"),
        ({"prompt": "a", "completion": "\ud800"}, {}, "lone surrogate"),
        ({"prompt": "a", "completion": "b<eos>c"}, {}, "goes on after the stop token"),
        ({"prompt": "a", "completion": "b" * 30}, {}, "rollout.max_tokens = 30"),
        ({"prompt": "a" * 55, "completion": "b"}, {}, "a context of 60"),
        ({"prompt": "a", "completion": "b" * 30}, {"too_long": "drop"}, "1 of 1 rows are too long"),
        ({"prompt": "a", "completion": "b"}, {"limits": Limits((EOS,), 20, 9, 9)}, "share ids 0 to 19"),
        ({"prompt": "a", "completion": "b", "messages": []}, {}, "expected one of the two"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: Any, more: Any, why: str) -> None:
    with pytest.raises(DataError) as error:
        loaded(tmp_path, row, **more)
    assert why in str(error.value)


@pytest.mark.parametrize("completion", ["東京", "b東京c", "b\u0301x"])
@pytest.mark.parametrize("chat", [True, False])
def test_text_that_the_tokenizer_cannot_say_is_named_and_never_trained(
    tmp_path: Path, completion: str, chat: bool
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl.*2.*has no tokens for.*<unk>"):
        loaded(tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": completion}, chat=chat)


def test_another_spelling_of_the_same_text_is_the_same(tmp_path: Path) -> None:
    tokenizer = tiny.character_tokenizer((*tiny.ALPHABET, "é"))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    (one,) = loaded(tmp_path, {"prompt": "a", "completion": "e\u0301"}, tokenizer=tokenizer)
    assert said(tokenizer, one)[1] == "é<eos>"


def test_a_chat_in_json_text_is_read_as_in_a_task(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (text,) = loaded(tmp_path, {"messages": json.dumps(chat)})
    (whole,) = loaded(tmp_path, {"messages": chat})
    assert (text.prompt.token_ids, text.token_ids) == (whole.prompt.token_ids, whole.token_ids)
    with pytest.raises(DataError, match=r"rows\.jsonl.*1.*'messages' is text that is not JSON"):
        loaded(tmp_path, {"messages": "[{"})


def test_what_the_teacher_sees_has_to_fit_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def as_seen(prompt: Prompt) -> tuple[int, int]:
        if prompt.text == "c":
            raise DataError("it cannot be rendered")
        return {"a": 18, "b": 19}[prompt.text], 20

    limits = replace(LIMITS, as_seen=as_seen)
    rows = [{"prompt": name, "completion": "1"} for name in "abc"]
    with pytest.raises(DataError, match=r"has 19 tokens as its teacher sees it and .* of 2; .* context of 20"):
        loaded(tmp_path, *rows[:2], limits=limits)
    assert len(loaded(tmp_path, *rows[:2], limits=limits, too_long="drop")) == 1
    assert "1 of 2 rows are too long" in caplog.text
    with pytest.raises(DataError, match=r"rows\.jsonl.*3.*it cannot be rendered"):
        loaded(tmp_path, *rows, limits=limits)


def test_too_long_ones_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 30}]
    assert len(loaded(tmp_path, *rows, too_long="drop")) == 1
    assert "1 of 2 rows are too long" in caplog.text


def test_a_template_that_rewrites_the_conversation_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny.character_tokenizer()
    tokenizer.chat_template = "{{ messages|length }}" + tiny.TEMPLATE
    with pytest.raises(DataError, match="in another way than the prompt"):
        loaded(tmp_path, {"prompt": "a", "completion": "b"}, tokenizer=tokenizer)


def merging() -> PreTrainedTokenizerFast:
    """Bytes, some of which merge: a prompt's last token and a completion's first may be one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ġ", "a"), ("b", "Ġ"), ("a", "a")]
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<eos>", *alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


MERGING = merging()


@settings(deadline=None)
@given(st.text("ab é", min_size=1, max_size=8), st.text("ab é\n", min_size=1, max_size=8))
def test_prompt_and_completion_say_what_they_say_whatever_would_merge(prompt: str, completion: str) -> None:
    encoder = CompletionEncoder(MERGING, chat=False)
    ids = encoder.text(prompt)
    asked = Prompt("a", tuple(ids), text=prompt)
    found = encoder.completion(asked, {"role": "assistant", "content": completion}, (EOS,))
    assert found[-1] == EOS
    assert MERGING.decode([*ids, *found[:-1]]) == prompt + completion
