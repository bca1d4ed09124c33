"""What a run takes: against a process that runs, numbers worked out by hand, and machines that are too small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.assemble.fit import Machine, misfits, refuse, sized_here
from limbeck.assemble.fit import Sized as SizedRun
from limbeck.assemble.model_size import model_size, size_of_config
from limbeck.assemble.role_sizes import PROCESS, Models, Part
from limbeck.assemble.sizing import Sizing, size_of, size_with
from limbeck.cluster.connect import STORE
from limbeck.config.base import ModelConfig
from limbeck.config.learner import LoraConfig
from limbeck.config.recipe import Recipe, load_recipe, parse_recipe
from limbeck.errors import ModelError, RecipeError
from limbeck.learners.adapters import add_adapters
from tests import tiny

QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "num_attention_heads": 32}
EIGHT = transformers.Qwen3Config(
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, tie_word_embeddings=False, **QWEN3
)
PARAMETERS = 8_190_735_360  # of Qwen3-8B


def recipe_of(**changes: Any) -> Recipe:
    base = {
        "student": {"model": "demo:student"},
        "teacher": {"model": "demo:teacher"},
        "task": {"kind": "arithmetic"},
        "rollout": {"max_tokens": 1024, "prompts_per_step": 64, "samples_per_prompt": 4},
    }
    return parse_recipe({**base, **changes})


def eight(on_gpu: bool = True, lora: bool = False, **changes: Any) -> Sizing:
    """Of an 8B student that is taught by an 8B teacher in bfloat16."""
    config = LoraConfig() if lora else None
    changes = {"learner": {"lora": {}}, **changes} if lora else changes
    student, teacher = size_of_config("8B", EIGHT, 4, config), size_of_config("8B", EIGHT, 2)
    return size_with(recipe_of(**changes), Models(student, {"teacher": teacher}), on_gpu)


def parts(sizing: Sizing, role: str) -> Mapping[str, Part]:
    roles = [one for process in sizing.processes for one in process.roles if one.name == role]
    return {part.what: part for part in roles[0].parts}


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_counts_are_those_of_the_loaded_model(family: str) -> None:
    lm = tiny.lm_of(family)
    size = model_size(ModelConfig(model=tiny.folder_of(family)))
    assert size.parameters == sum(parameter.numel() for parameter in lm.model.parameters())
    assert size.rows == lm.head_rows
    assert 0 < size.block * size.layers < size.parameters
    assert size.block * size.layers + size.outside == size.parameters
    keys = lm.model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values.layers[0].keys
    assert size.cache(4) == 2 * size.layers * keys[0, :, 0].numel() * 4


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), r".*\.down_proj"])
def test_adapters_are_counted_as_peft_puts_them_in(targets: Any) -> None:
    lora = LoraConfig(rank=3, target_modules=targets)
    lm = tiny.fresh("llama")
    found = sum(parameter.numel() for parameter in add_adapters(lm, lora).parameters().values())
    size = model_size(ModelConfig(model=tiny.folder_of("llama")), lora)
    assert size.adapters == found > 0
    assert not size.fused


def test_quantised_weights_count_as_in_their_files(tmp_path: Path) -> None:
    folder = Path(tiny.save(tmp_path / "model"))
    before = model_size(ModelConfig(model=str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    after = model_size(ModelConfig(model=str(folder), dtype="bfloat16"))
    assert before.weights == 4 * before.parameters
    assert after.weights == 4 * before.parameters, "float32 in its file, whatever the recipe says"


def test_a_folder_with_a_config_alone_is_counted(tmp_path: Path) -> None:
    """A job is sized at a machine without the weights."""
    EIGHT.save_pretrained(tmp_path)
    assert model_size(ModelConfig(model=str(tmp_path))).parameters == PARAMETERS


def test_a_model_that_is_not_there_and_one_that_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        model_size(ModelConfig(model=str(tmp_path / "absent")))
    (tmp_path / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(ModelError, match=r"config\.json"):
        model_size(ModelConfig(model=str(tmp_path)))


def test_an_8b_student_in_float32_takes_131_gb_before_anything_is_computed() -> None:
    held = parts(eight(), "learner")
    assert held["weights"].bytes == 4 * PARAMETERS  # 32.8 GB
    assert held["gradients"].bytes == 4 * PARAMETERS
    assert held["AdamW's moments"].bytes == 8 * PARAMETERS
    assert round(sum(held[name].bytes for name in ("weights", "gradients", "AdamW's moments")) / 1e9) == 131


def test_ranks_share_what_is_sharded_and_gather_a_block() -> None:
    one, four = eight(cluster={}), eight(cluster={"learners": 4})
    for name in ("weights", "gradients", "AdamW's moments"):
        assert parts(four, "learner")[name].bytes == parts(one, "learner")[name].bytes // 4
    assert parts(four, "learner")["activations"].bytes == parts(one, "learner")["activations"].bytes
    block = 4096 * (2 * 4096 + 2 * 1024 + 3 * 12288) + 2 * 4096 + 2 * 128
    ends = 2 * 151936 * 4096 + 4096
    assert parts(four, "learner")["gathered weights"].bytes == 4 * (2 * block + ends)
    assert [process.count for process in four.processes] == [4, 1, 1, 1]


def test_weights_in_bfloat16_have_float32_masters() -> None:
    """16 bytes a parameter become 18, and those that travel and are sampled from are half as many."""
    student, recipe = size_of_config("8B", EIGHT, 2), recipe_of(cluster={})
    sizing = size_with(recipe, Models(student, {"teacher": student}), on_gpu=True)
    exact = [part for part in parts(sizing, "learner").values() if part.exact and part.what != "teachers' heads"]
    assert sum(part.bytes for part in exact) == (2 + 2 + 8 + 4 + 4) * PARAMETERS, (
        "gradients of the pass, and their sums"
    )
    assert parts(sizing, "sampler")["weights"].bytes == 2 * PARAMETERS
    assert sizing.update[0].bytes == 2 * PARAMETERS
    assert sizing.disk[0].bytes == 2 * (2 + 8 + 4) * PARAMETERS


def test_a_teacher_may_span_several_devices() -> None:
    sizing = eight(cluster={"teachers": 2}, teacher={"model": "demo:teacher", "dtype": "bfloat16", "devices": 4})
    assert parts(sizing, "teacher")["weights"].bytes == 2 * PARAMETERS // 4
    (misfit,) = misfits(sizing, Machine((2**45,) * 8, 2**45, 2**50))
    assert "the run takes 10 GPUs" in misfit.text


def test_lora_trains_its_adapters_alone() -> None:
    held = parts(eight(lora=True), "learner")
    matrices = 36 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))
    assert held["gradients"].bytes == 4 * 16 * matrices
    assert held["AdamW's moments"].bytes == 8 * 16 * matrices
    assert "the head's gradient" not in held


def test_keys_and_values_are_of_all_rows_of_a_unit() -> None:
    sizing = eight(engine={"max_rows": 128})
    # 128 responses of 1,024 tokens to 32 prompts of 512; 36 layers of 8 heads of 128, keys and values, float32
    assert parts(sizing, "sampler")["keys and values"].bytes == (128 * 1024 + 32 * 512) * 36 * 8 * 128 * 2 * 4


def test_disk_of_checkpoints_one_of_them_being_written() -> None:
    sizing = eight(steps=200, checkpoint={"every": 50, "keep_last": 2})
    disk = [part.bytes for part in sizing.disk]
    assert disk[:2] == [2 * 12 * PARAMETERS, 12 * PARAMETERS]
    once = [part.bytes for part in eight(steps=200, checkpoint={"every": 0}).disk]
    assert once[:2] == [12 * PARAMETERS, 4 * PARAMETERS], "then the finished model"


def test_held_versions_are_in_each_checkpoint() -> None:
    first, lagging = (eight(steps=50, rollout={"lag": lag}).disk[0].bytes for lag in (0, 2))
    assert lagging - first == 2 * 4 * PARAMETERS


def test_what_does_not_fit_names_the_keys_to_change() -> None:
    sizing = eight()
    small = Machine(gpus=(80 * 2**30,), memory=2**40, disk=2**50)
    (misfit,) = misfits(sizing, small)
    assert misfit.certain, "weights, gradients and moments are more than the GPU"
    assert "a GPU has 85.9 GB" in misfit.text
    assert "learner.lora" in misfit.text
    assert "cluster.learners" in misfit.text
    with pytest.raises(RecipeError, match="too small for the recipe"):
        refuse(SizedRun(sizing, (misfit,)))


def test_a_key_that_can_go_no_lower_is_not_named() -> None:
    def keys(**changes: Any) -> set[str]:
        sizing = eight(on_gpu=False, **changes)
        found = [part for process in sizing.processes for role in process.roles for part in role.parts]
        return {key for part in (*found, *sizing.disk) for key in part.keys}

    more = {"rollout": {"lag": 1}, "cluster": {"samplers": 2}}
    assert {"rollout.lag", "engine.max_rows", "cluster.state_mb", "cluster.learners"} <= keys(**more)
    least = {
        "rollout": {"lag": 0},
        "cluster": {"state_mb": 1},
        "engine": {"max_rows": 1},
        "checkpoint": {"keep_last": 1},
    }
    named = keys(**least)
    assert named.isdisjoint({"rollout.lag", "engine.max_rows", "cluster.state_mb", "checkpoint.keep_last"})
    assert "cluster.learners" in named, "1 of them is the most that a process holds"


@pytest.mark.parametrize("lag", [0, 3])
def test_the_store_is_as_large_as_it_is_made(lag: int) -> None:
    for lora, travels in ((False, 4 * PARAMETERS), (True, None)):
        sizing = eight(lora=lora, cluster={}, rollout={"lag": lag})
        student = size_of_config("8B", EIGHT, 4, LoraConfig() if lora else None)
        expected = (3 + lag) * (travels or 4 * student.adapters)
        assert parts(sizing, "driver")["object store"].bytes == STORE + expected


def test_what_is_only_estimated_is_a_warning() -> None:
    sizing = eight()
    certain = sizing.processes[0].peak("device", exact=True).bytes
    (misfit,) = misfits(sizing, Machine((certain + 2**30,), 2**40, 2**50))
    assert not misfit.certain
    refuse(SizedRun(sizing, (misfit,)))
    assert not misfits(sizing, Machine((2**40,), 2**40, 2**50))


def test_memory_of_all_processes_together_and_disk() -> None:
    sizing = eight(on_gpu=False, cluster={"learners": 2, "samplers": 2})
    most = sum(process.count * process.peak("host").bytes for process in sizing.processes)
    assert not misfits(sizing, Machine((), most, 2**50))
    memory, disk = misfits(sizing, Machine((), most // 3, 10**9))
    assert memory.text.startswith("memory: ")
    assert "cluster.learners" in memory.text
    assert disk.certain
    assert "checkpoint.keep_last" in disk.text


def test_remedies_help_and_parts_have_owners() -> None:
    sizing = eight(on_gpu=False, checkpoint={"keep_last": 1}, record={"every": 10})
    memory, disk = misfits(sizing, Machine((), 10**9, 10**9))
    assert "record.max_mb" not in disk.text, "a part that is small"
    assert "learner.lora, output" in disk.text
    assert "learner's weights" in memory.text
    assert "teacher.devices" not in memory.text, "without GPUs there is one"


def test_of_a_gpu_that_is_not_there_nothing_is_said() -> None:
    found = misfits(eight(), Machine((), 2**50, 2**50))
    assert [misfit.text.partition(".")[0] for misfit in found] == ["the run takes 1 GPU, and this machine has 0"]


def test_too_few_gpus_for_the_processes() -> None:
    sizing = eight(cluster={"learners": 2, "samplers": 1})
    (misfit,) = misfits(sizing, Machine((2**45,) * 2, 2**45, 2**50))
    assert misfit.certain
    assert "the run takes 4 GPUs, and this machine has 2" in misfit.text
    assert "cluster.learners, cluster.samplers, cluster.teachers" in misfit.text


def test_nodes_that_are_not_known_are_compared_with_nothing() -> None:
    sized = sized_here(recipe_of(cluster={"address": "auto", "learners": 4000}, rollout={"max_tokens": 128}))
    assert not sized.misfits
    assert any("compare these numbers" in note for note in sized.sizing.notes)


def test_servers_and_parts_of_ones_own_are_said_not_to_be_counted() -> None:
    sizing = size_of(
        recipe_of(
            teacher={"kind": "limbeck", "url": "http://127.0.0.1:1", "head": "demo:teacher"},
            engine={"kind": "vllm", "url": "http://127.0.0.1:2"},
            rollout={"max_tokens": 128},
        ),
        on_gpu=False,
    )
    uncounted = "is a server: its memory is not counted here"
    assert {f"teacher {uncounted}", f"the engine {uncounted}"} <= set(sizing.notes)
    assert any(part.what == "weights, to the engine" for part in sizing.update)
    assert "head of demo:teacher" in parts(sizing, "learner")


@pytest.mark.slow
def test_a_process_takes_what_was_said(tmp_path: Path) -> None:
    """Within a third: a part that is forgotten, or counted twice, is more."""
    config = tiny.config_of(
        "llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4,
    )  # fmt: skip
    tiny.build(config).save_pretrained(tmp_path / "model")
    tiny.character_tokenizer().save_pretrained(tmp_path / "model")
    recipes = [tmp_path / "first.toml", tmp_path / "second.toml"]
    for path, model, steps in zip(recipes, (tiny.folder_of("llama"), tmp_path / "model"), (1, 2), strict=True):
        path.write_text(
            f"""
            name = "{path.stem}"
            output = "{tmp_path}/runs"
            steps = {steps}
            threads = 1
            student.model = "{model}"
            teacher.model = "{model}"
            task = {{kind = "arithmetic", digits = 1, train = 64, held_out = 4}}
            rollout = {{temperature = 1.0, max_tokens = 40, prompts_per_step = 24}}
            eval = {{prompts = 1}}
            record = {{every = 0}}
            """
        )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.assemble.sized_process", *map(str, recipes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])["bytes"]
    (process,) = sized_here(load_recipe(recipes[1]), prompt_tokens=6).sizing.processes
    said = process.peak("host").bytes - PROCESS
    assert 0.67 * measured < said < 1.33 * measured, f"{said / 1e6:.0f} MB were said, {measured / 1e6:.0f} MB measured"
