"""Prove a server without a recipe: `limbeck check --teacher sglang=http://... --temperature 0.7`.

Imports no torch: what is checked is elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from limbeck.config.teacher import StatesTeacherConfig
from limbeck.contract.remote import prove_remote
from limbeck.contract.tokenizers import PROBE_TEXTS
from limbeck.errors import RecipeError, TeacherError
from limbeck.formatting import shown
from limbeck.records import ProbeResult
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.connect import BACKENDS, connect
from limbeck.teachers.remote import Proof
from limbeck.wire.score import WireError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.head import Head

SMALLEST_VOCABULARY = 256  # bytes: no model has fewer
LARGEST_VOCABULARY = 2**19  # more than any model in use: an over-estimate only widens certificates
CHECK_TEXTS = (
    *PROBE_TEXTS[:2],
    "The quick brown fox jumps over the lazy dog, and 3 * 17 = 51.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
)
SUPPORT = 20


def check_teacher(
    target: str,
    temperature: float = 1.0,
    *,
    vocabulary: int | None = None,
    tokenizer: str | None = None,
    retry_seconds: float = 5.0,
    **options: Any,
) -> tuple[ProbeResult, ...]:
    """`target` is KIND=URL, or KIND=URL,URL for replicas; `options` are keys of the teacher's recipe table.

    Raises `RecipeError` for another form, `ContractError` (with the results) where a probe fails, and
    `TeacherError` for a server that cannot be asked at all.
    """
    kind, equals, urls = target.partition("=")
    if not equals or kind not in BACKENDS:
        raise RecipeError(
            f"--teacher begins with {shown(kind)}, expected KIND=URL with KIND one of {', '.join(BACKENDS)}"
        )
    if not 0 < temperature < float("inf"):
        raise RecipeError(f"--temperature must be a finite number above 0, got {temperature}")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        section = BACKENDS[kind].config(url=tuple(urls.split(",")), retry_seconds=retry_seconds, **given)
    except ValidationError as error:
        faults = "; ".join(f"{item['msg'].removeprefix('Value error, ')}" for item in error.errors())
        raise RecipeError(f"--teacher {kind}=...: {faults}") from None
    ours = None
    if tokenizer is not None:
        from limbeck.models.loading import load_tokenizer

        ours = load_tokenizer(tokenizer)
    head = None
    if isinstance(section, StatesTeacherConfig) and section.head is not None:
        import torch

        from limbeck.config.base import ModelConfig
        from limbeck.models.loading import load_model

        head = load_model(ModelConfig(model=section.head), torch.device("cpu")).head().detach()
        vocabulary = vocabulary or head.vocabulary
    size = _size(section.top_logprobs, vocabulary, None if ours is None else len(ours))
    # Without a count of its tokens the largest there may be bounds the certificates, and no more is known.
    client = connect("at the server", section, size, size, counted=vocabulary is not None)
    try:
        return asyncio.run(_check(client, temperature, ours, head, min(SUPPORT, size))).results
    except WireError as error:
        raise TeacherError(f"{error}. Is the server up, and of kind {kind}?") from None


def _size(top_logprobs: int, vocabulary: int | None, tokens: int | None) -> int:
    """An upper bound of the vocabulary.

    Raises `RecipeError` for a K that may be above the vocabulary: some servers do not survive that.
    """
    surely = tokens or SMALLEST_VOCABULARY
    if vocabulary is None and top_logprobs > surely:
        raise RecipeError(
            f"--top-logprobs {top_logprobs} may be more than the server's vocabulary, which some servers do not "
            "survive. Give --vocabulary, the rows of its output head."
        )
    return vocabulary or LARGEST_VOCABULARY


async def _check(
    client: RemoteClient, temperature: float, tokenizer: PreTrainedTokenizerBase | None, head: Head | None, support: int
) -> Proof:
    try:
        texts = [tuple(ids) for ids in [await _split(client, text, tokenizer) for text in CHECK_TEXTS] if len(ids) > 3]
        tokens = list(dict.fromkeys(token for text in texts for token in text))
        return await prove_remote(client, texts, tokens[:16], temperature, tokenizer, head, support)
    finally:
        await client.close()


async def _split(client: RemoteClient, text: str, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Probe tokens: by our tokenizer, else by the server's, else the bytes, which every vocabulary has room for."""
    if tokenizer is not None:
        return list(tokenizer(text).input_ids)
    try:
        return await client.tokenize(text)
    except WireError as error:
        if error.kind != "refused":
            raise
        return [byte % min(90, client.vocabulary) for byte in text.encode()]
