"""How a teacher sees a rollout: `prompted`, the student's tokens after a prompt of the teacher's own.

    student   [its prompt]      [the answer ... its end of turn]
    teacher   [another prompt]  [the answer ... the teacher's end of turn]

One token of the teacher's stands for each of the student's (`relabelling.py`), so whatever is exact after the same
prompt is exact after another: q is the teacher's distribution after its own prompt and the student's response so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import DataError
from limbeck.models.chat import chat_text
from limbeck.models.chat import name_of as tokenizer_name
from limbeck.models.head import Head
from limbeck.records import (
    Failure,
    HiddenScores,
    Ints,
    Mask,
    Prompt,
    Rollout,
    ScoreRequest,
    Scores,
    Support,
    TopKScores,
    Turn,
    View,
)
from limbeck.teacher_views.prompts import TeacherPrompts
from limbeck.teacher_views.relabelling import Relabelling
from limbeck.teacher_views.same import name_of
from limbeck.teacher_views.template_tokens import TemplateTokens, template_tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = "Limbeckturn"  # stands for an answer while what follows it is rendered


@dataclass(frozen=True)
class Part:
    """Some tokens of the rollout as the teacher sees them."""

    ids: Ints  # [n] in the teacher's ids
    trained: Mask  # [n]


class PromptedView:
    """`same_template`: chats are rendered alike on both sides, so what stands between turns stays as it is."""

    def __init__(self, prompts: TeacherPrompts, relabelling: Relabelling) -> None:
        self.prompts, self.relabelling = prompts, relabelling
        student, teacher = prompts.student, prompts.tokenizer
        self.student_tokens, self.teacher_tokens = (
            template_tokens_of(student),
            _tokens_as_mapped(student, teacher, relabelling),
        )
        self.same_template = relabelling.is_identity and student.chat_template == teacher.chat_template
        self._renamed: dict[str, str] = {}  # heads: the teacher's fingerprint, and that of its rows in our order

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Thinking begins in it just where it begins in the student's. Raises `DataError`."""
        theirs = self.prompts(prompt)
        ours_opened = _opened(prompt.token_ids, self.student_tokens, self.prompts.student)
        theirs_opened = _opened(theirs, self.teacher_tokens, self.prompts.tokenizer)
        if ours_opened is None and theirs_opened is not None:
            return theirs[:theirs_opened]
        if ours_opened is not None and theirs_opened is None and self.teacher_tokens.opening is not None:
            return (*theirs, self.teacher_tokens.opening, *prompt.token_ids[ours_opened + 1 :])
        return theirs

    def heads(self, heads: Mapping[str, Head]) -> Mapping[str, Head]:
        """The teacher's output heads over the student's ids, by fingerprint."""
        relabelled = {fingerprint: self.relabelling.head(head) for fingerprint, head in heads.items()}
        self._renamed = {
            theirs: theirs if head is heads[theirs] else head.fingerprint() for theirs, head in relabelled.items()
        }
        return {self._renamed[theirs]: head for theirs, head in relabelled.items()}

    def see(self, rollout: Rollout, support: Support) -> View | Failure:
        """A `Failure` where it is not known what the teacher is to see."""
        name, start = name_of(rollout), len(rollout.prompt.token_ids)
        if tuple(rollout.token_ids[:start].tolist()) != rollout.prompt.token_ids:
            return Failure(
                name,
                "score",
                "other_prompt",
                "the rollout does not begin with the tokens of its prompt, so the teacher's prompt can take the place "
                "of nothing. Set teacher.view.kind = 'same' for agents and environments that write their own prompts.",
            )
        try:
            prompt = np.asarray(self.prompt_ids(rollout.prompt), dtype=np.int64)
            parts = [Part(prompt, np.zeros(len(prompt), bool)), *self._parts(rollout, start)]
        except DataError as error:
            return Failure(name, "score", "not_rendered", str(error))
        if isinstance(support, np.ndarray):
            support = self.relabelling.to_teacher(support)
        ids, trained = (np.concatenate([getattr(part, what) for part in parts]) for what in ("ids", "trained"))
        request = ScoreRequest(name, ids, trained, rollout.sampling.temperature, support, rollout.prompt.teacher)
        each_S = np.arange(int(trained.sum()))
        masked = self.relabelling.masked
        why = [masked.get(id_) for id_ in rollout.response_ids.tolist()] if masked else []
        left_out = Counter(reason for reason in why if reason is not None)
        if left_out:
            each_S = np.where([reason is None for reason in why], each_S, -1)
        return View(request, each_S, each_S, left_out)

    def read(self, rollout: Rollout, view: View, scores: Scores) -> Scores:
        """In the student's ids; what is left out of the comparison is left out of the loss."""
        if isinstance(scores, TopKScores):
            scores = replace(scores, ids=self.relabelling.to_student(scores.ids))
        if isinstance(scores, HiddenScores):
            scores = replace(scores, head=self._renamed.get(scores.head, scores.head))
        compared_S = view.student_group >= 0
        if compared_S.all():
            return scores
        valid_S = compared_S if scores.valid_mask is None else compared_S & scores.valid_mask
        return replace(scores, valid_mask=valid_S)

    def _parts(self, rollout: Rollout, start: int) -> Iterator[Part]:
        """What follows the prompt. Raises `DataError` for a turn that cannot be rendered again."""
        turns = [turn for turn in rollout.turns if turn.end > start]
        if self.same_template or not turns:
            turns = [Turn(start, len(rollout.token_ids), "student")]
        said: Turn | None = None
        shown: list[Turn] = []
        for turn in turns:
            if turn.role != "student":
                shown.append(turn)
                continue
            if shown:
                yield self._between(rollout, said, shown)
                shown = []
            place = slice(max(start, turn.start), turn.end)
            yield Part(self.relabelling.to_teacher(rollout.token_ids[place]), rollout.trained[place])
            said = turn

    def _between(self, rollout: Rollout, said: Turn | None, shown: Sequence[Turn]) -> Part:
        """What the teacher's template writes after one answer and before the next, in place of what `shown` says."""
        unknown = next((turn for turn in shown if turn.role == "context" or not turn.text), None)
        tokenizer, chat = self.prompts.tokenizer, self.prompts.chat_of(rollout.prompt)
        if said is None or unknown is not None or chat is None:
            raise DataError(
                f"the chat template of the teacher ({tokenizer_name(tokenizer)}) differs from the student's, and what "
                "the student was shown between its turns has no role and text to be rendered again. Give each "
                "Context its `role` ('user', 'tool' or 'system') and `text`, or teach with the same template."
            )
        messages = [{"role": turn.role, "content": turn.text} for turn in shown]
        answer = {"role": "assistant", "content": SENTINEL}
        text = chat_text(tokenizer, [*chat.messages, answer, *messages], chat.tools or None, chat.options)
        if SENTINEL not in text:
            raise DataError(
                f"the chat template of the teacher ({tokenizer_name(tokenizer)}) leaves out earlier answers, so what "
                "follows one cannot be rendered again. Teach with the same template."
            )
        ids = tokenizer(text.rpartition(SENTINEL)[2], add_special_tokens=False)["input_ids"]
        ended = self.relabelling.to_teacher(rollout.token_ids[said.end - 1 : said.end]).tolist()
        if ids and ids[:1] == ended == [self.teacher_tokens.end_of_turn]:
            ids = ids[1:]  # the student said it
        return Part(np.asarray(ids, dtype=np.int64), np.zeros(len(ids), bool))


def _tokens_as_mapped(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, relabelling: Relabelling
) -> TemplateTokens:
    """The teacher's; where its template knows no thinking, thinking begins with what stands for the student's token."""
    ours, theirs = template_tokens_of(student), template_tokens_of(teacher)
    if theirs.opening is not None or ours.opening is None or ours.opening in relabelling.masked:
        return theirs
    return replace(theirs, opening=relabelling.id_of(ours.opening))


def _opened(ids: Sequence[int], tokens: TemplateTokens, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Where thinking begins at the end of a prompt, with nothing but white space behind it; None where it does not."""
    if tokens.opening is None or tokens.opening not in ids:
        return None
    last = len(ids) - 1 - list(reversed(ids)).index(tokens.opening)
    text: str = tokenizer.decode(list(ids[last + 1 :]))
    return None if text.strip() else last
