"""`limbeck view`: the page and its data over HTTP, for this machine only unless --host says otherwise.

Everything is read from files when it is asked for; nothing is written, and no path comes from a
request: runs, files and assets are looked up by name among those that are there.
"""

from __future__ import annotations

import json
import re
import webbrowser
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError
from limbeck.formatting import shown
from limbeck.view import page
from limbeck.view.disagreement import NoStepsError
from limbeck.view.metrics import MAX_STEP
from limbeck.view.runs import Runs
from limbeck.wire.hosts import hosts_of, is_loopback
from limbeck.wire.listening import base_url, listen

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send


def make_app(path: Path, host: str = "127.0.0.1") -> Starlette:
    """The application over the run or runs at `path`. Raises `RunError` where there is no such folder."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    runs = Runs(path)
    routes = [
        Route("/", _asset),
        Route("/assets/{name:path}", _asset),
        Route("/api/runs", _answer(lambda r: runs.describe(_number(r, "since")))),
        Route("/api/metrics", _answer(lambda r: _run(runs, r).metrics(_number(r, "offset")))),
        Route("/api/rollouts", _answer(lambda r: _index(runs, r))),
        Route("/api/rollout", _answer(lambda r: _run(runs, r).rollouts.rollout(_text(r, "id")))),
        Route("/api/search", _answer(lambda r: {"ids": _run(runs, r).rollouts.search(_text(r, "text"))})),
        Route("/api/evaluations", _answer(lambda r: {"steps": _run(runs, r).evaluations.steps()})),
        Route("/api/answers", _answer(lambda r: _run(runs, r).evaluations.answers(_number(r, "step")))),
        Route(
            "/api/answer", _answer(lambda r: _run(runs, r).evaluations.answer(_number(r, "step"), _number(r, "number")))
        ),
        Route(
            "/api/found",
            _answer(lambda r: {"numbers": _run(runs, r).evaluations.search(_number(r, "step"), _text(r, "text"))}),
        ),
        Route("/api/disagreement", _answer(lambda r: _disagreement(runs, r))),
    ]
    app = Starlette(routes=routes, middleware=_middleware(host))
    app.router.redirect_slashes = False  # a redirect would repeat the request's Host
    return app


def _middleware(host: str) -> list[Middleware]:
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware

    if is_loopback(host):  # packing costs more than it saves where nothing travels
        return [Middleware(_OnlyThisMachine)]
    return [Middleware(GZipMiddleware, minimum_size=65536, compresslevel=1)]


class _OnlyThisMachine:
    """Refuses requests under another name: a foreign page whose name resolves to here must read nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.hosts = app, hosts_of("127.0.0.1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            from starlette.requests import Request
            from starlette.responses import PlainTextResponse

            if not self.hosts.knows(Request(scope).headers.get("host", "")):
                await PlainTextResponse("this page is for this machine only", 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def serve(path: Path, host: str, port: int, open_browser: bool, announce: Callable[[str], None]) -> None:
    """Serve until interrupted. Raises `RecipeError` where the port is taken."""
    import uvicorn

    app = make_app(path, host)
    listener = listen(host, port, "--port")
    listener.listen()  # before the address is printed: an early request waits, and is not refused
    address = f"{base_url(host, listener.getsockname()[1])}/"
    announce(address)
    if open_browser:
        Timer(0.5, webbrowser.open, [address]).start()
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how one stops it
        uvicorn.Server(config).run(sockets=[listener])


def _asset(request: Request) -> Response:
    from starlette.responses import Response

    name = request.path_params.get("name", "index.html")
    try:
        text = page.asset(name)
    except KeyError:
        return Response("no such file", status_code=404, headers=_headers())
    return Response(text, media_type=page.TYPES[Path(name).suffix], headers=_headers())


def _answer(get: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response] | Response]:
    """JSON of what `get` finds; what is not there is a 404 that says so, and what is no request a 400."""

    def answer(request: Request) -> Response:
        from starlette.responses import Response

        try:
            content, status = get(request), 200
        except _NoRequestError as error:
            content, status = {"error": str(error)}, 400
        except LimbeckError as error:
            content, status = {"error": str(error)}, 404
        except FileNotFoundError as error:
            content, status = {"error": f"{error.filename} was removed while it was read. Reload the page."}, 404
        body = json.dumps(content, separators=(",", ":"), allow_nan=False)
        return Response(body, status_code=status, media_type="application/json", headers=_headers())

    return answer


def _headers() -> dict[str, str]:
    return {
        "Content-Security-Policy": page.policy({}),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _run(runs: Runs, request: Request) -> Any:
    return runs.get(_text(request, "run"))


def _index(runs: Runs, request: Request) -> Any:
    return _run(runs, request).rollouts.index(_number(request, "known"), _text(request, "last", ""))


def _disagreement(runs: Runs, request: Request) -> Any:
    wanted: dict[str, str | int] = {}
    for key in ("task", "teacher", "turn"):
        if key in request.query_params:
            wanted[key] = _number(request, key) if key == "turn" else _text(request, key)
    try:
        return _run(runs, request).disagreement.summary(_text(request, "steps", "late"), **wanted)
    except NoStepsError as error:
        raise _NoRequestError(str(error)) from None


class _NoRequestError(LimbeckError):
    """A request that no page of ours makes."""


def _text(request: Request, name: str, default: str | None = None) -> str:
    value = request.query_params.get(name, default)
    if value is None:
        raise _NoRequestError(f"the request has no {name!r}")
    return value


def _number(request: Request, name: str, default: int = 0, least: int = 0) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch("-?[0-9]{1,16}", text) or not least <= int(text) <= MAX_STEP:
        raise _NoRequestError(f"{name} = {shown(text)}, expected a whole number from {least} to {MAX_STEP}")
    return int(text)
