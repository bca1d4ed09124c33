"""One teacher of each kind, from its table to its proof. A kind is one class here and one entry in `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.assemble.own import OwnTeacher
from limbeck.assemble.same_as_before import keep_answer, same_model_as_before
from limbeck.assemble.site import Site
from limbeck.assemble.sources import OpenedData
from limbeck.assemble.views import (
    compare_models,
    compare_tokenizers,
    has_other_tokens,
    heads_as_seen,
    open_view,
)
from limbeck.config.base import ModelConfig
from limbeck.config.factory import build_part
from limbeck.config.self_teacher import ONLY
from limbeck.config.teacher import (
    DatasetTeacherConfig,
    LimbeckTeacherConfig,
    LocalTeacherConfig,
    PythonTeacherConfig,
    RemoteTeacherConfig,
    SelfTeacherConfig,
    SGLangTeacherConfig,
    StatesTeacherConfig,
    VLLMTeacherConfig,
)
from limbeck.contract.natural import refuse_baked
from limbeck.contract.order import prove_order
from limbeck.contract.probes import Text, continuations, prove
from limbeck.contract.remote import prove_remote
from limbeck.learners.local import LocalLearner
from limbeck.learners.past import PastSelf, SelfTeacher
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.models.loading import load_model, load_outline, load_tokenizer, resolve
from limbeck.models.text import highest_id
from limbeck.protocols import HoldsHeads, Teacher, TeacherView
from limbeck.records import ProbeResult, Support
from limbeck.teachers.connect import connect
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.remote import RemoteTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.cluster.teachers import TeacherPool

PADDING = 512  # output heads are padded to multiples of at most this
PROBE_PROMPTS = 8


class Opened(Protocol):
    """One teacher before its proof."""

    models: Sequence[CausalLM]  # whose vocabulary has to be that of the student
    context: int | None
    results: list[ProbeResult]
    heads: Mapping[str, Head]  # by fingerprint, once it is proven: of hidden states
    view: TeacherView

    async def prove(self, site: Site, texts: Sequence[Text], support: Support) -> Teacher:
        """Adds to `results`. `texts` are all prompts as it sees them. Raises `ContractError`."""
        ...

    def is_student(self, site: Site) -> bool:
        """Whether it is, or calls itself, the model that the student begins as."""
        ...


def _key(name: str, key: str) -> str:
    """Where a member's `key` is in the recipe."""
    return f"teacher.{key}" if name == ONLY else f"teacher.teachers.{name}.{key}"


class LocalKind:
    """A model of this process, or of processes of the fleet: then it is known here by its outline."""

    def __init__(self, name: str, section: LocalTeacherConfig, site: Site) -> None:
        self.name, self.section = name, section
        self.lm = load_model(section, site.device, section.devices) if site.fleet is None else load_outline(section)
        refuse_baked(_key(name, "model"), section.model, self.lm.natural_temperature)
        self.view = open_view(section.view, site, self.lm.tokenizer)
        self.results = [compare_models(site, section, self.lm)]
        self.models: Sequence[CausalLM] = () if has_other_tokens(section) else (self.lm,)
        self.context = self.lm.context
        self.heads: Mapping[str, Head] = {}
        self.pool: TeacherPool | None = None

    async def start(self, site: Site) -> None:
        if site.fleet is not None:
            self.pool = await site.fleet.start_teacher(self.name, self.section, self.lm)

    async def prove(self, site: Site, texts: Sequence[Text], support: Support) -> Teacher:
        teacher = self.pool or LocalTeacher(self.name, self.lm)
        self.heads = teacher.heads
        await same_model_as_before(f"teacher {self.name}", teacher, site)
        vocabulary = site.student.vocabulary if self.models else self.lm.vocabulary
        self.results += await _prove(teacher, site, texts, support, vocabulary)
        return teacher

    def is_student(self, site: Site) -> bool:
        """To the bit: the same files held in another dtype are another model."""
        ours, theirs = site.recipe.student, self.section
        return ours.dtype == theirs.dtype and resolve(theirs.model) == resolve(ours.model)


class SelfKind:
    """The student's own past, which the learner keeps once there is one; before, the student as it is."""

    def __init__(self, name: str, section: SelfTeacherConfig, site: Site) -> None:
        self.name, self.section = name, section
        self.view = open_view(section.view, site, site.student.tokenizer)
        self.teacher = SelfTeacher(name, LocalPolicy(site.student))
        self.models: Sequence[CausalLM] = ()
        self.context = site.student.context
        self.heads: Mapping[str, Head] = {}
        self.results: list[ProbeResult] = []

    async def prove(self, site: Site, texts: Sequence[Text], support: Support) -> Teacher:
        self.heads = self.teacher.heads
        self.results += await _prove(self.teacher, site, texts, support, site.student.vocabulary)
        self.heads = {}  # those of the weights that it scores with come from the learner
        return self.teacher

    def follow(self, learner: LocalLearner) -> None:
        """Score with what `learner` keeps of its past, from now on."""
        section = self.section
        past = PastSelf(self.name, learner, section.lag, section.decay, partial(heads_as_seen, self.view))
        learner.pasts.append(past)
        self.teacher.past = past

    def is_student(self, site: Site) -> bool:
        return False


class OwnKind:
    """A teacher of the user's own, made already."""

    def __init__(self, teacher: Teacher, view: TeacherView) -> None:
        self.teacher, self.view = OwnTeacher(teacher), view
        self.models: Sequence[CausalLM] = ()
        self.context = self.teacher.info.context
        self.results: list[ProbeResult] = []
        self.heads: Mapping[str, Head] = self.teacher.heads

    async def prove(self, site: Site, texts: Sequence[Text], support: Support) -> Teacher:
        self.results += await _prove(self.teacher, site, texts, support, site.student.vocabulary, served=True)
        temperature, some = site.recipe.rollout.temperature, texts[: 2 * PROBE_PROMPTS]
        self.results.append(await prove_order(self.teacher, some, temperature, self.heads, support))
        return self.teacher

    def is_student(self, site: Site) -> bool:
        return False


async def _prove(
    teacher: Teacher, site: Site, texts: Sequence[Text], support: Support, vocabulary: int, served: bool = False
) -> list[ProbeResult]:
    """The probes that need only scores."""
    heads = teacher.heads if isinstance(teacher, HoldsHeads) else {}
    some, temperature = texts[: 2 * PROBE_PROMPTS], site.recipe.rollout.temperature
    return await prove(teacher, some, temperature, vocabulary, heads, support, served=served)


def _own(name: str, section: PythonTeacherConfig, site: Site) -> Opened:
    return OwnKind(build_part(section, "teacher", site.build), open_view(section.view, site, None))


@dataclass
class _Remote:
    """A server, or replicas of one."""

    name: str
    section: RemoteTeacherConfig
    site: Site
    results: list[ProbeResult] = field(default_factory=list)
    models: Sequence[CausalLM] = ()
    context: int | None = None
    heads: Mapping[str, Head] = field(default_factory=dict)
    identities: Mapping[str, str] = field(default_factory=dict)
    head_model: CausalLM | None = None
    head: Head | None = None
    view: TeacherView = field(init=False)
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    vocabulary: int | None = field(init=False)  # of a tokenizer of its own; None: the student's

    def __post_init__(self) -> None:
        section, self.tokenizer, self.vocabulary = self.section, self.site.student.tokenizer, None
        theirs = None if section.tokenizer is None else load_tokenizer(section.tokenizer)
        self.view = open_view(section.view, self.site, theirs)
        if theirs is not None and section.tokenizer is not None:
            self.results.append(compare_tokenizers(self.site, section, section.tokenizer, theirs))
            if has_other_tokens(section):
                self.tokenizer, self.vocabulary = theirs, highest_id(theirs) + 1
        if isinstance(section, StatesTeacherConfig) and section.head is not None:
            lm = load_model(ModelConfig(model=section.head), self.site.device)
            refuse_baked(_key(self.name, "head"), section.head, lm.natural_temperature)
            compare_models(self.site, section, lm)
            self.head_model, self.models = lm, () if has_other_tokens(section) else (lm,)

    async def prove(self, site: Site, texts: Sequence[Text], support: Support) -> Teacher:
        section, student = self.section, site.student
        shared = self.vocabulary or student.vocabulary
        rows = section.vocabulary or -(-(self.vocabulary or student.head_rows) // PADDING) * PADDING + PADDING
        client = connect(self.name, section, rows, shared)
        site.resources.push_async_callback(client.close)
        longest = max(map(len, texts)) + site.recipe.rollout.max_tokens
        texts = texts[:PROBE_PROMPTS]
        ids, temperature = continuations(max(texts, key=len), shared), site.recipe.rollout.temperature
        proof = await prove_remote(client, texts, ids, temperature, self.tokenizer, self._head(), support, longest)
        teacher = RemoteTeacher(client, proof)
        self.heads = teacher.heads
        self.results += proof.results
        assert proof.baseline is not None
        self.identities = proof.baseline.identities
        _same_as_before(self.name, teacher, site)
        return teacher

    def is_student(self, site: Site) -> bool:
        ours = {site.recipe.student.model, resolve(site.recipe.student.model)}
        return any(not ours.isdisjoint(identity.split()) for identity in self.identities.values())

    def _head(self) -> Head | None:
        """The output head of `teacher.head` alone, without the model around it."""
        if self.head_model is not None:
            head, self.head_model, self.models = self.head_model.head().detach(), None, ()
            bias_V = None if head.bias_V is None else head.bias_V.clone()
            self.head = replace(head, weight_Vd=head.weight_Vd.clone(), bias_V=bias_V)
        return self.head


def _same_as_before(name: str, teacher: RemoteTeacher, site: Site) -> None:
    """A resumed run goes on with the teacher it began with. Raises `ContractError` for another one."""
    baseline, tolerance = teacher.proof.baseline, teacher.client.section.probe_tolerance
    assert baseline is not None
    reply = baseline.replies[teacher.client.pool.urls[0]]
    values = reply.logprobs if reply.hidden is None else reply.hidden.mean(axis=1)
    prints = sorted({known.weights for known in teacher.client.pool.known.values() if known.weights is not None})
    keep_answer(
        f"teacher {name}",
        teacher.proof.method,
        baseline.request,
        values,
        tolerance,
        ", ".join(prints) or None,
        "Start the former server again",
        site,
    )


KINDS: Mapping[type, Callable[[str, Any, Site], Opened]] = {
    LocalTeacherConfig: LocalKind,
    SelfTeacherConfig: SelfKind,
    SGLangTeacherConfig: _Remote,
    VLLMTeacherConfig: _Remote,
    LimbeckTeacherConfig: _Remote,
    DatasetTeacherConfig: OpenedData,
    PythonTeacherConfig: _own,
}
