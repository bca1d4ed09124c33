"""Train the student of recipes/retokenized.toml: a poor adder like the demo's, with another tokenizer than its teacher.

    python scripts/make_other_tokenizer.py            # models/bpe-student, about three minutes on two cores

The demo's teacher has a token for each character. This student has byte-level BPE, trained on worked additions, so one
of its tokens is up to a few characters, such as "=0" or ";1". Size and saving are those of scripts/make_demo_models.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from make_demo_models import SIZES, save, small_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.tasks.arithmetic import question, worked_solution

DIGITS = 3
SEED = 3
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/bpe-student"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--merges", type=int, default=60, help="tokens of more than one character")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    problems = additions(SEED)
    tokenizer = byte_pairs(arguments.merges, [q + a for q, a in (next(problems) for _ in range(2000))])
    model = small_llama(tokenizer, **SIZES["student"])
    train(model, tokenizer, problems, arguments.steps)
    save(model, tokenizer, arguments.out)


def additions(seed: int) -> Iterator[tuple[str, str]]:
    """Fresh random problems and their worked solutions, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        a, b = torch.randint(10**DIGITS, (2,), generator=generator).tolist()
        yield question(a, b, DIGITS), worked_solution(a, b, DIGITS)


def byte_pairs(merges: int, texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a rule for where words end: any characters may be one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(special) + len(alphabet) + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, max_token_length=3, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", model_max_length=256,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: Iterator[tuple[str, str]], steps: int
) -> None:
    """Plain supervised training on fresh problems; the loss is on the response only."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    start = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        ids, labels = batch(tokenizer, [next(problems) for _ in range(BATCH)])
        loss = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1:4d}  loss {loss.item():.4f}  {time.time() - start:.0f} s", flush=True)


def batch(tokenizer: PreTrainedTokenizerFast, problems: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """[B, L] tokens and labels: prompt and response in tokens of their own, as they are sampled."""
    pairs = [(tokenizer(q).input_ids, [*tokenizer(a).input_ids, tokenizer.eos_token_id]) for q, a in problems]
    length = max(len(q) + len(a) for q, a in pairs)
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), length), -100)
    for row, (q, a) in enumerate(pairs):
        ids[row, : len(q) + len(a)] = torch.tensor([*q, *a])
        labels[row, len(q) : len(q) + len(a)] = torch.tensor(a)
    return ids, labels


if __name__ == "__main__":
    main()
