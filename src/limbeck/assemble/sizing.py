"""What a run takes: memory of each process, disk, and what travels at each update. Nothing is loaded for it.

    sizing = size_of(recipe)
    for process in sizing.processes:
        process.name, process.count, process.peak("device").bytes

What follows from counts alone (weights, gradients, moments, checkpoints) is exact. The rest is the most that the recipe
allows: every response has `rollout.max_tokens` tokens, every prompt `prompt_tokens`, which no recipe says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from limbeck.assemble import role_sizes as role
from limbeck.assemble.model_size import ModelSize, model_size
from limbeck.assemble.role_sizes import DOING, FLOAT32, MOMENTS, PHASES, Models, Part, Phase, Where, Work
from limbeck.assemble.run import run_path
from limbeck.assemble.site import Given
from limbeck.assemble.tasks import longest_prompt
from limbeck.config.base import ModelConfig
from limbeck.config.engine import HFEngineConfig, ServedEngineConfig, SGLangEngineConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.recipe import Recipe
from limbeck.config.self_teacher import members_of
from limbeck.config.teacher import (
    LocalTeacherConfig,
    RemoteTeacherConfig,
    SelfTeacherConfig,
    StatesTeacherConfig,
)
from limbeck.engines.weights_folder import places_for

PROMPT_TOKENS = 512
LEAST: Mapping[str, object] = {
    **dict.fromkeys((role.MICRO, role.STEP, "engine.max_rows", "learner.loss_chunk_mb", "checkpoint.keep_last"), 1),
    **dict.fromkeys(("record.max_mb", "cluster.state_mb"), 1),
    "rollout.lag": 0,
    "student.dtype": "bfloat16",
    "teacher.dtype": "bfloat16",
}
TOP_BYTES = 8  # of a token and its log-prob, as a served teacher answers
OWN = "is a part of your own: what it takes is not known here"


@dataclass(frozen=True)
class Role:
    """What one of the jobs of a run holds."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Peak:
    """The most that a process holds at once, when, and of what."""

    bytes: int
    phase: Phase
    parts: tuple[Part, ...]

    @property
    def doing(self) -> str:
        return DOING[self.phase]


@dataclass(frozen=True)
class Process:
    """`count` processes alike, as `key` of the recipe says. Each has `devices`, and bytes are of one of them."""

    name: str
    roles: tuple[Role, ...]
    count: int = 1
    key: str = ""
    devices: int = 1

    def held(self, where: Where, phase: Phase) -> Iterator[tuple[str, Part]]:
        """What is there in a phase, with the name of the role that holds it."""
        for one in self.roles:
            yield from ((one.name, part) for part in one.parts if part.where == where and phase in part.phases)

    def peak(self, where: Where, exact: bool = False) -> Peak:
        """With `exact`, of what is certain alone."""
        parts = [part for role_ in self.roles for part in role_.parts if part.where == where]
        parts = [part for part in parts if part.exact or not exact]
        at = {phase: tuple(part for part in parts if phase in part.phases) for phase in PHASES}
        found = [Peak(sum(part.bytes for part in held), phase, held) for phase, held in at.items()]
        return max(found, key=lambda peak: peak.bytes)


@dataclass(frozen=True)
class Sizing:
    """What a run takes. Of `disk` and `update` the phases mean nothing."""

    on_gpu: bool
    processes: tuple[Process, ...]
    disk: tuple[Part, ...]  # below the run's folder
    update: tuple[Part, ...]  # what travels at each update
    notes: tuple[str, ...]


def size_of(recipe: Recipe, on_gpu: bool, prompt_tokens: int | None = None, given: Given | None = None) -> Sizing:
    """What a run of `recipe` takes, on GPUs or on processors alone; `given` are parts that the caller made.

    Raises `ModelError` for models that are not there or cannot be read, and `RecipeError` as `size_with`.
    """
    return size_with(recipe, models_of(recipe, given), on_gpu, prompt_tokens, given)


def models_of(recipe: Recipe, given: Given | None = None) -> Models:
    """The sizes of the models that a recipe names. Raises `ModelError`."""
    given = given or Given()
    teachers: dict[str, ModelSize] = {}
    heads: dict[str, ModelSize] = {}
    for name, section in members_of(recipe).items() if given.teacher is None else ():
        if isinstance(section, LocalTeacherConfig):
            teachers[name] = model_size(section)
        elif isinstance(section, StatesTeacherConfig) and section.head is not None:
            heads[name] = model_size(ModelConfig(model=section.head))
    lora = recipe.learner.lora if isinstance(recipe.learner, LocalLearnerConfig) and given.learner is None else None
    reference = recipe.objective.reference
    frozen = None if reference is None else ModelConfig(model=reference.model or recipe.student.model)
    return Models(model_size(recipe.student, lora), teachers, heads, None if frozen is None else model_size(frozen))


def size_with(
    recipe: Recipe, models: Models, on_gpu: bool, prompt_tokens: int | None = None, given: Given | None = None
) -> Sizing:
    """`size_of` with models whose sizes are known. Raises `RecipeError` where no prompt fits into their context."""
    given = given or Given()
    contexts = [size.context for size in (models.student, *models.teachers.values()) if size.context is not None]
    room = longest_prompt("rollout.max_tokens", recipe.rollout.max_tokens, contexts) or PROMPT_TOKENS
    work = Work(recipe, models, on_gpu, prompt_tokens or min(PROMPT_TOKENS, room))
    notes = list(_notes(work, given, prompt_tokens is None))
    processes = [_placed(process, recipe, on_gpu) for process in _processes(work, given)]
    return Sizing(
        on_gpu,
        tuple(processes),
        tuple(_lowerable(part, recipe) for part in _disk(work, given)),
        tuple(_travels(work, given)),
        tuple(notes),
    )


def _processes(work: Work, given: Given) -> Iterator[Process]:
    """One with all roles, or one role in each."""
    recipe, models = work.recipe, work.models
    section, engine = recipe.learner, recipe.engine
    learner: tuple[Role, ...] = ()  # of the user's own
    sampler: tuple[Role, ...] = ()  # or a server
    if isinstance(section, LocalLearnerConfig) and given.learner is None:
        learner = (Role("learner", tuple(role.learner(work, section))),)
    if isinstance(engine, HFEngineConfig) and given.engine is None:
        sampler = (Role("sampler", tuple(role.sampler(work, engine))),)
    frozen = list(_frozen(work))
    held = [role.itself()]
    if _by_folder(recipe, given) and _in_memory(recipe):
        size = models.student.parameters * FLOAT32
        held.append(Part("weights on their way to the engine", size, where="host", keys=("engine.weights_folder",)))
    itself, alone = Role("process", (role.itself(),)), Role("process", tuple(held))
    cluster = recipe.cluster
    if cluster is None:
        yield Process("this process", (*learner, *sampler, *(one for one, _ in frozen), alone))
        return
    yield Process("learner rank", (*learner, itself), cluster.learners, "cluster.learners")
    if sampler:
        yield Process("sampler", (*sampler, itself), cluster.samplers, "cluster.samplers")
    for one, devices in frozen:
        yield Process(one.name, (one, itself), cluster.teachers, "cluster.teachers", devices)
    store = Part("object store", role.store(work), where="host", keys=("rollout.lag",))
    yield Process("driver", (Role("driver", (store,)), alone))


def _frozen(work: Work) -> Iterator[tuple[Role, int]]:
    """Local teachers and the reference, and how many devices each spans."""
    for name, section in members_of(work.recipe).items():
        if name in work.models.teachers and isinstance(section, LocalTeacherConfig):
            devices = section.devices if work.on_gpu else 1
            keys = ("teacher.dtype", "teacher.devices") if work.on_gpu else ("teacher.dtype",)
            parts = role.teacher(work, work.models.teachers[name], devices, keys)
            yield Role(name, tuple(parts)), devices
        if isinstance(section, SelfTeacherConfig):
            yield Role(name, tuple(role.past_self(work, section))), 1
    if work.models.reference is not None:
        yield Role("reference", tuple(role.teacher(work, work.models.reference, 1, ("objective.reference",)))), 1


def _placed(process: Process, recipe: Recipe, on_gpu: bool) -> Process:
    """Without a GPU everything is in the memory of the host."""

    def placed(part: Part) -> Part:
        return replace(_lowerable(part, recipe), where=part.where if on_gpu else "host")

    return replace(process, roles=tuple(replace(one, parts=tuple(map(placed, one.parts))) for one in process.roles))


def _lowerable(part: Part, recipe: Recipe) -> Part:
    """Without the keys that have the least value there is."""
    return replace(part, keys=tuple(key for key in part.keys if not _at_least(recipe, key)))


def _at_least(recipe: Recipe, key: str) -> bool:
    found: object = recipe
    for name in key.split("."):
        found = getattr(found, name, None)
    return key in LEAST and found == LEAST[key]


def _disk(work: Work, given: Given) -> Iterator[Part]:
    """The most that lies in the run's folder at once: a checkpoint is whole before an old one goes."""
    recipe, student = work.recipe, work.models.student
    section, checkpoint = recipe.learner, recipe.checkpoint
    if isinstance(section, LocalLearnerConfig) and given.learner is None:
        adapters = student.adapters * FLOAT32
        trained = student.adapters or student.parameters
        masters = not adapters and student.held < FLOAT32
        state = trained * FLOAT32 * (MOMENTS + masters)
        each = state + (1 + recipe.rollout.lag) * role.trained_bytes(work)
        written = 1 if not checkpoint.every else ceil(recipe.steps / checkpoint.every)
        kept = min(written, checkpoint.keep_last)
        smaller = ("output",) if adapters else ("learner.lora", "output")
        yield Part(f"checkpoints: {kept} kept", kept * each, exact=True, keys=("checkpoint.keep_last", *smaller))
        # the next checkpoint while the others are there, or the model when all is done
        over = max(each if written > kept else 0, student.parameters * FLOAT32 + adapters)
        yield Part("the next one, or the finished model", over, exact=True, keys=smaller)
    if recipe.record.every:
        yield Part("recorded rollouts", recipe.record.max_mb * 2**20, keys=("record.max_mb",))
    if _by_folder(recipe, given) and not _in_memory(recipe):
        size = student.parameters * FLOAT32
        yield Part("weights on their way to the engine", size, keys=("engine.weights_folder",))


def _by_folder(recipe: Recipe, given: Given) -> bool:
    """Whether weights go to the engine by way of a folder."""
    engine = recipe.engine
    tensors = isinstance(engine, SGLangEngineConfig) and engine.weights == "tensors"
    return isinstance(engine, ServedEngineConfig) and given.engine is None and not tensors


def _in_memory(recipe: Recipe) -> bool:
    """Whether that folder is in this machine's memory."""
    engine = recipe.engine
    assert isinstance(engine, ServedEngineConfig)
    here = recipe.cluster is None or recipe.cluster.address == "local"
    return len(places_for(engine.urls, run_path(recipe), engine.weights_folder, here)) > 1


def _travels(work: Work, given: Given) -> Iterator[Part]:
    """Bytes between processes, or to servers, at each update."""
    recipe, student = work.recipe, work.models.student
    cluster, engine, section = recipe.cluster, recipe.engine, recipe.learner
    if isinstance(engine, ServedEngineConfig) and given.engine is None:
        yield Part("weights, to the engine", student.parameters * FLOAT32)
    elif cluster:
        yield Part("weights, to each sampler", role.trained_bytes(work))
    if (cluster and work.models.teachers) or work.models.heads:
        yield Part("teachers' states, to the learner", work.sampled * work.models.state)
    if work.ranks > 1 and isinstance(section, LocalLearnerConfig):
        # gathered for the pass forward and for the one back, then summed up, at every micro-batch
        moved = 2 * student.parameters * work.computed + role.trained_bytes(work)
        yield Part("between ranks, from each", int(role.rounds(work, section) * moved * (1 - 1 / work.ranks)))


def _notes(work: Work, given: Given, assumed: bool) -> Iterable[str]:
    recipe, cluster = work.recipe, work.recipe.cluster
    if assumed:
        yield f"prompts of {work.prompt_tokens} tokens are assumed; --prompt-tokens says otherwise"
    for name in ("learner", "engine"):
        section = getattr(recipe, name)
        if getattr(given, name) is not None or section.kind == "python":
            yield f"{name} {OWN}"
    for name, section in members_of(recipe).items():
        if given.teacher is not None or section.kind == "python":
            yield f"{name} {OWN}"
        elif isinstance(section, RemoteTeacherConfig):
            yield f"{name} is a server: its memory is not counted here"
    if isinstance(recipe.engine, ServedEngineConfig) and given.engine is None:
        yield "the engine is a server: its memory is not counted here"
    if cluster is not None and cluster.address != "local":
        yield f"the nodes of {cluster.address} are not known here: compare these numbers with what each has"
