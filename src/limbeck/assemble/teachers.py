"""From a recipe's teacher table to a teacher, and to the proof that it can be trusted.

A kind of teacher is one class of `teacher_kinds`. Opening comes before the task is loaded (contexts and
vocabularies bound the prompts), proving after it (the probes are made of the task's prompts).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from limbeck.assemble.own import OwnTeacher
from limbeck.assemble.proven import method_line
from limbeck.assemble.site import Site
from limbeck.assemble.sources import OpenedData
from limbeck.assemble.teacher_kinds import KINDS, PROBE_PROMPTS, LocalKind, Opened, OwnKind, SelfKind
from limbeck.assemble.views import example_of, heads_as_seen, open_view, seen_tokens, texts_of
from limbeck.config.self_teacher import ONLY, members_of
from limbeck.config.teacher import RemoteTeacherConfig, RoutedTeacherConfig, SeeingConfig
from limbeck.contract.given_ids import probe_ids
from limbeck.contract.probes import Text, same_weights
from limbeck.errors import RecipeError
from limbeck.learners.local import LocalLearner
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.objectives import Loss
from limbeck.protocols import Learner, Task, Teacher, TeacherView
from limbeck.records import ProbeResult, Prompt, Support
from limbeck.teacher_views.retokenized import RetokenizedView
from limbeck.teacher_views.routed import RoutedViews
from limbeck.teachers.remote import RemoteTeacher
from limbeck.teachers.routed import RoutedTeacher


@dataclass(frozen=True)
class Proven:
    """Teachers that may be trained on."""

    teacher: Teacher
    view: TeacherView
    heads: Mapping[str, Head]  # by fingerprint, over the student's ids, of those that answer with hidden states
    results: tuple[ProbeResult, ...]
    seconds: Callable[[], Mapping[str, float]]  # of the last scoring, by teacher where there are several
    methods: tuple[str, ...]  # a line for each teacher: how its scores come to be at the rollout's temperature
    asks_about_ids: bool  # whether one of them has to receive which tokens are on the student's support


@dataclass
class OpenTeachers:
    """The teachers of a run, by name, before the first prompt."""

    members: Mapping[str, Opened]
    default: str | None
    routed: bool
    min_scored_fraction: float
    loss: Loss  # says what training will ask for

    @property
    def models(self) -> list[CausalLM]:
        return [lm for member in self.members.values() for lm in member.models]

    @property
    def contexts(self) -> list[int]:
        """In tokens of the student's."""
        alike = [member for member in self.members.values() if not isinstance(member.view, RetokenizedView)]
        return [member.context for member in alike if member.context is not None]

    def as_seen(self, prompt: Prompt) -> tuple[int, int | None]:
        """Tokens of a prompt as its teacher sees it, and that teacher's context. Raises `DataError`."""
        member = self.members.get((prompt.teacher or self.default or "") if self.routed else ONLY)
        if member is None:  # `RoutedTeacher.check_routes` names it
            return 0, None
        return len(seen_tokens(member.view, prompt)), member.context

    async def start(self, site: Site) -> None:
        """In a fleet: the processes of local teachers, all at once. Raises what they raise."""
        await asyncio.gather(*(member.start(site) for member in self.members.values() if isinstance(member, LocalKind)))

    def follow(self, learner: Learner) -> None:
        """Teachers that are the student's own past score with what its learner keeps. Raises `RecipeError`."""
        for name, member in self.members.items():
            if isinstance(member, SelfKind) and not isinstance(learner, LocalLearner):
                raise RecipeError(
                    f"{name} is the student's own past (kind = 'self'), which learner.kind = 'local' keeps, and a "
                    f"{type(learner).__name__} does not. Give the model's folder (kind = 'local')."
                )
            if isinstance(member, SelfKind) and isinstance(learner, LocalLearner):
                member.follow(learner)

    async def prove(self, site: Site, task: Task) -> Proven:
        """Every teacher's contract. Raises `ContractError`, `DataError`."""
        teachers: dict[str, Teacher] = {}
        heads: dict[str, Head] = {}
        results: list[ProbeResult] = []
        methods: list[str] = []
        support = self._support(site)
        for name, member in self.members.items():
            prompts = self._prompts_of(name, task)
            if isinstance(member.view, RetokenizedView):
                member.view.context = member.context
            texts = texts_of(member.view, prompts, member.context, site)
            teacher = teachers[name] = await member.prove(site, texts, support)
            heads |= heads_as_seen(member.view, member.heads)
            if not isinstance(member, OpenedData):  # the data itself has no temperature
                methods.append(method_line(name, teacher, member.results, site))
            found = [*member.results, *example_of(member.view, prompts, texts[0], site)]
            if not site.resumed and member.is_student(site):
                found.append(await _same_weights(teacher, member, site, texts, support))
            results += [replace(r, probe=f"{name}: {r.probe}") for r in found] if len(self.members) > 1 else found
        ids = isinstance(support, np.ndarray) and not all(
            isinstance(self.members[name], LocalKind | SelfKind) or _sends_states(teacher)
            for name, teacher in teachers.items()
        )
        if not self.routed:
            return Proven(teachers[ONLY], self.members[ONLY].view, heads, tuple(results), dict, tuple(methods), ids)
        router = RoutedTeacher(teachers, self.default)
        router.check_routes([*task.train, *task.held_out])
        views = RoutedViews({name: member.view for name, member in self.members.items()}, self.default)
        return Proven(router, views, heads, tuple(results), lambda: router.seconds, tuple(methods), ids)

    def _prompts_of(self, name: str, task: Task) -> Sequence[Prompt]:
        """Those that the teacher scores; of a teacher that scores none, all, which it can be proven on as well."""
        prompts = [*task.train, *task.held_out]
        own = [prompt for prompt in prompts if (prompt.teacher or self.default) == name] if self.routed else prompts
        return own or prompts

    def _support(self, site: Site) -> Support:
        """As in training, but that no student has chosen the ids yet."""
        if self.loss.support == "student_top":
            return probe_ids(self.loss.size, site.student.vocabulary)
        return self.loss.support


async def _same_weights(
    teacher: Teacher, member: Opened, site: Site, texts: Sequence[Text], support: Support
) -> ProbeResult:
    texts = texts[:PROBE_PROMPTS]
    temperature = site.recipe.rollout.temperature
    fleet = site.fleet
    policy = LocalPolicy(site.student) if fleet is None or fleet.learner is None else await fleet.learner.publish()
    return await same_weights(teacher, policy, texts, temperature, member.heads, support)


def _sends_states(teacher: Teacher) -> bool:
    """Whether the learner has its whole distribution: then the support is chosen there."""
    if isinstance(teacher, RemoteTeacher):
        return teacher.proof.method == "hidden"
    return not isinstance(teacher, OwnTeacher)  # ours, in this process or in the fleet


def open_teachers(site: Site, loss: Loss) -> OpenTeachers:
    """Load or connect every teacher, and compare tokenizers where there are two to compare."""
    section = site.recipe.teacher
    if site.given.teacher is not None:
        seeing = section if isinstance(section, SeeingConfig) else SeeingConfig()
        own = OwnKind(site.given.teacher, open_view(seeing.view, site, None))
        return OpenTeachers({ONLY: own}, None, False, seeing.min_scored_fraction, loss)
    routed = isinstance(section, RoutedTeacherConfig)
    sections = members_of(site.recipe)
    members = {name: KINDS[type(member)](name, member, site) for name, member in sections.items()}
    fractions = [  # of those that may fail, or are said to
        section.min_scored_fraction
        for section in sections.values()
        if isinstance(section, RemoteTeacherConfig)
        or (isinstance(section, SeeingConfig) and "min_scored_fraction" in section.model_fields_set)
    ]
    default = section.default if isinstance(section, RoutedTeacherConfig) else None
    return OpenTeachers(members, default, routed, max(fractions, default=1.0), loss)
