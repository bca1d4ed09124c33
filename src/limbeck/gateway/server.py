"""One HTTP server for all sessions of a run, in the run's own event loop.

    POST /v1/chat/completions        OpenAI's schema
    POST /inference/v1/generate      token ids in and out, as the train client of `verifiers` asks
    GET  /v1/models                  the student's name, and `max_model_len`

All of them also stand under /sessions/ID, which is the base URL of one session. Elsewhere the bearer token says whose
request it is.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import socket
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import RecipeError
from limbeck.gateway.api_errors import ApiError
from limbeck.gateway.rendering import Renderer
from limbeck.gateway.report import SessionReport
from limbeck.gateway.session import Desk, GatewaySession
from limbeck.gateway.tool_calls import check_format, detect
from limbeck.protocols import Generate
from limbeck.wire.listening import base_url, listen

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from transformers import PreTrainedTokenizerBase

GRACE = 1  # seconds that answers under way have at the end: their sessions have ended before


@dataclass(frozen=True, slots=True)
class Address:
    """Where one session is. Either of the two, the path or the key, is enough to find it."""

    id: str
    base_url: str  # "http://127.0.0.1:41234/sessions/5f0c.../v1"
    api_key: str


class Gateway:
    """Serves sessions, each around its own `Generate`. Use as an async context manager, in the run's event loop.

    `model`: the name that agents may ask for. `context`: the most tokens of prompt and answer together; None: no limit.
    `tool_format`: how the student writes tool calls, "auto" to see it from the chat template.
    `keep_thinking`: go on after the exact ids also where the chat template leaves out earlier thinking.
    `template_options`: go to the chat template, such as {"enable_thinking": False}.

    Raises `RecipeError` for a tool format that is not known, and where the extra is not installed.
    """

    app: FastAPI  # more routes may be added before it is entered

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: str = "student",
        context: int | None = None,
        tool_format: str = "auto",
        keep_thinking: bool = False,
        template_options: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        try:
            from limbeck.gateway.routes import make_app
        except ImportError as error:
            raise RecipeError(f"agents need {error.name}: pip install 'limbeck[gateway]'") from None
        own = copy.deepcopy(tokenizer)  # the run uses its own meanwhile
        fmt = detect(own.chat_template) if tool_format == "auto" else check_format(tool_format)
        self._thread = ThreadPoolExecutor(1, "limbeck-gateway")
        self._desk = Desk(Renderer(own, context, template_options, fmt), self._thread, model, keep_thinking)
        self._sessions: dict[str, GatewaySession] = {}
        self._keys: dict[str, str] = {}  # of all sessions, ended ones too: their names
        self._host, self._port = host, port
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._listening: list[socket.socket] = []
        self.strangers: Counter[str] = Counter()  # errors of requests that belong to no session
        self.app = make_app(self)

    @property
    def url(self) -> str:
        """ "http://127.0.0.1:41234" """
        return base_url(self._host, self._port)

    async def __aenter__(self) -> Gateway:
        """Raises `RecipeError` for an address that cannot be listened at."""
        from limbeck.gateway.routes import make_server

        self._listening = [listen(self._host, self._port, "port")]
        self._port = self._listening[0].getsockname()[1]
        self._server = make_server(self.app, GRACE)
        self._serving = asyncio.create_task(self._server.serve(self._listening))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise RecipeError(f"the gateway at {self.url} ended before it began")
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *error: object) -> None:
        for id_ in list(self._sessions):
            self.close(id_)
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)
            if self._serving.cancelled():  # as a run that ends does with all of its tasks: nothing is closed by then
                await self._server.shutdown(self._listening)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def open(self, generate: Generate, name: str = "") -> Address:
        """A session of its own. `name` is the prompt's id, for messages."""
        id_, key = secrets.token_hex(8), f"limbeck-{secrets.token_hex(16)}"
        self._sessions[id_] = GatewaySession(id_, key, name or id_, generate, self._desk)
        self._keys[key] = id_
        return Address(id_, f"{self.url}/sessions/{id_}/v1", key)

    def close(self, id: str) -> SessionReport:
        """Ends a session: requests under way are answered 410, later ones too, and `generate` is asked no more.

        Raises `KeyError` for one that is not open.
        """
        session = self._sessions.pop(id)
        session.close()
        return session.report

    def find(self, id: str | None, authorization: str | None) -> GatewaySession:
        """Whose request it is. Raises `ApiError`, counted with the session whose key was sent and with no other."""
        key = _key(authorization)
        owner = self._keys.get(key)
        wanted = owner if id is None else id
        session = self._sessions.get(wanted or "")
        if session is not None and key in ("", session.key):
            return session
        if session is not None:
            what = "the key is not that of the session in the address: send its own, or none"
            error = ApiError(401, "invalid_api_key", what)
        elif wanted in self._keys.values():
            what = f"session {wanted} has ended: nothing is sampled for it any more"
            error = ApiError(410, "session_ended", what)
        else:
            error = ApiError(401, "invalid_api_key", "no session has this address or key: each rollout has its own")
        sender = self._sessions.get(owner or "")
        if sender is not None:
            sender.refuse(error)
        else:
            self.strangers[error.code] += 1
        raise error

    def model_card(self) -> dict[str, Any]:
        card = {"id": self._desk.model, "object": "model", "created": 0, "owned_by": "limbeck"}
        context = self._desk.renderer.context
        return card if context is None else card | {"max_model_len": context}


def _key(authorization: str | None) -> str:
    """Of "Bearer KEY", the scheme in any case; nothing where no key was sent."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else (authorization or "").strip()
