"""Train the two tiny models of `recipes/calculator.toml`: a teacher that calls a tool, and a student that rarely does.

    python scripts/make_calculator_models.py              # both, about ten minutes on two cores
    python scripts/make_calculator_models.py student      # one of them

Both are Llamas over a hundred characters, trained from scratch on dialogues of a perfect student with the tool; the
loss is on the student's own words. The student is stopped as soon as it gets a fifth of the dialogues right.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from make_demo_models import FOLDER, character_tokenizer, save, small_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.demo.calculator import dialogue, question

SIZES = {"teacher": (128, 4), "student": (96, 3)}  # width and layers
TEMPLATE = (  # a chat is what is said in turn; the student's turns end with the end token
    "{% for message in messages %}{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
SEEDS = {"teacher": 1, "student": 2}
TEMPERATURE = 0.7  # of the recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", default=["teacher", "student"], choices=["teacher", "student"])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--teacher-steps", type=int, default=240)
    parser.add_argument("--student-accuracy", type=float, default=0.2, help="stop the student here")
    arguments = parser.parse_args()
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for which in arguments.which:
        torch.manual_seed(SEEDS[which])
        width, layers = SIZES[which]
        model = small_llama(
            tokenizer,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
        )
        stop_at = arguments.student_accuracy if which == "student" else None
        train(model, tokenizer, SEEDS[which], arguments.teacher_steps, stop_at)
        save(model, tokenizer, arguments.out / f"calculator-{which}")


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, stop_at: float | None
) -> None:
    """Plain supervised training on fresh random problems."""
    generator, start = random.Random(seed), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 50) * (1 if stop_at else max(0.02, 2 - 2 * max(step / steps, 0.5))),
    )
    for step in range(steps):
        ids, labels = batch(tokenizer, generator, 64)
        loss = model(ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            right = accuracy(model, tokenizer)
            print(
                f"step {step + 1:5d}  loss {loss.item():.4f}  right {right:.2f}  {time.time() - start:.0f} s",
                flush=True,
            )
            if stop_at and right >= stop_at:
                break


def batch(
    tokenizer: PreTrainedTokenizerFast, generator: random.Random, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[count, L] ids of whole dialogues and labels, -100 where the words are not the student's."""
    rows, labels = [], []
    for _ in range(count):
        text = question(generator)
        ids = tokenizer.encode(text)
        mine = [-100] * len(ids)
        for turn, said in enumerate(dialogue(text)):
            more = tokenizer.encode(said) + ([] if turn % 2 else [tokenizer.eos_token_id])
            ids += more
            mine += [-100] * len(more) if turn % 2 else more
        rows.append(torch.tensor(ids))
        labels.append(torch.tensor(mine))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=-100)


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 128) -> float:
    """Chance that a dialogue sampled at the recipe's temperature is right from end to end."""
    ids, labels = batch(tokenizer, random.Random(12345), count)
    logp_BLV = (model(ids).logits[:, :-1].float() / TEMPERATURE).log_softmax(-1)
    mine_BL = labels[:, 1:] >= 0
    chosen_BL = logp_BLV.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return float((chosen_BL * mine_BL).sum(1).exp().mean())


if __name__ == "__main__":
    main()
