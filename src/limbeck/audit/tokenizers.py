"""The folders' tokenizers against each other, and the dump's own texts against its ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.audit.dump import Row
from limbeck.audit.report import Finding
from limbeck.contract.tokenizers import check_same_tokenizer
from limbeck.errors import ContractError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.causal_lm import CausalLM

SOME = 0.2  # share of rows whose text is another, from which on it is said


def check_tokenizers(student: CausalLM, teacher: CausalLM | None, rows: Sequence[Row]) -> list[Finding]:
    """No teacher where it is a server: its contract compares them."""
    return [*(_two(student, teacher) if teacher is not None else ()), *_texts(student, rows)]


def _two(student: CausalLM, teacher: CausalLM) -> list[Finding]:
    ours, theirs = student.tokenizer, teacher.tokenizer
    if _file(student) is not None and _file(student) == _file(teacher):
        theirs = _as_loaded(teacher, student)
    try:
        check_same_tokenizer(student.name, ours, teacher.name, theirs, accept="")
    except ContractError as error:
        result = error.results[0]
        name = "template" if "template" in result.measured else "tokenizer"
        text = str(error).removesuffix(result.remedy).strip()
        cause = "student and teacher are not of one family, or one was changed"
        return [Finding(name, result.measured, result.expected, text, cause, result.remedy)]
    return []


def _file(lm: CausalLM) -> bytes | None:
    """The tokenizer's own file, None where the model has no folder here or its folder has none."""
    path = Path(str(lm.tokenizer.name_or_path)) / "tokenizer.json"
    return path.read_bytes() if path.is_file() else None


def _as_loaded(teacher: CausalLM, student: CausalLM) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer as the student's class reads it.

    transformers chooses a class by the model's type, and a class may replace what the file says: one file read by two
    classes is still one tokenizer. Its end token and chat template stay the teacher's own.
    """
    again = type(student.tokenizer).from_pretrained(str(teacher.tokenizer.name_or_path))
    again.eos_token, again.chat_template = teacher.tokenizer.eos_token, teacher.tokenizer.chat_template
    return again


def _texts(student: CausalLM, rows: Sequence[Row]) -> list[Finding]:
    texts = [row for row in rows if row.response_text]
    bad = [row for row in texts if not _same_text(student, row)]
    if len(bad) <= SOME * len(texts):
        return []
    text = (
        f"the ids of {len(bad)} of {len(texts)} rows decode to another text than the dump says, such as in "
        f"{bad[0].where}."
    )
    cause = "the dump was made with another tokenizer than the student's"
    remedy = "give the student's own folder, or make the dump with its tokenizer"
    return [Finding("tokenizer", len(bad) / len(texts), 0.0, text, cause, remedy)]


def _same_text(lm: CausalLM, row: Row) -> bool:
    """Whether a row's trained ids decode to its text, special tokens and blanks at the ends aside."""
    for ids in (row.token_ids[row.start :], row.token_ids[row.trained]):
        for skip in (True, False):
            if (
                str(lm.tokenizer.decode(ids.tolist(), skip_special_tokens=skip)).strip()
                == (row.response_text or "").strip()
            ):
                return True
    return False
