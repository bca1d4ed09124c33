"""A served teacher that also answers prompts, by its server's own sampling route.

Log-probs of what it samples are NaN here: a server may give them at any temperature. What the teacher was proven to
give these tokens when it scores them is log mu, and takes their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from limbeck.errors import RecipeError
from limbeck.records import NO_VERSION, Failure, Sampled, SampleRequest
from limbeck.teachers.remote import RemoteTeacher
from limbeck.wire.dialects import JsonDialect
from limbeck.wire.score import WireError


class ServedSampler:
    """Answers by the server of `teacher`; ids from `vocabulary` on are refused. Nothing is ever loaded into it."""

    max_rows: int | None = None
    batches_turns = True

    def __init__(self, teacher: RemoteTeacher, vocabulary: int) -> None:
        dialect = teacher.client.dialect
        if not isinstance(dialect, JsonDialect):
            raise RecipeError(f"teacher {teacher.name} scores and does not sample: remove from = 'teacher'")
        self.teacher, self.dialect, self.vocabulary = teacher, dialect, vocabulary

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """A turn for each request, or a `Failure`."""
        return list(await asyncio.gather(*(self._one(request) for request in unit)))

    async def _one(self, request: SampleRequest) -> Sampled | Failure:
        sampling, client = request.sampling, self.teacher.client
        if self.teacher.proof.method == "baked":  # its logits are divided already
            sampling = replace(sampling, temperature=1.0)
        asked = replace(request, sampling=sampling, top=0)
        try:
            reply = await self.dialect.sample(client.pool, asked, self.vocabulary)
        except WireError as error:
            return Failure(request.key.prompt_id, "sample", error.kind, f"teacher {client.name}: {error}")
        unknown = np.full(len(reply.token_ids), np.nan, dtype=np.float32)
        return Sampled(reply.token_ids, unknown, reply.finish, NO_VERSION)
