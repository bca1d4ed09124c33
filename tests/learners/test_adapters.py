"""LoRA: merged as peft merges, saved as peft reads, resumed to the bit, and never on a matrix that the head shares."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LoraConfig
from limbeck.errors import ModelError, RunError
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from tests import tiny
from tests.helpers import learner_of, random_samples, tiny_lm

LENGTHS = [5, 1, 9, 3, 0, 7, 2, 4]
LORA = LoraConfig(rank=4)


def trained(learner: LocalLearner, teacher: CausalLM, steps: int) -> LocalLearner:
    samples = random_samples(teacher, LENGTHS)
    for _ in range(steps):
        asyncio.run(learner.update(samples))
    return learner


def with_random_adapters(lm: CausalLM, **lora: Any) -> LocalLearner:
    """Adapters that are not zero, as they begin."""
    learner = learner_of(lm, lora=LoraConfig(**{"rank": 3, "alpha": 5.0, **lora}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return learner


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_adapters_begin_as_the_seed_says_whatever_was_drawn_before() -> None:
    begun = []
    for seed, drawn in ((3, 0), (3, 100), (4, 0)):
        torch.manual_seed(drawn)
        learner = learner_of(tiny_lm(1), seed=seed, lora=LORA)
        begun.append({name: parameter.detach().clone() for name, parameter in learner.parameters.items()})
    same(begun[0], begun[1])
    assert any(not torch.equal(begun[0][name], begun[2][name]) for name in begun[0])


def test_trains_adapters_only(tmp_path: Path) -> None:
    lm, teacher = tiny_lm(1), tiny_lm(2)
    base = {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}
    learner = learner_of(lm, teacher, lr=1e-2, lora=LORA)
    assert learner.parameters
    assert all("lora_" in name for name in learner.parameters)
    samples = random_samples(teacher, LENGTHS)
    values = [asyncio.run(learner.update(samples)).means["reverse_kl/exact"].value for _ in range(10)]
    assert values[-1] < 0.9 * values[0]
    for name, parameter in lm.model.named_parameters():
        if name not in learner.parameters:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {}),
        ("qwen2", {"target_modules": ("q_proj", "v_proj")}),  # with biases
        ("llama", {"target_modules": ("embed_tokens", "o_proj")}),  # not tied: a matrix like another
        ("llama-tied", {"target_modules": r"model\.layers\.1\..*_proj"}),
        ("gpt2", {}),  # Conv1D: stored the other way round
        ("phi", {}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_tensors_are_bitwise_pefts_own(family: str, lora: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    """One at a time, into new tensors; the model that trains is not touched."""
    lm = tiny.fresh(family)
    learner = with_random_adapters(lm, **lora)
    merged = copy.deepcopy(learner.adapters.peft_model).merge_and_unload().to(getattr(torch, dtype))  # type: ignore[union-attr]
    live = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    policy = asyncio.run(learner.publish())
    same(dict(policy.tensors(dtype)), merged.state_dict())
    policy.save(tmp_path / "ours", dtype)
    same(live, lm.model.state_dict())
    merged.save_pretrained(tmp_path / "theirs")
    same(*(load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs")))
    if dtype == "float32":
        loaded = load_model(ModelConfig(model=str(tmp_path / "ours")), torch.device("cpu"))
        ids = torch.tensor([[3, 4, 5, 6]])
        with torch.no_grad():
            ours, expected, live_logits = (model.eval()(ids).logits for model in (loaded.model, merged, lm.model))
        assert torch.equal(ours, expected)
        assert torch.allclose(live_logits, expected, atol=1e-3)


def test_checkpoints_hold_the_adapter_in_pefts_format_and_no_weights(tmp_path: Path) -> None:
    base = tiny.folder_of("llama")
    lm = load_model(ModelConfig(model=base), torch.device("cpu"))
    learner = with_random_adapters(lm)
    assert asyncio.run(learner.publish()).adapter == learner.adapters.record  # type: ignore[union-attr]
    assert learner.adapters.record.rank == 3  # type: ignore[union-attr]
    assert learner.adapters.record.base == base  # type: ignore[union-attr]
    learner.save(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "learner.safetensors",
    }  # fmt: skip
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["base_model_name_or_path"]) == (3, 5.0, base)
    theirs = PeftModel.from_pretrained(type(lm.model).from_pretrained(base), str(tmp_path / "adapter")).eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, lm.model.eval()(ids).logits)


def test_the_adapter_is_written_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        learner_of(tiny_lm(1), lora=LORA).save(tmp_path / name)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_resumes_bitwise(tmp_path: Path) -> None:
    teacher = tiny_lm(2)

    def learner() -> LocalLearner:
        return learner_of(tiny_lm(1), teacher, lr=1e-2, lora=LORA)

    straight = trained(learner(), teacher, 4)
    trained(learner(), teacher, 2).save(tmp_path)
    resumed = learner()
    resumed.restore(tmp_path)
    assert resumed.version == 2
    trained(resumed, teacher, 2)
    same(
        {n: p.detach() for n, p in straight.parameters.items()}, {n: p.detach() for n, p in resumed.parameters.items()}
    )


class TestDamagedCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        trained(learner_of(tiny_lm(1), tiny_lm(2), lora=LORA), tiny_lm(2), 1).save(tmp_path)
        return tmp_path

    def refused(self, folder: Path, match: str, seed: int = 1, **lora: Any) -> None:
        learner = learner_of(tiny_lm(seed), lora=LoraConfig(**{"rank": 4, **lora}))
        with pytest.raises(RunError, match=match):
            learner.restore(folder)

    @pytest.mark.parametrize(
        "name", ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "learner.safetensors"]
    )
    @pytest.mark.parametrize("how", ["missing", "cut"])
    def test_a_missing_or_damaged_file_is_named(self, folder: Path, name: str, how: str) -> None:
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        if how == "cut":
            path.write_bytes(data[: len(data) // 2])
        self.refused(folder, f"cannot read .*{name}")

    def test_a_folder_without_an_adapter(self, folder: Path) -> None:
        shutil.rmtree(folder / "adapter")
        self.refused(folder, "it has no adapter/")
        (folder / "model").mkdir()
        self.refused(folder, r"no adapter/.*It has model/: was it written with another learner\.lora")

    def test_a_whole_learner_does_not_take_an_adapter_for_weights(self, folder: Path) -> None:
        with pytest.raises(RunError, match=r"it has no model/.*It has adapter/"):
            learner_of(tiny_lm(1)).restore(folder)

    def test_another_scale(self, folder: Path) -> None:
        self.refused(folder, r"adapter_config\.json has lora_alpha = 32\.0, but the recipe has 8\.0", alpha=8.0)

    def test_another_base(self, folder: Path) -> None:
        """The base is not part of the recipe's text: a folder of that name may hold other weights now."""
        self.refused(folder, r"learner\.safetensors belongs to other weights.*from the base that the run began", seed=3)

    def test_tensors_that_are_not_the_students(self, folder: Path) -> None:
        path = folder / "adapter" / "adapter_model.safetensors"
        tensors = load_file(path)
        first, last = min(tensors), max(tensors)
        save_file({name: value for name, value in tensors.items() if name != first}, path)
        self.refused(folder, f"1 tensors differ, such as '{first}': it is missing there")
        save_file({**tensors, last: torch.zeros(2, 2)}, path)
        self.refused(folder, rf"'{last}' of shape \[2, 2\], expected")


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama-tied", ("embed_tokens",)),
        ("llama-tied", ("q_proj", "embed_tokens")),
        ("llama-tied", r"model\.embed_tokens"),
        ("gpt2", ("wte",)),
        ("gpt2", r".*wte"),
        ("gemma2", ("embed_tokens", "down_proj")),
    ],
)
def test_adapters_on_a_matrix_that_the_head_shares_are_refused_by_name(family: str, targets: Any) -> None:
    """A merged adapter would change the head as well: the saved model would not be the one that was trained."""
    with pytest.raises(ModelError, match=r"(embed_tokens|wte)' of .* shares its matrix with the output head"):
        learner_of(tiny.fresh(family), lora=LoraConfig(target_modules=targets))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("targets", [("lm_head",), r".*lm_head", ("q_proj", "c_attn", "lm_head")])
def test_adapters_on_the_head_are_refused_by_name(family: str, targets: Any) -> None:
    with pytest.raises(ModelError, match=r"output head.*target_modules"):
        learner_of(tiny.fresh(family), lora=LoraConfig(target_modules=targets))


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma2"])
def test_all_linear_leaves_what_the_head_shares_alone(family: str) -> None:
    learner = learner_of(tiny.fresh(family), lora=LORA)
    assert not any("embed" in name or "wte" in name or "lm_head" in name for name in learner.parameters)


def test_modules_that_do_more_than_multiply_are_refused_by_name() -> None:
    """PhiMoE's router returns a tuple, which peft found out in the first update."""
    config = transformers.PhimoeConfig(
        **tiny.GATED, num_local_experts=4, num_experts_per_tok=2, vocab_size=tiny.VOCABULARY, bos_token_id=None
    )
    lm = CausalLM("phimoe", tiny.build(config), tiny.character_tokenizer(), tiny.VOCABULARY)
    with pytest.raises(ModelError, match=r"router' of phimoe is a PhimoeTopKRouter.*Leave it out"):
        learner_of(lm, lora=LORA)


@pytest.mark.parametrize("targets", [("nothing_like_it",), "nothing_like_it"])
def test_modules_that_are_not_there_are_refused(targets: Any) -> None:
    with pytest.raises(ModelError, match="nothing_like_it"):
        learner_of(tiny_lm(1), lora=LoraConfig(target_modules=targets))
