"""How each kind of server is asked: one method a need of the teacher, each over the pooled client.

dialect = JsonDialect("sglang", sglang)
reply = await dialect.ask(pool, request)          # Reply, or WireError
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from limbeck.config.values import HiddenDtype
from limbeck.records import SampleRequest, ScoreRequest
from limbeck.wire import binary, vllm
from limbeck.wire.http import Pool
from limbeck.wire.sample import SampleReply
from limbeck.wire.score import Reply, WireError


class Dialect(Protocol):
    """What scoring needs of a server, whatever it speaks."""

    kind: str
    acknowledges: bool  # whether every server of this kind takes a scoring temperature

    async def ask(
        self, pool: Pool, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False
    ) -> Reply:
        """The reply of any replica, or of the one at `url`. Raises `WireError`.

        With `acknowledges` the request's temperature is sent, and the server must name it in its answer; without,
        none is sent, and an answer that names one all the same must name the request's.
        """
        ...

    async def identity(self, pool: Pool, url: str) -> str:
        """The model behind one replica, as far as the server tells."""
        ...

    async def tokenize(self, pool: Pool, text: str) -> list[int]:
        """How the server splits `text`: by a route for it, else by what it repeats of a text."""
        ...


class JsonDialect:
    """A server that speaks JSON by one of the schemas. `names_model`: requests must name the model."""

    acknowledges = False

    def __init__(self, kind: str, schema: Any, names_model: bool = False) -> None:
        self.kind, self.schema, self.names_model = kind, schema, names_model
        self._model: str | None = None
        self._has_route = True  # for how it splits a text; until it says otherwise

    async def ask(
        self, pool: Pool, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False
    ) -> Reply:
        name = await self._name(pool)
        body = self.schema.write(request, name, acknowledges)
        return await pool.post(
            self.schema.PATH,
            lambda nonce: _dump(body | self.schema.ties(nonce)),
            lambda data, echo: self.schema.read(_load(data), request, acknowledges, echo.expecting(name)),
            url=url,
        )

    async def sample(self, pool: Pool, request: SampleRequest, vocabulary: int) -> SampleReply:
        """One turn; ids from `vocabulary` on are refused."""
        name = await self._name(pool)
        body = self.schema.write_sample(request, name)
        return await pool.post(
            self.schema.PATH,
            lambda nonce: _dump(body | self.schema.ties(nonce)),
            lambda data, echo: self.schema.read_sample(_load(data), request, vocabulary, echo.expecting(name)),
        )

    async def tell(self, pool: Pool, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a command, such as new weights; None where it is empty. Raises `WireError`."""
        packed = _dump(body)
        return await pool.post(path, lambda _: packed, lambda data, _: _load(data) if data.strip() else None)

    async def identity(self, pool: Pool, url: str) -> str:
        return await pool.get(self.schema.IDENTITY_PATH, lambda data, _: self.schema.read_identity(_load(data)), url)

    async def tokenize(self, pool: Pool, text: str) -> list[int]:
        name = await self._name(pool)
        path, body = self.schema.write_tokenize(text, name)
        try:
            if self._has_route:
                return await pool.post(
                    path, lambda _: _dump(body), lambda data, _: self.schema.read_tokenize(_load(data))
                )
        except WireError as error:
            if error.kind != "refused":
                raise
            self._has_route = False
        body = self.schema.write_text(text, name)
        return await pool.post(
            self.schema.PATH, lambda _: _dump(body), lambda data, _: self.schema.read_text(_load(data))
        )

    async def _name(self, pool: Pool) -> str | None:
        if self.names_model and self._model is None:
            self._model = await pool.get(vllm.IDENTITY_PATH, lambda data, _: vllm.read_model_name(_load(data)))
        return self._model


class BinaryDialect:
    """`limbeck serve`, by its own route; identity and tokenisation by vLLM's schema, which it speaks too."""

    kind, acknowledges = "limbeck", True

    def __init__(self, hidden_dtype: HiddenDtype = "float32") -> None:
        self.hidden_dtype = hidden_dtype

    async def ask(
        self, pool: Pool, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False
    ) -> Reply:
        body = binary.write([request], acknowledges, self.hidden_dtype)
        return await pool.post(
            binary.PATH,
            lambda _: body,
            lambda data, echo: binary.read(data, [request], acknowledges, echo, self.hidden_dtype)[0],
            media=binary.MEDIA_TYPE,
            url=url,
        )

    async def identity(self, pool: Pool, url: str) -> str:
        return await pool.get(vllm.IDENTITY_PATH, lambda data, _: vllm.read_identity(_load(data)), url)

    async def tokenize(self, pool: Pool, text: str) -> list[int]:
        path, body = vllm.write_tokenize(text)
        return await pool.post(path, lambda _: _dump(body), lambda data, _: vllm.read_tokenize(_load(data)))


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _load(data: bytes) -> Any:
    """Raises `WireError` for what is not JSON."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise WireError("malformed", f"the answer is not JSON: {error}") from None
