"""What a person reads of a rollout: what was asked last, and what was said turn by turn."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.records import Ints, Prompt, Rollout, Turn

Decode = Callable[[Ints], str]


def question_of(prompt: Prompt) -> str:
    """What the user asked last: the content of the last user message of a chat, else the prompt's text."""
    messages = prompt.chat.messages if prompt.chat else ()
    asked = [message.get("content") for message in messages if message.get("role") == "user"]
    return asked[-1] if asked and isinstance(asked[-1], str) else prompt.text


def text_of(turn: Turn, rollout: Rollout, decode: Decode) -> str:
    """What the environment says that the turn says, else the text of its tokens. Special tokens are left out."""
    return turn.text or decode(rollout.token_ids[turn.start : turn.end])


def response_turns(rollout: Rollout) -> list[Turn]:
    """The student's first turn and all that follows it."""
    start = next((turn.start for turn in rollout.turns if turn.role == "student"), len(rollout.token_ids))
    return [turn for turn in rollout.turns if turn.start >= start]
