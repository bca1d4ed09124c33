"""From a recipe's teacher table to a teacher, and to the proof that it can be trusted.

Opening comes before the task is loaded (it narrows the vocabulary), proving after it (the probes are made
of the task's prompts).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from limbeck.config.base import ModelConfig
from limbeck.config.recipe import Recipe
from limbeck.config.teacher import LocalTeacherConfig, RemoteTeacherConfig, RoutedTeacherConfig, StatesTeacherConfig
from limbeck.contract.probes import check_same_tokenizer, check_tokenizers, continuations, prove, same_weights
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError
from limbeck.learners.local import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.models.loading import load_model, load_tokenizer, resolve
from limbeck.protocols import Task, Teacher
from limbeck.records import ProbeResult
from limbeck.teachers.connect import remote_teacher
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.remote import RemoteTeacher
from limbeck.teachers.routed import RoutedTeacher
from limbeck.training.run_folder import RunFolder

PADDING = 512  # output heads are padded to multiples of at most this
PROBE_PROMPTS = 8
ONLY = "teacher"  # the name of one that has none


@dataclass
class Opened:
    """The teachers of a run, by name, and what is known of them before the first prompt."""

    members: dict[str, Teacher] = field(default_factory=dict)
    default: str | None = None
    verdicts: list[ProbeResult] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    min_scored_fraction: float = 1.0

    @property
    def teacher(self) -> Teacher:
        """The only one, or the router among them."""
        only = self.members.get(ONLY)
        return only if only is not None and len(self.members) == 1 else RoutedTeacher(self.members, self.default)


def open_teachers(recipe: Recipe, student: CausalLM, device: torch.device) -> Opened:
    """Load or connect every teacher, and compare tokenizers where there are two to compare."""
    section = recipe.teacher
    sections = dict(section.teachers) if isinstance(section, RoutedTeacherConfig) else {ONLY: section}
    opened = Opened(default=section.default if isinstance(section, RoutedTeacherConfig) else None)
    for name, member in sections.items():
        opened.members[name] = (
            _local(name, member, student, device, opened)
            if isinstance(member, LocalTeacherConfig)
            else _remote(name, member, recipe, student, device, opened)
        )
    fractions = [s.min_scored_fraction for s in sections.values() if isinstance(s, RemoteTeacherConfig)]
    opened.min_scored_fraction = max(fractions, default=1.0)
    return opened


async def prove_teachers(
    opened: Opened, task: Task, recipe: Recipe, student: CausalLM, folder: RunFolder, resumed: bool
) -> list[ProbeResult]:
    """Every teacher's contract; the verdicts stay in the run's folder. Raises `ContractError`, `DataError`."""
    if isinstance(teacher := opened.teacher, RoutedTeacher):
        teacher.check_routes([*task.train, *task.held_out])
    verdicts = list(opened.verdicts)
    temperature = recipe.rollout.temperature
    for name, member in opened.members.items():
        if isinstance(member, RemoteTeacher):
            texts = [prompt.token_ids for prompt in task.train[:PROBE_PROMPTS]]
            ids = continuations(max(texts, key=len), student.vocabulary)
            found = await prove_remote(member, texts, ids, temperature, student.tokenizer)
            _same_as_before(name, member, folder, resumed)
        else:
            found = await prove(member, task.train, temperature, student.vocabulary)
        if not resumed and _is_the_student(name, member, recipe):
            found.append(await same_weights(member, LocalPolicy(0, student), task.train[:PROBE_PROMPTS], temperature))
        verdicts += [_of(name, verdict) for verdict in found] if len(opened.members) > 1 else found
    folder.write_lines("contract.jsonl", [asdict(verdict) for verdict in verdicts])
    return verdicts


def _is_the_student(name: str, teacher: Teacher, recipe: Recipe) -> bool:
    """Whether a teacher is, or says it is, the model that the student begins as."""
    ours = {recipe.student.model, resolve(recipe.student.model)}
    if isinstance(teacher, RemoteTeacher):
        assert teacher.anchor is not None
        return any(not ours.isdisjoint(said.split()) for said in teacher.anchor.identities.values())
    sections = recipe.teacher.teachers if isinstance(recipe.teacher, RoutedTeacherConfig) else {ONLY: recipe.teacher}
    section = sections[name]
    return isinstance(section, LocalTeacherConfig) and resolve(section.model) in ours


def _local(name: str, section: LocalTeacherConfig, student: CausalLM, device: torch.device, opened: Opened) -> Teacher:
    lm = load_model(section, device)
    opened.verdicts.append(check_tokenizers(student, lm, section.same_chat_template))
    if lm.context is not None:
        opened.contexts.append(lm.context)
    return LocalTeacher(name, lm)


def _remote(
    name: str, section: RemoteTeacherConfig, recipe: Recipe, student: CausalLM, device: torch.device, opened: Opened
) -> Teacher:
    if section.tokenizer is not None:
        theirs = load_tokenizer(section.tokenizer)
        check_same_tokenizer(student.name, student.tokenizer, section.tokenizer, theirs, section.same_chat_template)
        opened.verdicts.append(ProbeResult("tokenizer", f"{section.tokenizer}: {len(theirs)} tokens", "the student's"))
    head = _head(section, student, device)
    support = recipe.objective.support if isinstance(recipe.objective.support, int) else 0
    vocabulary = section.vocabulary or -(-student.vocabulary // PADDING) * PADDING + PADDING
    return remote_teacher(name, section, vocabulary, student.vocabulary, support, head)


def _head(section: RemoteTeacherConfig, student: CausalLM, device: torch.device) -> Head | None:
    """The output head of `teacher.head` alone; both heads are narrowed to the vocabulary they share."""
    if not isinstance(section, StatesTeacherConfig) or section.head is None:
        return None
    lm = load_model(ModelConfig(model=section.head), device)
    check_tokenizers(student, lm, section.same_chat_template)
    head = lm.head().detach()
    return Head(
        head.weight_Vd.clone(), None if head.bias_V is None else head.bias_V.clone(), head.multiplier, head.softcap
    )


def _same_as_before(name: str, teacher: RemoteTeacher, folder: RunFolder, resumed: bool) -> None:
    """A resumed run goes on with the teacher it began with. Raises `ContractError` for another one."""
    anchor = teacher.anchor
    assert anchor is not None
    reply = anchor.replies[teacher.pool.urls[0]]
    values = reply.logprobs if reply.hidden is None else reply.hidden.mean(axis=1)
    now = {"method": teacher.method, "ids": anchor.question.token_ids.tolist(), "values": [float(v) for v in values]}
    path = folder.path / f"teacher-{name}.jsonl"
    if resumed and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["method"] == now["method"] and before["ids"] == now["ids"]:
            apart = float(np.abs(np.array(before["values"]) - np.array(now["values"])).max(initial=0.0))
            if apart > teacher.section.probe_tolerance:
                raise ContractError(
                    f"teacher {name} is another one than this run began with: a fixed text is {apart:.3g} nats away "
                    f"(at most {teacher.section.probe_tolerance} expected). Start the former server again, or give "
                    "the run another name=..."
                )
    folder.write_lines(path.name, [now])


def _of(name: str, verdict: ProbeResult) -> ProbeResult:
    return ProbeResult(f"{name}: {verdict.probe}", verdict.measured, verdict.expected, verdict.ok)
