"""A client of a scoring server and its replicas, within limits. It concludes nothing: `contract/remote.py` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from limbeck.config.teacher import RemoteTeacherConfig
from limbeck.errors import ContractError, RecipeError
from limbeck.records import ScoreRequest
from limbeck.wire.dialects import Dialect
from limbeck.wire.http import Pool
from limbeck.wire.score import Reply, WireError, top_k


class RemoteClient:
    """Asks `pool` in `dialect`.

    `vocabulary` is the number of tokens the server's distribution has, or more; `largest_k` that number, or less: a K
    above it kills some servers, and a token from there on the student does not have. Unless it is `counted` it is a
    limit of K alone, and how many tokens there are is not known.
    """

    def __init__(
        self, name: str, section: RemoteTeacherConfig, dialect: Dialect, pool: Pool, vocabulary: int, largest_k: int,
        counted: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.section, self.dialect, self.pool = name, section, dialect, pool
        self.vocabulary, self.largest_k, self.counted = vocabulary, largest_k, counted

    async def ask(self, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False) -> Reply:
        """One reply, see `Dialect.ask`.

        Raises `WireError`; `RecipeError` for a K that some servers do not survive; `ContractError` for a token
        beyond `vocabulary`, on which every certificate rests, and for answers of other weights than those before.
        """
        if top_k(request) > self.largest_k:
            raise RecipeError(
                f"teacher {self.name}: top {top_k(request)} of a vocabulary of {self.largest_k}. Lower "
                "objective.support or teacher.top_logprobs."
            )
        with self._same_weights():
            reply = await self.dialect.ask(self.pool, request, url, acknowledges=acknowledges)
        highest = -1 if reply.top_ids is None else int(reply.top_ids.max(initial=-1))
        if highest >= self.vocabulary:
            raise ContractError(
                f"teacher {self.name} answers with token {highest}, but its vocabulary is given as {self.vocabulary}. "
                "Set teacher.vocabulary to the rows of its output head, or more."
            )
        return reply

    async def identity(self, url: str) -> str:
        """The model behind one replica, as far as the server tells. Raises as `ask` does."""
        with self._same_weights():
            return await self.dialect.identity(self.pool, url)

    async def tokenize(self, text: str) -> list[int]:
        """How the server splits `text`. Raises `WireError`."""
        return await self.dialect.tokenize(self.pool, text)

    @contextmanager
    def _same_weights(self) -> Iterator[None]:
        try:
            yield
        except WireError as error:
            if error.kind != "other_model":
                raise
            raise ContractError(
                f"teacher {self.name} drifted: {error}. Nothing was updated in this step. Start the right server "
                "again, or take the other model out from behind this address, then start the same command again."
            ) from error

    async def close(self) -> None:
        await self.pool.close()
