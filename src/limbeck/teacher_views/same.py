"""How a teacher sees a rollout: `same`, the very tokens after the very prompt."""

from __future__ import annotations

import numpy as np

from limbeck.records import Prompt, Rollout, ScoreRequest, Scores, Support, View


class SameView:
    """Every trained token is a group of its own, on both sides."""

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        return prompt.token_ids

    def see(self, rollout: Rollout, support: Support) -> View:
        request = ScoreRequest(
            name_of(rollout),
            rollout.token_ids,
            rollout.trained,
            rollout.sampling.temperature,
            support,
            rollout.prompt.teacher,
        )
        each_S = np.arange(int(rollout.trained.sum()))
        return View(request, each_S, each_S)

    def read(self, rollout: Rollout, view: View, scores: Scores) -> Scores:
        return scores


def name_of(rollout: Rollout) -> str:
    """Of the request about it."""
    key = rollout.key
    return f"{key.prompt_id}/{key.occurrence}/{key.sample}/{rollout.segment}"
