"""Two tokenizers of one token a character, with a chat template and without, and a writer of JSONL."""

from __future__ import annotations

import json
import string

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CONTROL = ["<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def character_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Raw text gets a `<bos>` in front, as with Llama; the chat template writes none."""
    alphabet = [*CONTROL, *string.printable]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=CONTROL[3:],
    )  # fmt: skip
    wrapped.chat_template = template
    return wrapped


@pytest.fixture(scope="session")
def chat() -> PreTrainedTokenizerFast:
    return character_tokenizer(TEMPLATE)


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    return character_tokenizer(None)


@pytest.fixture
def write(tmp_path):
    """Write rows to a JSONL file and return its path; a row that is text is a line as it stands."""

    def write(*rows, name="sums.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write
