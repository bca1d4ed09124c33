"""The proven teacher of a hook. The proof runs once for each server and temperature, before the first score is used.

Its texts are the ends of the first `SAMPLES` samples that ask, each of another length, and the check's own texts in
the student's tokens. It begins when so many wait, or `GATHERING` seconds after the first: samples may come one at a
time. From the environment:

    LIMBECK_TEACHER_KIND    sglang (default), limbeck, vllm
    LIMBECK_TOKENIZER       folder of the student's tokenizer, where it is not that of `args.hf_checkpoint`

and, as the keys of a recipe's `[teacher]` of the same name, LIMBECK_BAKED, LIMBECK_TOKEN_ENV, LIMBECK_TOP_LOGPROBS,
LIMBECK_TIMEOUT, LIMBECK_RETRY_SECONDS, LIMBECK_PROBE_TOLERANCE and LIMBECK_TRUST_START.
"""

from __future__ import annotations

import asyncio
import math
import os
from contextlib import suppress
from typing import Any, NamedTuple

from pydantic import ValidationError

from limbeck.contract.check import CHECK_TEXTS, LARGEST_VOCABULARY
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError, DataError, RecipeError
from limbeck.formatting import shown
from limbeck.teachers.connect import BACKENDS, connect
from limbeck.teachers.remote import RemoteTeacher

SAMPLES = 4
GATHERING = 1.0
LONGEST, SHORTER = 64, 8  # tokens of the first text, and by how many each next one is shorter
SHORTEST = 8
OPTIONS = {
    f"LIMBECK_{key.upper()}": key
    for key in ("baked", "token_env", "top_logprobs", "timeout", "retry_seconds", "probe_tolerance", "trust_start")
}
ROUTES = ("/generate", "/v1/completions", "/limbeck/score")


class Wanted(NamedTuple):
    """Everything that the proof depends on: a change of any of it is proven again."""

    url: str
    temperature: float
    tokenizer: str
    kind: str
    options: tuple[tuple[str, str], ...]  # variables of `OPTIONS` that are set


class _Proof:
    def __init__(self, wanted: Wanted) -> None:
        self.texts: list[tuple[int, ...]] = []
        self.enough = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._prove(wanted))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever waits raises it

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    def add(self, tokens: list[int]) -> None:
        text = tuple(tokens[-(LONGEST - SHORTER * len(self.texts)) :])
        if len(self.texts) < SAMPLES and len(text) >= SHORTEST and text not in self.texts:
            self.texts.append(text)
        if len(self.texts) == SAMPLES:
            self.enough.set()

    async def _prove(self, wanted: Wanted) -> RemoteTeacher:
        try:
            return await self._proven(wanted)
        except ContractError as error:
            raise ContractError(_in_variables(str(error)), error.results) from None
        except RecipeError as error:
            raise RecipeError(_in_variables(str(error))) from None

    async def _proven(self, wanted: Wanted) -> RemoteTeacher:
        from limbeck.models.loading import load_tokenizer  # torch

        tokenizer = await asyncio.to_thread(load_tokenizer, wanted.tokenizer)
        client = connect("teacher", _section(wanted), LARGEST_VOCABULARY, len(tokenizer), counted=False)
        try:
            with suppress(TimeoutError):  # they come one at a time: the check's texts are several in any case
                await asyncio.wait_for(self.enough.wait(), GATHERING)
            own = [tuple(tokenizer(text).input_ids) for text in CHECK_TEXTS]
            texts = [*self.texts, *(text for text in own if len(text) >= SHORTEST)]
            ids = list(dict.fromkeys(token for text in texts for token in text))[:16]
            return RemoteTeacher(client, await prove_remote(client, texts, ids, wanted.temperature, tokenizer))
        except BaseException:
            await client.close()
            raise


_proofs: dict[tuple[asyncio.AbstractEventLoop, Wanted], _Proof] = {}


async def proven_teacher(args: Any, url: Any, tokens: list[int]) -> RemoteTeacher:
    """The teacher behind `url`. A sample waits while it is proven; a proof that failed is tried again by the next one.

    Raises `LimbeckError` for a server that is refused, and for settings that name none.
    """
    key = asyncio.get_running_loop(), _wanted(args, url)  # a teacher's connections live on one loop
    proof = _proofs.get(key)
    if proof is None or proof.failed:
        proof = _proofs[key] = _Proof(key[1])
    proof.add(tokens)
    return await asyncio.shield(proof.task)


def rollout_temperature(args: Any) -> float:
    """Raises `RecipeError` for what is no temperature."""
    given = getattr(args, "rollout_temperature", None)
    try:
        temperature = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        temperature = math.nan
    if not 0 < temperature < math.inf:
        raise RecipeError(
            f"rollout_temperature is {shown(given)}, expected a number above 0: at 0 the student has no distribution "
            "to distil into. Set --rollout-temperature."
        )
    return temperature


def _wanted(args: Any, url: Any) -> Wanted:
    if not isinstance(url, str) or not url:
        raise RecipeError(f"rm_url is {shown(url)}, expected the address of the teacher's server, as --rm-url gives it")
    tokenizer = os.environ.get("LIMBECK_TOKENIZER") or getattr(args, "hf_checkpoint", None)
    if not isinstance(tokenizer, str | os.PathLike):
        raise RecipeError(
            f"hf_checkpoint is {shown(tokenizer)}, and the teacher's tokenizer has to be compared with the student's: "
            "a permuted vocabulary scores like any other. Set --hf-checkpoint, or LIMBECK_TOKENIZER to a folder."
        )
    return Wanted(
        _base(url),
        rollout_temperature(args),
        os.fspath(tokenizer),
        os.environ.get("LIMBECK_TEACHER_KIND", "sglang"),
        tuple((variable, os.environ[variable]) for variable in OPTIONS if os.environ.get(variable)),
    )


def _base(url: str) -> str:
    """The server of an address that names a route."""
    base = url.rstrip("/")
    return next((base.removesuffix(route) for route in ROUTES if base.endswith(route)), base)


def _section(wanted: Wanted) -> Any:
    """The recipe's table that these settings amount to. Raises `RecipeError`."""
    if wanted.kind not in BACKENDS:
        raise RecipeError(f"LIMBECK_TEACHER_KIND = {wanted.kind!r}, expected one of {', '.join(BACKENDS)}")
    given: dict[str, Any] = {OPTIONS[variable]: value for variable, value in wanted.options}
    try:
        # These trainers cannot mask a position, so none may be uncertain.
        return BACKENDS[wanted.kind].config(url=wanted.url, max_rescale_dropped=0.0, **given)
    except ValidationError as error:
        named = {key: variable for variable, key in OPTIONS.items()}
        faults = [
            (str((*fault["loc"], "url")[0]), fault["msg"].removeprefix("Value error, ")) for fault in error.errors()
        ]
        said = (f"{named.get(key, key)} = {given.get(key, wanted.url)!r}: {message}" for key, message in faults)
        raise RecipeError("; ".join(said)) from None


def _in_variables(message: str) -> str:
    """A remedy that names keys of a recipe, as someone without a recipe follows it."""
    for variable, key in OPTIONS.items():
        message = message.replace(f"teacher.{key}", variable)
    return message.replace("rollout.temperature", "--rollout-temperature")


def number(value: Any, what: str) -> float:
    """Raises `DataError` for what is no finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{what} is {shown(value)}, expected a finite number")
    return found
