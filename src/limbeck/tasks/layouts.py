"""Data as other programs lay it out, read as it is: TRL, verl and slime.

    TRL      {"prompt": [messages], "completion": [messages]}           the completion is not shown to the student
             {"messages": [..., {"role": "assistant", ...}]}            nor is a last message of the assistant
             {"chosen": [messages], "rejected": [messages]}             the prompt is what both begin with
    verl     {"prompt": [messages], "reward_model": {"ground_truth": "72"}, "extra_info": {"index": 17}}
    slime    {"prompt": text or [messages], "label": "72", "metadata": {}}

A layout is looked for where the recipe names no column and the data has none of Limbeck's own name. Rows that say
different things about it are refused: then the recipe has to decide.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.config.task import ColumnsConfig
from limbeck.errors import DataError
from limbeck.tasks.paths import value_at

logger = logging.getLogger("limbeck")

ANSWER, ID = "answer", "id"  # Limbeck's own names
VERL_ANSWER, VERL_ID, SLIME_ANSWER = "reward_model.ground_truth", "extra_info.index", "label"
CHOSEN, REJECTED, COMPLETION = "chosen", "rejected", "completion"

ENDS_WITH_ASSISTANT = (
    "TRL conversations: their last messages are the assistant's and are not shown to the student (to go on with them "
    "set task.continue_final_message = true)"
)
REPEATED = f"{VERL_ID} names several rows, which are numbered instead"
LAYOUTS = {  # by what it was recognised by
    VERL_ANSWER: f"verl: answers are in {VERL_ANSWER}",
    SLIME_ANSWER: f"slime: answers are in {SLIME_ANSWER}",
    COMPLETION: "TRL prompts and completions: completions are not shown to the student",
    CHOSEN: "TRL preferences: prompts are the messages that chosen and rejected begin with",
    ENDS_WITH_ASSISTANT: ENDS_WITH_ASSISTANT,
    REPEATED: REPEATED,
}


@dataclass(frozen=True)
class Found:
    """Where a row keeps what."""

    answer: str
    id: str
    messages: Sequence[Any] | None = None  # of the prompt, where they are part of a column
    parts: tuple[str, ...] = ()  # the columns that those are in


class Layouts:
    """Of the rows of one source, which must agree with each other."""

    def __init__(self, columns: ColumnsConfig, continued: bool = False) -> None:
        self.columns, self.continued = columns, continued
        self._said: dict[str, tuple[str, str]] = {}  # what was asked: the answer, and which row gave it first
        self._seen: set[str] = set()

    def of(self, values: Mapping[str, Any], where: str) -> Found:
        """Raises `DataError` where the row has two layouts, or another one than the rows before."""
        answer = self._answer(values, where)
        messages = self._messages(values, where)
        if values.get(COMPLETION) is not None and values.get(self.columns.prompt) is not None:
            self._seen.add(COMPLETION)
        return Found(answer, self._id(values, answer), messages, (CHOSEN, REJECTED) if CHOSEN in self._seen else ())

    def numbers_rows(self, ids: Sequence[str]) -> bool:
        """Whether rows are numbered because verl's index, which nobody asked for, names several."""
        if VERL_ANSWER not in self._seen or self.columns.id is not None or len(set(ids)) == len(ids):
            return False
        self._seen.add(REPEATED)
        return True

    def note(self, name: str) -> None:
        """One line about what was recognised."""
        if self._seen:
            logger.warning("%s is read as %s", name, "; ".join(LAYOUTS[sign] for sign in LAYOUTS if sign in self._seen))

    def _answer(self, values: Mapping[str, Any], where: str) -> str:
        if self.columns.answer is not None:
            return self.columns.answer
        if values.get(ANSWER) is not None:
            found = [ANSWER]
        else:
            verl = _verl_answer(values)
            label = None if values.get(COMPLETION) is not None or CHOSEN in values else values.get(SLIME_ANSWER)
            found = [VERL_ANSWER] if verl is not None else []
            found += [SLIME_ANSWER] if label is not None and not isinstance(label, bool) else []
        if len(found) > 1:
            raise DataError(
                f"there are a {VERL_ANSWER!r}, as verl has it, and a {SLIME_ANSWER!r}, as slime has it. Set "
                "task.columns.answer to the one that is the answer."
            )
        if not found:
            return ANSWER
        self._agree("answer", found[0], where, f"answers are in {found[0]!r}", "Set task.columns.answer.")
        return found[0]

    def _id(self, values: Mapping[str, Any], answer: str) -> str:
        if self.columns.id is not None:
            return self.columns.id
        return VERL_ID if answer == VERL_ANSWER and values.get(ID) is None else ID

    def _messages(self, values: Mapping[str, Any], where: str) -> Sequence[Any] | None:
        """Those of a prompt that are part of a conversation which goes on after it."""
        if values.get(self.columns.prompt) is not None:
            return None
        messages = value_at(values, self.columns.messages)
        if messages is None:
            return self._preferred(values)
        ends = isinstance(messages, list) and bool(messages) and _role(messages[-1]) == "assistant"
        if self.continued:
            return None
        what = "the messages end with one of the assistant" if ends else "the messages end with one to answer"
        self._agree(
            "end", str(ends), where, what, "Remove it, or set task.continue_final_message = true to go on with it."
        )
        if not ends:
            return None
        self._seen.add(ENDS_WITH_ASSISTANT)
        return list(messages[:-1])

    def _preferred(self, values: Mapping[str, Any]) -> Sequence[Any] | None:
        chosen, rejected = values.get(CHOSEN), values.get(REJECTED)
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            return None
        common = 0
        while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
            common += 1
        self._seen.add(CHOSEN)
        return list(chosen[:common])

    def _agree(self, question: str, said: str, where: str, what: str, remedy: str) -> None:
        """Raises `DataError` where an earlier row said something else."""
        before, at = self._said.setdefault(question, (said, f"{where}: {what}"))
        if before != said:
            raise DataError(f"{what}, but in {at}. One file has one layout. {remedy}")
        if said in LAYOUTS:
            self._seen.add(said)


def _verl_answer(values: Mapping[str, Any]) -> Any:
    """What verl compares with. A `reward_model` may be anything else elsewhere."""
    try:
        return value_at(values, VERL_ANSWER)
    except DataError:
        return None


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None
