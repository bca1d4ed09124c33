"""Train the two tiny models that `limbeck demo` ships: a good teacher and a poor student.

    python scripts/make_demo_models.py              # both, about fifteen minutes on two cores
    python scripts/make_demo_models.py student      # one of them

Both are Llamas over a hundred characters, trained from scratch on worked additions; the student is
smaller and is stopped as soon as it gets about a quarter of the problems right. Weights are stored
in float16 to keep the package small.
"""

from __future__ import annotations

import argparse
import string
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.tasks.arithmetic import question, worked_solution

DIGITS = 3
FOLDER = Path(__file__).parents[1] / "src" / "limbeck" / "demo"
SIZES = {
    "teacher": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    },
    "student": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
}
SEEDS = {"teacher": 1, "student": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", default=["teacher", "student"], choices=["teacher", "student"])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--teacher-steps", type=int, default=900)
    parser.add_argument("--student-accuracy", type=float, default=0.25, help="stop the student here")
    arguments = parser.parse_args()
    tokenizer = character_tokenizer()
    for which in arguments.which:
        torch.manual_seed(SEEDS[which])
        model = small_llama(tokenizer, **SIZES[which])
        stop_at = arguments.student_accuracy if which == "student" else None
        train(model, tokenizer, SEEDS[which], arguments.teacher_steps, stop_at)
        save(model, tokenizer, arguments.out / which)


def small_llama(tokenizer: PreTrainedTokenizerFast, **sizes: int) -> LlamaForCausalLM:
    """New weights, for texts of at most 256 tokens."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In float16."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens -> {folder}")


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character, after `<pad>`, `<eos>` and `<unk>`."""
    alphabet = ["<pad>", "<eos>", "<unk>", "\n", *string.printable[:95]]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=256, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, stop_at: float | None
) -> None:
    """Plain supervised training on fresh random problems; the loss is on the response only."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / 50) * (1 if stop_at else max(0.02, 1 - max(0, step - steps * 0.5) / (steps * 0.5)))
        ),
    )
    prompt_length = len(tokenizer(question(0, 0, DIGITS)).input_ids)
    start = time.time()
    for step in range(steps):
        operands = torch.randint(10**DIGITS, (64, 2), generator=generator).tolist()
        texts = [question(a, b, DIGITS) + worked_solution(a, b, DIGITS) for a, b in operands]
        ids = torch.tensor(tokenizer(texts).input_ids)
        ids = torch.cat([ids, torch.full((len(ids), 1), tokenizer.eos_token_id)], dim=1)
        labels = ids.clone()
        labels[:, :prompt_length] = -100
        loss = model(ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            right = accuracy(model, tokenizer, 128) if stop_at or (step + 1) % 100 == 0 else float("nan")
            print(
                f"step {step + 1:5d}  loss {loss.item():.4f}  right {right:.2f}  {time.time() - start:.0f} s",
                flush=True,
            )
            if stop_at and right >= stop_at:
                break
    print(f"final accuracy over 512: {accuracy(model, tokenizer, 512):.3f}")


@torch.inference_mode()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, temperature: float = 0.7
) -> float:
    """Share of held-out problems whose last part is right, sampled at `temperature`."""
    generator = torch.Generator().manual_seed(12345)
    operands = torch.randint(10**DIGITS, (count, 2), generator=generator).tolist()
    prompts = torch.tensor(tokenizer([question(a, b, DIGITS) for a, b in operands]).input_ids)
    out = model.generate(prompts, max_new_tokens=40, do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    return (
        sum(t.rpartition(";")[2] == f"{a + b:0{DIGITS + 1}d}" for t, (a, b) in zip(texts, operands, strict=True))
        / count
    )


if __name__ == "__main__":
    main()
