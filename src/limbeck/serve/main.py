"""Load a model and serve it until a signal says otherwise."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from limbeck.config_section import ModelSection
from limbeck.errors import ModelError
from limbeck.models import CausalLM, load_model
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings

SAMPLED = 4096  # numbers of each weight that go into the fingerprint


def serve(
    model: str,
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 30000,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    alone: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what waits. Raises `ModelError`."""
    try:
        import uvicorn

        from limbeck.serve.app import make_app
    except ImportError as error:
        raise ModelError(f"`limbeck serve` needs {error.name}: pip install 'limbeck[serve]'") from None
    where = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    lm = load_model(ModelSection(model=model, dtype=dtype), torch.device(where))
    app = make_app(Scorer(lm, alone=alone), settings, f"{model} {fingerprint(lm)}")
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=30)


def fingerprint(lm: CausalLM) -> str:
    """A short name of the weights: other weights have another one. Read from samples of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // SAMPLED)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[::step][:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
