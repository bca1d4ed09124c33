"""Each rollout as its own teacher sees it, where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from limbeck.protocols import TeacherView
from limbeck.records import Failure, Prompt, Rollout, Scores, Support, View


class RoutedViews:
    """`Prompt.teacher` chooses among `views`; `default` is of those that name none."""

    def __init__(self, views: Mapping[str, TeacherView], default: str | None) -> None:
        self.views, self.default = dict(views), default

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        return self._of(prompt).prompt_ids(prompt)

    def see(self, rollout: Rollout, support: Support) -> View | Failure:
        return self._of(rollout.prompt).see(rollout, support)

    def read(self, rollout: Rollout, view: View, scores: Scores) -> Scores:
        return self._of(rollout.prompt).read(rollout, view, scores)

    def _of(self, prompt: Prompt) -> TeacherView:
        name = prompt.teacher or self.default
        assert name is not None  # every prompt's route was checked (`RoutedTeacher.check_routes`)
        return self.views[name]
