"""Tiny tokenizers of the kinds that models have, trained on a few lines, as transformers load them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then the dog jumps over the fox",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # 5",
    "naïve café, über straße — 東京 大阪 京都 🙂🙃 1234567890 12+34=46",
    "hello hello helping held help; worlds wording word world",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ '</s>' }}{% endif %}{% endfor %}"
)


TAGS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LINES = TAGS.replace("|>{{ message['content'] }}<|end|>", "|>\n{{ message['content'] }}<|end|>\n").replace(
    "<|assistant|>", "<|assistant|>\n"
)
TAG_NAMES = ("<unk>", "<|user|>", "<|assistant|>", "<|end|>")
INST_NAMES = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")


def _wrap(
    backend: Tokenizer, special: Sequence[str], eos: str, template: str | None, *, rstrip: bool = False
) -> PreTrainedTokenizerFast:
    names = [AddedToken(name, special=True, normalized=False, rstrip=rstrip) for name in special]
    backend.add_special_tokens(names)
    folder = Path(mkdtemp())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@cache
def byte_level(
    size: int = 400,
    *,
    template: str | None = CHATML,
    nfc: bool = False,
    blank: bool = False,
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos: str = "<|endoftext|>",
) -> PreTrainedTokenizerFast:
    """Like GPT-2, Llama 3 and Qwen. With a `blank` before every text, like RoBERTa."""
    backend = Tokenizer(models.BPE())
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrap(backend, special, eos, template)


@cache
def sentence_piece(
    size: int = 200,
    template: str | None = INST,
    special: Sequence[str] = ("<unk>", "<s>", "</s>"),
    eos: str = "</s>",
    *,
    rstrip: bool = False,
) -> PreTrainedTokenizerFast:
    """Like Llama 2 and Mistral: a blank before every text, bytes for what has no token. With `rstrip`, like Phi-3."""
    trained = Tokenizer(models.BPE())
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = spaces
    trained.train_from_iterator(CORPUS[:1] + CORPUS[3:], trainers.BpeTrainer(vocab_size=size, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    vocab = {name: id_ for id_, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in state["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = spaces
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(backend, special, eos, template, rstrip=rstrip)


@cache
def unigram(
    scheme: str = "always",
    template: str | None = TAGS,
    special: Sequence[str] = TAG_NAMES,
    eos: str = "<|end|>",
    *,
    strips: bool = False,
) -> PreTrainedTokenizerFast:
    """Like T5 and Gemma. With `strips` its normalizer drops the blanks at a text's end."""
    backend = Tokenizer(models.Unigram())
    if strips:
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return _wrap(backend, special, eos, template)


@cache
def characters() -> PreTrainedTokenizerFast:
    """The demo's: a token each for ASCII, and one for everything else."""
    from limbeck.models.loading import load_tokenizer

    return load_tokenizer("demo:student")  # type: ignore[return-value]


@cache
def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return _wrap(backend, ["[UNK]"], "[UNK]", None)
