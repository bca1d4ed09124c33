"""The smallest environment: a prompt, one response."""

from __future__ import annotations

import numpy as np

from limbeck.protocols import Generate
from limbeck.records import Context, Episode, Failure, Key, Prompt


class SingleTurn:
    """One prompt gets one answer."""

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        answer = await generate(Context(np.asarray(prompt.token_ids, dtype=np.int64)))
        return answer if isinstance(answer, Failure) else generate.episode()
