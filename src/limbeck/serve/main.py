"""Load a model and serve it until a signal says otherwise."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.config.base import ModelConfig
from limbeck.contract.bake_probe import FILE, read_probe_file
from limbeck.errors import ModelError, RecipeError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model, resolve
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings

GRACE = 30  # seconds that requests under way have after SIGTERM
SAMPLED = 4096  # numbers of each weight that go into the fingerprint


def serve(
    model: str,
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 30000,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    batch_invariant: bool = False,
    ready: Callable[[str], Any] = print,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what waits. `ready` gets the address once requests are taken.

    Port 0 takes a free one. Raises `ModelError`, also for a model that `limbeck bake` wrote, and `RecipeError` for an
    address that cannot be listened at.
    """
    try:
        import uvicorn

        from limbeck.serve.app import make_app
    except ImportError as error:
        raise ModelError(f"`limbeck serve` needs {error.name}: pip install 'limbeck[serve]'") from None

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready(address)

    listener = _listen(host, port)  # a port that is taken is refused before the model is loaded
    with listener:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}"
        where = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        lm = load_model(ModelConfig(model=model, dtype=dtype), torch.device(where))
        refuse_baked(lm)
        app = make_app(Scorer(lm, batch_invariant=batch_invariant), settings, f"{model} {fingerprint(lm)}")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
        with suppress(KeyboardInterrupt):  # a signal is how one stops it
            Server(config).run(sockets=[listener])


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


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise RecipeError(
            f"cannot listen at {host} port {port}: {error}. Choose another --port (0 takes a free one), or stop what "
            "is there."
        ) from None
    return listener


def fingerprint(lm: CausalLM) -> str:
    """A short name of the weights: other weights have another one. Read from samples of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // SAMPLED)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[::step][:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
