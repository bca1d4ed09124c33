"""Which bytes a token says. Tokens of two tokenizers can be compared in bytes and in nothing else.

    token_bytes = TokenBytes(tokenizer)
    token_bytes.of([15339, 0])       [b"hello", None]: a special token says nothing

A token's bytes are those it adds in the middle of a text, so `▁word` is " word" wherever it stands. They are found from
the tokenizer's decoder: byte-level BPE, SentencePiece (with and without byte fallback), and decoders that join tokens
as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.errors import ModelError
from limbeck.models.chat import name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = ("Hello, world! 12+34=46", "naïve café — 東京 🙂\n\tdef f():  pass")
FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
JOINS = ("Fuse", "Strip", "ByteFallback", "Replace", "Metaspace")  # decoders that are a rule for each token on its own


class TokenBytes:
    """Raises `ModelError` for a tokenizer whose tokens have no bytes of their own (WordPiece), or not what it reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._says = _rule(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._added = {id_: None if token.special else token.content.encode() for id_, token in added}
        self._known: dict[int, bytes | None] = {}
        for text in PROBES:
            self._prove(tokenizer(text, add_special_tokens=False)["input_ids"])

    def of(self, ids: Iterable[int]) -> list[bytes | None]:
        """Of each token; None for a special one. An id without a token says b""."""
        return [self._of(int(id_)) for id_ in ids]

    def all(self) -> dict[int, bytes]:
        """Of every token that says something."""
        ids = sorted(set(self.tokenizer.get_vocab().values()))
        return {id_: said for id_, said in zip(ids, self.of(ids), strict=True) if said}

    def _of(self, id_: int) -> bytes | None:
        if id_ not in self._known:
            if id_ in self._added:
                self._known[id_] = self._added[id_]
            else:
                token = self.tokenizer.convert_ids_to_tokens(id_)
                self._known[id_] = b"" if token is None else self._says(token)
        return self._known[id_]

    def _prove(self, ids: Sequence[int]) -> None:
        """The tokens' bytes are what the tokenizer itself makes of them."""
        said = b"".join(part for part in self.of(ids) if part is not None).decode(errors="replace")
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if said not in (text, f" {text}"):  # decoders of SentencePiece drop a first blank
            raise ModelError(
                f"the tokens of {name_of(self.tokenizer)} say {said!r}, but the tokenizer reads {text!r}: its decoder "
                f"is not understood. {SUPPORTED}"
            )


SUPPORTED = (
    "A view of kind 'retokenized' takes byte-level BPE, SentencePiece, and tokenizers that join tokens as they are."
)


def _rule(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"the tokenizer {name_of(tokenizer)} has no tokenizer.json. {SUPPORTED}")
    decoder = json.loads(backend.to_str())["decoder"]
    steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return _of_byte_level
    if not kinds or not set(kinds) <= set(JOINS):
        raise ModelError(
            f"the tokenizer {name_of(tokenizer)} has the decoder {', '.join(kinds) or 'none'}, whose tokens have no "
            f"bytes of their own. {SUPPORTED}"
        )
    return lambda token: _of_pieces(token, steps)


def _of_pieces(token: str, steps: Sequence[dict[str, Any]]) -> bytes:
    for step in steps:
        found = FALLBACK.fullmatch(token) if step["type"] == "ByteFallback" else None
        if found:
            return bytes([int(found[1], 16)])
        if step["type"] == "Replace" and "String" in step["pattern"]:
            token = token.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
    return token.encode()


def _of_byte_level(token: str) -> bytes:
    if all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token)
    return token.encode()  # an added token, which stands as it is


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for those from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_characters()
