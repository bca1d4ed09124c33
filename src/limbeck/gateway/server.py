"""One HTTP server for all sessions of a run, in the run's own event loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.gateway.report import SessionReport
from limbeck.protocols import Generate

if TYPE_CHECKING:
    from fastapi import FastAPI
    from transformers import PreTrainedTokenizerBase


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
    ) -> None: ...

    @property
    def url(self) -> str:
        """ "http://127.0.0.1:41234" """
        raise NotImplementedError

    async def __aenter__(self) -> Gateway:
        """Raises `RecipeError` for an address that cannot be listened at."""
        raise NotImplementedError

    async def __aexit__(self, *error: object) -> None:
        raise NotImplementedError

    def open(self, generate: Generate, name: str = "") -> Address:
        """A session of its own. `name` is the prompt's id, for messages."""
        raise NotImplementedError

    def close(self, id: str) -> SessionReport:
        """Ends a session: requests under way are answered 410, later ones too, and `generate` is asked no more.

        Raises `KeyError` for one that is not open.
        """
        raise NotImplementedError
