"""What a step draws from beside the student: rows of data sets, and teachers that sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from limbeck.assemble.engines import sampler_of
from limbeck.assemble.site import Site
from limbeck.config.self_teacher import ONLY
from limbeck.config.sources import DatasetSourceConfig
from limbeck.config.teacher import DatasetTeacherConfig
from limbeck.contract.probes import Text
from limbeck.errors import RecipeError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.protocols import Samples, Teacher, TeacherView
from limbeck.records import ProbeResult, Prompt, Support
from limbeck.seeding import derive_seed
from limbeck.tasks.completions import Completion, CompletionEncoder, Limits, load_completions
from limbeck.teacher_views.same import SameView
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.point_mass import PointMassTeacher
from limbeck.teachers.remote import RemoteTeacher
from limbeck.teachers.routed import RoutedTeacher
from limbeck.teachers.sampling import ServedSampler
from limbeck.training.prompt_order import Epochs
from limbeck.training.shares import Sources, shares_of


def load_rows(
    site: Site,
    stop_ids: tuple[int, ...],
    contexts: Sequence[int | None],
    as_seen: Callable[[Prompt], tuple[int, int | None]],
) -> dict[str, list[Completion]]:
    """The rows of each data set among the sources, by its name. `as_seen`: by their teachers. Raises `DataError`."""
    recipe, context = site.recipe, min((one for one in contexts if one is not None), default=None)
    limits = Limits(stop_ids, site.student.vocabulary, recipe.rollout.max_tokens, context, as_seen)
    return {
        source.label: load_completions(source, _encoder(site, source), limits)
        for source in recipe.rollout.sources
        if isinstance(source, DatasetSourceConfig)
    }


def make_sources(site: Site, rows: Mapping[str, Sequence[Completion]], teacher: Teacher) -> Sources | None:
    """None where the student samples everything. Raises `RecipeError` for a teacher that cannot sample."""
    recipe = site.recipe
    if all(source.origin == "student" for source in recipe.rollout.sources):
        return None
    completions = {name: Epochs(mine, derive_seed(recipe.seed, "source", name)) for name, mine in rows.items()}
    members: Mapping[str, Teacher] = {ONLY: teacher}
    if isinstance(teacher, RoutedTeacher):
        teacher.check_routes([one.prompt for mine in rows.values() for one in mine])
        members = teacher.teachers
    samplers = {}
    if any(source.origin == "teacher" for source in recipe.rollout.sources):
        samplers = {name: _sampler(member, site) for name, member in members.items()}

    def route(prompt: Prompt) -> str:
        return teacher.route_of(prompt) if isinstance(teacher, RoutedTeacher) else ONLY

    return Sources(shares_of(recipe), completions, samplers, route)


class OpenedData:
    """Teacher `dataset`: nothing is loaded, and there is nothing to prove."""

    def __init__(self, name: str, section: DatasetTeacherConfig, site: Site) -> None:
        self.models: Sequence[CausalLM] = ()
        self.context: int | None = None
        self.results: list[ProbeResult] = []
        self.heads: Mapping[str, Head] = {}
        self.view: TeacherView = SameView()

    async def prove(self, site: Site, texts: Sequence[Text], support: Support) -> Teacher:
        return PointMassTeacher(site.student.vocabulary)

    def is_student(self, site: Site) -> bool:
        return False


def _encoder(site: Site, source: DatasetSourceConfig) -> CompletionEncoder:
    """As the task's prompts are encoded, where the source does not say otherwise."""
    task = site.recipe.task
    chat = getattr(task, "chat", True) if source.chat is None else source.chat
    system = getattr(task, "system", None) if source.system is None else source.system
    options = getattr(task, "template_options", None)
    return CompletionEncoder(site.build.tokenizer, chat, system, options)


def _sampler(teacher: Teacher, site: Site) -> Samples:
    if isinstance(teacher, LocalTeacher):
        return sampler_of(teacher.lm, site.recipe.engine)
    if isinstance(teacher, RemoteTeacher):
        return ServedSampler(teacher, site.student.vocabulary)
    if isinstance(teacher, Samples):  # processes of a fleet
        return teacher
    raise RecipeError(
        f"rollout.sources has from = 'teacher', but teacher {teacher.name} ({type(teacher).__name__}) scores and does "
        "not sample. Take kind = 'local', 'sglang' or 'vllm', or remove the source."
    )
