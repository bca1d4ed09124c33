"""Whether the prompts of a resumed run are those it began with.

Prompts are not in the recipe: the file may have changed, or the chat template may write today's date.

    kept = digests_of_prompts(task.train)            in the run's folder: 8 characters a prompt
    digest_of_prompts(task.train)                    32 characters for all of them
    first_changed_prompt(kept, task.train)           "prompt 17 ('sums-000018') is not what it was"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from limbeck.records import Prompt

SHORT = 8  # hexadecimal digits that are kept of each prompt


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """One digest of what training sees of the prompts, in their order: id, tokens, answer and teacher."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        digest.update(_digest(prompt))
    return digest.hexdigest()


def digests_of_prompts(prompts: Sequence[Prompt]) -> str:
    """The short digests of all prompts in a row, so that the first that differs later can be named."""
    return "".join(_digest(prompt).hex()[:SHORT] for prompt in prompts)


def first_changed_prompt(kept: str, prompts: Sequence[Prompt]) -> str | None:
    """Says which is the first prompt that is not the one of `digests_of_prompts` back then; None where all are."""
    before = [kept[start : start + SHORT] for start in range(0, len(kept), SHORT)]
    for index, (digest, prompt) in enumerate(zip(before, prompts, strict=False)):
        if digest != _digest(prompt).hex()[:SHORT]:
            return f"prompt {index} ({prompt.id!r}) is not what it was: its id, tokens, answer or teacher changed"
    if len(before) != len(prompts):
        return f"there are {len(prompts)} prompts, and there were {len(before)}; those in common are the same"
    return None


def _digest(prompt: Prompt) -> bytes:
    parts = (prompt.id, " ".join(map(str, prompt.token_ids)), prompt.answer, prompt.teacher)
    # The length before each part, so that no two prompts give the same bytes; -1 for what is not there.
    encoded = [None if part is None else part.encode("utf-8", "surrogatepass") for part in parts]
    framed = [b"-1:" if part is None else b"%d:%b" % (len(part), part) for part in encoded]
    return hashlib.blake2b(b"".join(framed), digest_size=16).digest()
