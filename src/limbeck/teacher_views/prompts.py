"""The prompt that a teacher sees in place of the student's: other messages, another template, each rendered once.

    prompts = TeacherPrompts(section, student_tokenizer, teacher_tokenizer)
    prompts(prompt)                the tokens, in the teacher's ids

A chat goes through the teacher's chat template. A prompt of raw text stays raw text, with the parts of the view before
it as they are written, unless the student has no template at all and the teacher has one: then it is a user's message.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config.view import PromptConfig
from limbeck.errors import DataError, RecipeError
from limbeck.models.chat import chat_ids, name_of, prove_template
from limbeck.models.contents import ShownContents
from limbeck.records import Chat, Prompt
from limbeck.teacher_views.columns import fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"  # between the last user message and the context


class TeacherPrompts:
    """Renders prompts for a teacher.

    Raises `RecipeError` for a template that cannot be read, and `ModelError` for one that is no program.
    """

    def __init__(
        self, section: PromptConfig, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
    ) -> None:
        self.section, self.student = section, student
        self.tokenizer = teacher if section.template is None else with_template(teacher, Path(section.template))
        self._shown = ShownContents(self.tokenizer)
        self._known: dict[tuple[str, str, tuple[int, ...]], tuple[int, ...]] = {}

    def __call__(self, prompt: Prompt) -> tuple[int, ...]:
        """[P'] the teacher's tokens before the student's first turn. Raises `DataError` naming the prompt."""
        key = (prompt.task, prompt.id, prompt.token_ids)
        if key not in self._known:
            try:
                self._known[key] = tuple(self._render(prompt))
            except DataError as error:
                raise DataError(f"prompt {prompt.id!r}, as the teacher is to see it: {error}") from error.__cause__
        return self._known[key]

    def chat_of(self, prompt: Prompt) -> Chat | None:
        """The chat that the teacher sees; None for raw text. Raises `DataError`."""
        chat = prompt.chat or self._chat_of_text(prompt)
        if chat is None:
            return None
        return Chat(tuple(self._messages(prompt, chat)), chat.tools, chat.options, chat.continued)

    def _render(self, prompt: Prompt) -> Sequence[int]:
        chat = self.chat_of(prompt)
        if chat is None:
            return self._raw(prompt)
        if not self.tokenizer.chat_template:
            raise DataError(
                f"it is a chat, and the tokenizer {name_of(self.tokenizer)} has no chat template. Set "
                "teacher.view.template to a file that has one."
            )
        messages = self._shown.fitted(chat)
        return chat_ids(self.tokenizer, messages, chat.tools or None, chat.options, chat.continued)

    def _messages(self, prompt: Prompt, chat: Chat) -> list[dict[str, Any]]:
        messages = [dict(message) for message in chat.messages]
        section = self.section
        if section.system is not None:
            if messages and messages[0].get("role") == "system":
                messages = messages[1:]
            messages = [{"role": "system", "content": section.system}, *messages]
        if section.context is not None:
            last = next((m for m in reversed(messages) if m.get("role") == "user"), None)
            if last is None:
                raise DataError("there is no user message that teacher.view.context could be appended to.")
            last["content"] = _appended(last.get("content"), self._context(prompt))
        begin = next((i for i, message in enumerate(messages) if message.get("role") != "system"), len(messages))
        shots = [
            {"role": role, "content": content}
            for shot in section.few_shot
            for role, content in (("user", shot.prompt), ("assistant", shot.completion))
        ]
        return [*messages[:begin], *shots, *messages[begin:]]

    def _context(self, prompt: Prompt) -> str:
        assert self.section.context is not None
        meant = {"prompt": prompt.text, "answer": prompt.answer, "id": prompt.id, "task": prompt.task}
        columns: Mapping[str, Any] = {**meant, **prompt.metadata}
        return fill(self.section.context, columns, "the row")

    def _chat_of_text(self, prompt: Prompt) -> Chat | None:
        """A user's message for a teacher that takes chats, where the student can only be given text."""
        self._require_raw(prompt)
        if self.tokenizer.chat_template and (self.section.template is not None or not self.student.chat_template):
            return Chat(({"role": "user", "content": prompt.text},))
        return None

    def _require_raw(self, prompt: Prompt) -> None:
        """Its text is all that the student was shown, or else nobody knows what the teacher is to be shown."""
        ids = self.student(prompt.text)["input_ids"] if prompt.text else []
        if tuple(ids) != tuple(prompt.token_ids):
            raise DataError(
                "it says neither which chat nor which text its tokens are. A task of your own gives its prompts a "
                "`chat` (limbeck.records.Chat), or the `text` that they are the tokens of."
            )

    def _raw(self, prompt: Prompt) -> Sequence[int]:
        section = self.section
        parts = [section.system or "", *(shot.prompt + shot.completion for shot in section.few_shot)]
        parts += [] if section.context is None else [self._context(prompt)]
        ids: list[int] = self.tokenizer("".join([*parts, prompt.text]))["input_ids"]
        return ids


def with_template(tokenizer: PreTrainedTokenizerBase, path: Path) -> PreTrainedTokenizerBase:
    """A copy with the chat template in a file. Raises `RecipeError`, `ModelError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"teacher.view.template = {str(path)!r} cannot be read: {error}") from None
    other = copy.deepcopy(tokenizer)
    other.chat_template = text
    prove_template(other)
    return other


def _appended(content: Any, text: str) -> Any:
    """To a message's content, which is text or a list of parts."""
    if isinstance(content, list):
        return [*content, {"type": "text", "text": text}]
    return f"{content}{SEPARATOR}{text}" if content else text
