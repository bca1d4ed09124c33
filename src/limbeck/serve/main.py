"""Load a model and serve it until a signal says otherwise."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.assemble.site import pick_device
from limbeck.config.base import ModelConfig
from limbeck.contract.bake_probe import FILE, read_probe_file
from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.fingerprint import files_now, fingerprint
from limbeck.models.loading import load_model, resolve
from limbeck.serve.limits import MB
from limbeck.serve.logs import bound_lines_of_clients
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire.hosts import hosts_of
from limbeck.wire.listening import base_url, listen

GRACE = 30  # seconds that requests under way have after SIGTERM
CONNECTIONS = 1000
SWITCH = 0.001  # seconds after which a thread that scores lets the event loop have its turn; Python's own is 0.005


def serve(
    model: str,
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 30000,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    batch_invariant: bool = False,
    allow_hosts: Sequence[str] = (),
    ready: Callable[[str], Any] = print,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what waits. `ready` gets the address once requests are taken.

    Port 0 takes a free one. `allow_hosts` are more names that clients may call this server.

    Raises `ModelError`, also for a model that `limbeck bake` wrote, and `RecipeError` for an address that cannot be
    listened at and for a bearer token that cannot be sent.
    """
    require_packages()
    import uvicorn

    from limbeck.serve.app import make_app
    from limbeck.serve.connections import LONGEST_HEAD, protocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready(address)

    listener = listen(host, port, "--port")  # a port that is taken is refused before the model is loaded
    with listener:
        address = base_url(host, listener.getsockname()[1])
        where = pick_device(device)
        lm, weights = load_with_fingerprint(ModelConfig(model=model, dtype=dtype), where)
        refuse_baked(lm)
        prefixes = settings.prefix_cache_mb * MB
        scorer = Scorer(lm, settings.batch_tokens, batch_invariant=batch_invariant, prefix_bytes=prefixes)
        identity = f"{model} {weights}"
        app = make_app(scorer, settings, identity, hosts_of(host, allow_hosts))
        config = uvicorn.Config(
            app, loop="asyncio", http=protocol(_most_connections()), ws="none", log_level="warning", access_log=False,
            server_header=False, timeout_graceful_shutdown=GRACE,
            h11_max_incomplete_event_size=LONGEST_HEAD,
        )  # fmt: skip
        bound_lines_of_clients()
        sys.setswitchinterval(SWITCH)
        gc.collect()
        gc.freeze()  # what is loaded stays: looking through it for garbage would stop every answer
        with suppress(KeyboardInterrupt):  # a signal is how one stops it
            Server(config).run(sockets=[listener])


def require_packages() -> None:
    """Raises `ModelError` naming the extra where a package of it is missing."""
    try:
        import uvicorn  # noqa: F401

        from limbeck.serve import app, connections  # noqa: F401
    except ImportError as error:
        raise ModelError(f"`limbeck serve` needs {error.name}: pip install 'limbeck[serve]'") from None


def load_with_fingerprint(section: ModelConfig, device: torch.device) -> tuple[CausalLM, str]:
    """A model and the fingerprint of the very files that it was loaded from. Raises `ModelError` as `load_model` does.

    Also where they were replaced meanwhile: its weights would answer under another's fingerprint.
    """
    before = None
    with suppress(ModelError):  # `load_model` says better what is wrong, or gets what is on the hub only
        before = files_now(section.model)
    lm, weights = load_model(section, device), fingerprint(section.model, section.dtype)
    if before is not None and files_now(section.model) != before:
        raise ModelError(f"{section.model} changed while it was loaded: start again.")
    return lm, weights


def refuse_baked(lm: CausalLM) -> None:
    """Raises `ModelError` for a model whose own answers are at another temperature than 1.

    A client's temperature would divide its logits a second time, and no probe of the contract would show it: the
    ratio test compares the server with itself.
    """
    temperature = lm.natural_temperature
    if temperature == 1:
        return
    folder, source = Path(resolve(lm.name)), "the model it was made of"
    if (folder / FILE).is_file():
        source = read_probe_file(folder).source
    raise ModelError(
        f"{lm.name} was baked for temperature {temperature:g}, for servers that know no scoring temperature. Under "
        f"`limbeck serve` its logits would be divided twice. Serve {source}: it is exact at any temperature."
    )


def _most_connections() -> int:
    """As many as there are files for, with room for those that are about to be closed.

    A process often has 1024 files until it asks for more; without one left it would take no connection for a second.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return CONNECTIONS // 5
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5 * CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS if soft == resource.RLIM_INFINITY else min(CONNECTIONS, soft // 5)
