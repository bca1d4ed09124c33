"""Show side by side what the pruned, the healed and the original model answer.

    python scripts/smollm2/compare.py --healed runs/smollm2/model
    python scripts/smollm2/compare.py --healed FOLDER --prompt "Why is the sky blue?" --prompt "Hello!"
    python scripts/smollm2/compare.py --healed FOLDER --file recipes/smollm2_prompts.jsonl --id fact-03

Answers are greedy, so they do not change from run to run. Each model is loaded with plain
`AutoModelForCausalLM.from_pretrained` and let go before the next one: memory stays that of one model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.errors import DataError, LimbeckError, ModelError
from limbeck.sanitize import printable

# Not in recipes/smollm2_prompts.jsonl, so that no split of that file has them among its training prompts.
HELD_OUT_PROMPTS = (
    "What is the capital of Germany?",
    "Give me two tips for a good night's sleep.",
    "How do I make a paper snowflake?",
    "What is a volcano?",
)


@dataclass(frozen=True)
class Column:
    """One model's answers."""

    title: str  # "healed"
    layers: int  # 24
    answers: list[str]  # one a prompt


def main() -> None:
    arguments = parse_arguments()
    folders = {"pruned": arguments.pruned, "healed": arguments.healed, "original": arguments.original}
    try:
        prompts = arguments.prompt or (arguments.file and read_prompts(arguments.file, arguments.id))
        prompts = prompts or list(HELD_OUT_PROMPTS)
        present = {title: check_folder(folder) for title, folder in folders.items() if folder}
        columns = [answer_all(title, folder, prompts, arguments.max_tokens) for title, folder in present.items()]
    except LimbeckError as error:
        sys.exit(f"error: {error}")
    show(prompts, columns)


def parse_arguments() -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--original", type=Path, default=Path("models/smollm2-135m-instruct"), metavar="FOLDER")
    parser.add_argument("--pruned", type=Path, default=Path("models/smollm2-pruned"), metavar="FOLDER")
    parser.add_argument("--healed", type=Path, metavar="FOLDER", help="the trained student; absent: two columns")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    parser.add_argument("--file", type=Path, help="JSONL with `id` and `prompt`, instead of --prompt")
    parser.add_argument("--id", action="append", help="a row of --file; may be given several times")
    parser.add_argument("--max-tokens", type=int, default=48, help="longest answer (default: %(default)s)")
    arguments = parser.parse_args()
    if bool(arguments.file) != bool(arguments.id):
        parser.error("--file and --id go together: the ids say which rows of the file")
    if arguments.file and arguments.prompt:
        parser.error("give either --prompt or --file, not both")
    if arguments.max_tokens < 1:
        parser.error("--max-tokens must be at least 1")
    return arguments


def read_prompts(path: Path, ids: Sequence[str]) -> list[str]:
    """The prompts of the rows `ids`, in that order."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        by_id = {row["id"]: row["prompt"] for row in rows}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not JSONL with an `id` and a `prompt` a row: {error!r}") from None
    unknown = [name for name in ids if name not in by_id]
    if unknown:
        raise DataError(f"{path} has no row {', '.join(unknown)}; its ids look like {next(iter(by_id), 'none')!r}")
    return [by_id[name] for name in ids]


def check_folder(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no model (no config.json). scripts/smollm2/prepare.py writes the first two.")
    return folder


def answer_all(title: str, folder: Path, prompts: Sequence[str], max_tokens: int) -> Column:
    """Greedy answers of the model in `folder`, one prompt at a time: no padding to get wrong."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0]
        response = tokens[inputs["input_ids"].shape[1] :]
        cut = " ..." if response[-1] != tokenizer.eos_token_id else ""
        answers.append(tokenizer.decode(response, skip_special_tokens=True).strip() + cut)
    return Column(title, model.config.num_hidden_layers, answers)


def show(prompts: Sequence[str], columns: Sequence[Column]) -> None:
    """One row a prompt. `Text` keeps rich from reading an answer's brackets as markup."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    table.add_column("prompt", ratio=2)
    for column in columns:
        table.add_column(f"{column.title} ({column.layers} layers)", ratio=3)
    for prompt, *answers in zip(prompts, *(column.answers for column in columns), strict=True):
        table.add_row(Text(printable(prompt), style="bold"), *(Text(printable(answer)) for answer in answers))
    console = Console()
    # In a file or a pipe rich assumes 80 columns, too few for four columns of text.
    (console if console.is_terminal else Console(width=132)).print(table)


if __name__ == "__main__":
    main()
