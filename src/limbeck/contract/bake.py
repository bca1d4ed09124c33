"""A checkpoint whose temperature-1 answers are those of another at temperature T.

    probe = bake("models/teacher", 0.7, Path("models/teacher-at-0.7"))

Logits are linear in the output of the final norm, so dividing what the norm multiplies by (and adds) by T
divides the logits by T. What that is differs from model to model: `w` (Llama, Qwen, Mistral), `w` and a bias
(GPT-2, Phi), `1 + w` (Gemma). The norm is found by looking which module's output is the final hidden state,
and each way of scaling it is tried and *proven* on logits, so a model that does it in yet another way is
refused rather than baked wrongly. A head's own bias is divided too; constant logit scales commute.

The changed tensors are stored in float32 whatever the rest is: rounded to bfloat16 they would be off by
1/T's rounding at every token. A server that casts them on loading makes that error all the same, so it is
measured here on the probe sequences, for the user to see.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.config.base import ModelConfig
from limbeck.contract.bake_probe import FILE, ProbeFile, ProbeSequence
from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folder import BAKED_TEMPERATURE, read_json
from limbeck.models.loading import load_model, resolve

TOLERANCE = 2e-4  # nats between the baked float32 model and the source's logits / T
LONGEST = 64  # tokens of a probe sequence
NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TEXTS = (
    "The teacher scores every token that the student sampled, at the temperature it was sampled at.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n",
    "Q: What is 17 + 25? A: 17 + 25 = 42.",
    "It was late in the year, and the road to the mill had long been under water; nobody came that way.",
)

Edit = Callable[[Tensor, float], Tensor]


def _plain(weight: Tensor, t: float) -> Tensor:
    return weight / t


def _one_plus(weight: Tensor, t: float) -> Tensor:
    return (1 + weight) / t - 1


WAYS: Mapping[str, Edit] = {"w": _plain, "1 + w": _one_plus}


def bake(model: str, temperature: float, out: Path) -> ProbeFile:
    """Write `out`, a copy of the model folder with final norm and head bias divided by `temperature`.

    Raises `ModelError` for a soft-capped head, a norm that cannot be found or scaled, a model that was
    baked before, weights that are not safetensors, and a folder that is not empty.
    """
    if not 0 < temperature < float("inf"):
        raise ModelError(f"--temperature must be a finite number above 0, got {temperature}")
    source = _source(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is not an empty folder. Give one that does not exist yet.")
    lm = load_model(ModelConfig(model=model), torch.device("cpu"))
    if lm.head().softcap is not None:
        raise ModelError(
            f"{model} caps its logits at {lm.head().softcap} by a tanh, which no scaling of weights turns into another "
            "temperature. Serve it with `limbeck serve`, which is exact at any temperature."
        )
    rows = _probe_rows(lm)
    truth = [_logprobs(lm, row, temperature) for row in rows]
    tensors = _scale(lm, temperature, rows, truth)
    errors = {name: _error_of(lm, tensors, kind, rows, truth) for name, kind in NARROW.items()}
    probe = ProbeFile(
        temperature=temperature,
        source=model,
        vocabulary=lm.vocabulary,
        tensors=tuple(sorted(tensors)),
        errors=errors,
        sequences=[
            ProbeSequence(tuple(row), 1, tuple(logp[torch.arange(len(row) - 1), row[1:]].tolist()))
            for row, logp in zip(rows, truth, strict=True)
        ],
    )
    _write(source, out, {name: tensor.detach().float() for name, tensor in tensors.items()}, lm, temperature)
    probe.write(out)
    return probe


def _source(model: str) -> Path:
    folder = Path(resolve(model))
    if not folder.is_dir():
        raise ModelError(f"{model!r} is not a folder here: download the model first, and give its folder.")
    config = read_json(folder / "config.json")
    if BAKED_TEMPERATURE in config:
        raise ModelError(
            f"{model} was baked for temperature {config[BAKED_TEMPERATURE]} before. Bake the model it was made of."
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{model} has no *.safetensors. Save it again with save_pretrained(folder).")
    return folder


def _probe_rows(lm: CausalLM) -> list[list[int]]:
    """Token ids of the probe texts, at least two tokens each."""
    longest = min(LONGEST, lm.context or LONGEST)
    rows = [list(lm.tokenizer(text).input_ids)[:longest] for text in TEXTS]
    return [row for row in rows if len(row) > 1]


@torch.inference_mode()
def _logprobs(lm: CausalLM, row: list[int], temperature: float) -> Tensor:
    """[L-1, V] log-probs after each token of `row` but the last, by the model's own logits."""
    logits_LV = lm.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits_LV / temperature, dim=-1)


def _scale(lm: CausalLM, temperature: float, rows: list[list[int]], truth: list[Tensor]) -> dict[str, Tensor]:
    """Scale the final norm in place by the first way that proves itself; the changed tensors by name."""
    norm = _final_norm(lm, rows[0])
    weight = norm.weight
    assert isinstance(weight, Tensor)
    names = {id(parameter): name for name, parameter in lm.model.named_parameters()}
    of_head = lm.model.get_output_embeddings().bias
    shifts = [bias for bias in (getattr(norm, "bias", None), of_head) if isinstance(bias, Tensor)]
    before = [tensor.detach().clone() for tensor in (weight, *shifts)]
    largest = {}
    for way, edit in WAYS.items():
        with torch.no_grad():
            weight.copy_(edit(before[0].double(), temperature))
            for shift, old in zip(shifts, before[1:], strict=True):
                shift.copy_(old.double() / temperature)
        largest[way] = _differences(lm, rows, truth)[1]
        if largest[way] <= TOLERANCE:
            return {names[id(tensor)]: tensor for tensor in (weight, *shifts)}
    tried = ", ".join(f"{way}: {value:.3g} nats off" for way, value in largest.items())
    raise ModelError(
        f"{lm.name}: scaling its final norm ({type(norm).__name__}) does not divide the logits by {temperature} "
        f"({tried}). Serve it with `limbeck serve`, which is exact at any temperature."
    )


def _final_norm(lm: CausalLM, row: list[int]) -> nn.Module:
    """The module with a vector of weights whose output is the final hidden state."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda m, _, y: outputs.append((m, y)) if isinstance(y, Tensor) else None)
        for module in lm.model.base_model.modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 1
    ]
    with torch.inference_mode():
        hidden = lm.hidden(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    for module, output in reversed(outputs):
        if output.shape == hidden.shape and torch.equal(output, hidden):
            return module
    raise ModelError(
        f"{lm.name}: no norm puts out the final hidden states, so there is nothing to bake the temperature into. "
        "Serve it with `limbeck serve`."
    )


def _differences(lm: CausalLM, rows: list[list[int]], truth: list[Tensor]) -> tuple[float, float]:
    """Mean and largest difference in nats, over tokens of a log-prob above -20."""
    differences = torch.cat(
        [(_logprobs(lm, row, 1.0) - logp).abs()[logp > -20] for row, logp in zip(rows, truth, strict=True)]
    )
    return differences.mean().item(), differences.max().item()


def _error_of(
    lm: CausalLM, tensors: Mapping[str, Tensor], kind: torch.dtype, rows: list[list[int]], truth: list[Tensor]
) -> dict[str, float]:
    """What holding the changed tensors in `kind` would cost."""
    with _rounded(tensors, kind):
        mean, largest = _differences(lm, rows, truth)
    return {"mean": mean, "max": largest}


@contextmanager
def _rounded(tensors: Mapping[str, Tensor], kind: torch.dtype) -> Iterator[None]:
    exact = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(tensor.to(kind))
        yield
        for name, tensor in tensors.items():
            tensor.copy_(exact[name])


def _write(source: Path, out: Path, tensors: Mapping[str, Tensor], lm: CausalLM, temperature: float) -> None:
    """Copy the folder; rewrite only the files that hold a changed tensor, which stays float32."""
    out.mkdir(parents=True, exist_ok=True)
    left = dict(tensors)
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name == FILE:
            continue
        if path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
            continue
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {"format": "pt"}
        changed = {name: stored_name for name in left if (stored_name := _stored_as(name, stored, lm)) is not None}
        if not changed:
            shutil.copyfile(path, out / path.name)
            continue
        for name, stored_name in changed.items():
            stored[stored_name] = left.pop(name)
        save_file(stored, out / path.name, metadata=metadata)
    if left:
        raise ModelError(f"{source}: its safetensors have no tensor named {sorted(left)}, so {out} is not usable.")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, BAKED_TEMPERATURE: temperature}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def _stored_as(name: str, stored: Mapping[str, Tensor], lm: CausalLM) -> str | None:
    """The tensor's name in the file: with or without the body's prefix, as old checkpoints have it."""
    for candidate in (name, name.removeprefix(f"{lm.model.base_model_prefix}.")):
        if candidate in stored:
            return candidate
    return None
