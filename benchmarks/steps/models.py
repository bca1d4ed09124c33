"""Model folders and texts of the cases. Run in Limbeck's environment:

    python -m steps.models FOLDER SMOLLM2_FOLDER CASE STEPS       prints {"student", "teacher", "texts"}

`tiny` is the demo's teacher (3.2M) with a random student of 1M; `smollm2` is SmolLM2-135M-Instruct with a
student without six of its layers, made by `scripts/smollm2/prepare.py` where they are not there yet.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from steps.cases import Case

ROOT = Path(__file__).parents[2]


def tiny(folder: Path, vocabulary: int | None) -> tuple[Path, Path]:
    """Student and teacher in float32, each with the demo's tokenizer of one character a token.

    With a `vocabulary` of its own the head is wider than the tokenizer, and the teacher is random too.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    size = f"-{vocabulary}" if vocabulary else ""
    student, teacher = folder / f"tiny-student{size}", folder / f"tiny-teacher{size}"
    shipped = ROOT / "src" / "limbeck" / "demo"
    tokenizer = AutoTokenizer.from_pretrained(shipped / "teacher")

    def random_model(like: str, layers: int) -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {"vocab_size": vocabulary} if vocabulary else {}
        config = LlamaConfig.from_pretrained(shipped / like, num_hidden_layers=layers, dtype="float32", **sizes)
        return LlamaForCausalLM(config)

    if not teacher.exists() and vocabulary:
        random_model("teacher", layers=4).save_pretrained(teacher)
        tokenizer.save_pretrained(teacher)
    elif not teacher.exists():
        AutoModelForCausalLM.from_pretrained(shipped / "teacher", dtype=torch.float32).save_pretrained(teacher)
        tokenizer.save_pretrained(teacher)
    if not student.exists():
        random_model("student", layers=5).save_pretrained(student)
        tokenizer.save_pretrained(student)
    return student, teacher


def smollm2(folder: Path) -> tuple[Path, Path]:
    student, teacher = folder / "smollm2-pruned", folder / "smollm2-135m-instruct"
    if not (student.exists() and teacher.exists()):
        prepare = ROOT / "scripts" / "smollm2" / "prepare.py"
        subprocess.run([sys.executable, prepare, "--models", folder], check=True, stdout=sys.stderr)
    return student, teacher


def words(tokenizer: Any) -> list[str]:
    """Texts that are one token wherever they stand."""
    if len(tokenizer) < 1000:
        return list("0123456789")
    found = [token for token in tokenizer.get_vocab() if token[0] == "\u0120" and token[1:].isascii()]
    return sorted(" " + token[1:] for token in found if token[1:].isalpha() and token[1:].islower())


def texts(case: Case, tokenizer: Any, steps: int) -> list[list[str]]:
    """[steps][prompts] texts of exactly `prompt_tokens` tokens. Raises `ValueError` where one is not."""
    generator, known = random.Random(0), words(tokenizer)
    made = [
        ["".join(generator.choices(known, k=case.prompt_tokens)) for _ in range(case.prompts)] for _ in range(steps)
    ]
    lengths = {len(tokenizer(text)["input_ids"]) for row in made for text in row}
    if lengths != {case.prompt_tokens}:
        raise ValueError(f"prompts should have {case.prompt_tokens} tokens, but have {sorted(lengths)}")
    return made


def main() -> None:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    own, of_smollm2, case, steps = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Case(**json.loads(sys.argv[3])),
        int(sys.argv[4]),
    )
    own.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    student, teacher = tiny(own, case.vocabulary) if case.models == "tiny" else smollm2(of_smollm2)
    made = texts(case, AutoTokenizer.from_pretrained(student), steps)
    print(json.dumps({"student": str(student.resolve()), "teacher": str(teacher.resolve()), "texts": made}))


if __name__ == "__main__":
    main()
