"""What a server's process imports, once for all of them."""

import importlib

for name in (
    "torch", "uvicorn", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "limbeck.cli.main", "limbeck.serve.app", "limbeck.serve.main", "tests.chaos.protections",
):  # fmt: skip
    importlib.import_module(name)
