"""A baked checkpoint, loaded as any server would, answers at T what its source answers at T."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from limbeck.contract.bake import bake
from limbeck.contract.bake_probe import FILE, read_probe_file
from limbeck.errors import ContractError, ModelError
from limbeck.models.folder import BAKED_TEMPERATURE
from tests import tiny

IDS = torch.tensor([[5, 20, 33, 47, 60, 71, 82, 90]])


def logprobs(folder: Path, temperature: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return torch.log_softmax(model(IDS).logits.float() / temperature, dim=-1)


@pytest.mark.parametrize(
    ("kind", "changes", "tensors"),
    [
        ("llama", {}, {"model.norm.weight"}),
        ("llama-tied", {}, {"model.norm.weight"}),
        ("gemma2", {"final_logit_softcapping": None}, {"model.norm.weight"}),  # multiplies by 1 + w
        ("gpt2", {}, {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        ("phi", {}, {"model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.bias"}),
        ("cohere", {}, {"model.norm.weight"}),  # a LayerNorm without bias, logits multiplied
        ("granite", {}, {"model.norm.weight"}),  # logits divided
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_temperature_one_of_the_baked_is_t_of_the_source(
    kind: str, changes: dict[str, object], tensors: set[str], temperature: float, tmp_path: Path
) -> None:
    source = Path(tiny.save(tmp_path / "source", kind, **changes))
    probe = bake(str(source), temperature, tmp_path / "baked")
    assert set(probe.tensors) == tensors
    difference = (logprobs(tmp_path / "baked") - logprobs(source, temperature)).abs().max().item()
    assert difference < 1e-4
    unbaked = (logprobs(source) - logprobs(source, temperature)).abs().max().item()
    assert unbaked > 0.1  # else the test could not fail
    config = json.loads((tmp_path / "baked" / "config.json").read_text())
    assert config[BAKED_TEMPERATURE] == temperature


def test_the_baked_tensor_stays_float32_and_the_cost_of_narrowing_is_measured(tmp_path: Path) -> None:
    source = Path(tiny.save(tmp_path / "source"))
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    probe = bake(str(source), 0.7, tmp_path / "baked")
    stored = load_file(tmp_path / "baked" / "model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.float32
    assert {t.dtype for n, t in stored.items() if n != "model.norm.weight"} == {torch.bfloat16}
    assert probe.errors["bfloat16"]["max"] > probe.errors["float16"]["max"] > 0
    halved = bake(str(source), 2.0, tmp_path / "halved")  # a power of two rounds to nothing
    assert halved.errors["bfloat16"]["max"] < 1e-3


def test_the_probe_file_holds_what_the_source_answers_at_t(tmp_path: Path) -> None:
    source = Path(tiny.save(tmp_path / "source"))
    bake(str(source), 0.7, tmp_path / "baked")
    probe = read_probe_file(tmp_path / "baked")
    row = probe.sequences[0]
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.inference_mode():
        logp = torch.log_softmax(model(torch.tensor([row.ids])).logits[0] / 0.7, dim=-1)
    ours = [logp[t - 1, row.ids[t]].item() for t in range(row.start, len(row.ids))]
    assert row.logprobs == pytest.approx(ours, abs=1e-5)


def test_what_cannot_be_baked_is_refused(tmp_path: Path) -> None:
    capped = tiny.folder_of("gemma2")
    with pytest.raises(ModelError, match="limbeck serve"):
        bake(str(capped), 0.7, tmp_path / "out")
    source = Path(tiny.save(tmp_path / "source"))
    bake(str(source), 0.7, tmp_path / "baked")
    with pytest.raises(ModelError, match="baked for temperature 0"):
        bake(str(tmp_path / "baked"), 0.7, tmp_path / "again")
    with pytest.raises(ModelError, match="not an empty folder"):
        bake(str(source), 0.7, tmp_path / "baked")
    with pytest.raises(ModelError, match="above 0"):
        bake(str(source), 0.0, tmp_path / "zero")


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "[]", "{}", '{"format": 1}', "[" * 100_000,
        '{"format": 1, "temperature": "hot", "source": "m", "vocabulary": 9, "tensors": [], "errors": {}, '
        '"sequences": []}',
        '{"format": 1, "temperature": 0.7, "source": "m", "vocabulary": 9, "tensors": [], "errors": {}, '
        '"sequences": [{"ids": ["5"], "start": 1, "logprobs": [-1]}]}',
        '{"format": 1, "temperature": 0.7, "source": "m", "vocabulary": 9, "tensors": [], "errors": {}, '
        f'"sequences": [{{"ids": [{10**30}], "start": 1, "logprobs": [-1]}}]}}',
    ],
)  # fmt: skip
def test_a_damaged_probe_file_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ContractError, match="cannot be read"):
        read_probe_file(tmp_path)
