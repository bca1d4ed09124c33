"""What each role of a run holds, part by part. `sizing` puts roles into processes.

Sources: weights, gradients and AdamW, Rajbhandari et al. 2020, "ZeRO", section 3.1; what a sharded model gathers, Zhao
et al. 2023, "PyTorch FSDP", section 3; activations, `ModelSize`; the rest, the modules that are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, TypeAlias

from limbeck.assemble.fleet import versions_in_store
from limbeck.assemble.model_size import ModelSize
from limbeck.cluster.connect import STORE
from limbeck.config.engine import HFEngineConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.recipe import Recipe
from limbeck.config.teacher import SelfTeacherConfig

Phase: TypeAlias = Literal["loading", "sampling", "scoring", "loss", "backward"]
Where: TypeAlias = Literal["device", "host"]

PHASES: tuple[Phase, ...] = ("loading", "sampling", "scoring", "loss", "backward")
RUNNING: tuple[Phase, ...] = PHASES[1:]
SCORED: tuple[Phase, ...] = PHASES[2:]
UPDATE: tuple[Phase, ...] = ("loss", "backward")
DOING: Mapping[Phase, str] = {
    "loading": "loading",
    "sampling": "sampling",
    "scoring": "scoring",
    "loss": "computing the loss",
    "backward": "going backward",
}

FLOAT32 = 4
MOMENTS = 2  # of AdamW, in float32
SCORED_AT_ONCE = 8192  # tokens of one pass of a local teacher
LARGEST_CHUNK = 4096  # rows of logits (`objectives.fused`)
MADE_OF_LOGITS = 5  # tensors of their size that the estimator makes; on a CPU it goes by blocks of 2 MB
WHILE_DRAWING = 4  # copies of one token's logits (`models.sampling`)
PROCESS = 450 * 2**20  # Python with torch and transformers

MICRO, STEP = "learner.micro_batch_tokens", "rollout.prompts_per_step"  # keys that make parts smaller


@dataclass(frozen=True)
class Part:
    """Bytes of one process. `exact`: they follow from counts alone. `keys` of the recipe make them fewer."""

    what: str
    bytes: int
    phases: tuple[Phase, ...] = PHASES
    where: Where = "device"
    exact: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Models:
    """The models of a run. `heads` are those of servers that answer with hidden states; both by the teacher's name."""

    student: ModelSize
    teachers: Mapping[str, ModelSize] = field(default_factory=dict)
    heads: Mapping[str, ModelSize] = field(default_factory=dict)
    reference: ModelSize | None = None

    @property
    def state(self) -> int:
        """Bytes of one final hidden state, of the widest teacher."""
        widths = [size.width * size.held for size in (*self.teachers.values(), *self.heads.values())]
        return max(widths, default=0)


@dataclass(frozen=True)
class Work:
    """What one step is made of, at most: every response has `rollout.max_tokens`, every prompt `prompt_tokens`."""

    recipe: Recipe
    models: Models
    on_gpu: bool
    prompt_tokens: int

    @property
    def fleet(self) -> bool:
        return self.recipe.cluster is not None

    @property
    def ranks(self) -> int:
        return self.recipe.cluster.learners if self.recipe.cluster else 1

    @property
    def ahead(self) -> int:
        """Steps whose samples are there at once."""
        return 1 + self.recipe.rollout.lag

    @property
    def computed(self) -> int:
        """Bytes of one number of the student's passes."""
        section = self.recipe.learner
        narrow = isinstance(section, LocalLearnerConfig) and section.precision == "bfloat16"
        return 2 if narrow else self.models.student.held

    @property
    def responses(self) -> int:
        return self.recipe.rollout.prompts_per_step * self.recipe.rollout.samples_per_prompt

    @property
    def longest(self) -> int:
        return self.prompt_tokens + self.recipe.rollout.max_tokens

    @property
    def sampled(self) -> int:
        """Tokens that a step trains on."""
        return self.responses * self.recipe.rollout.max_tokens

    def fed(self, shares_prompts: bool) -> int:
        """Tokens of a step that go through a model."""
        prompts = self.recipe.rollout.prompts_per_step if shares_prompts else self.responses
        return self.sampled + self.prompt_tokens * prompts


def learner(work: Work, config: LocalLearnerConfig) -> Iterator[Part]:
    """One rank. Weights, gradients and moments are shared out among the ranks; what is gathered is not."""
    student, full, ranks = work.models.student, config.lora is None, work.ranks
    where: Where = "host" if config.cpu_offload and ranks > 1 else "device"
    shared_out = ("learner.lora", "cluster.learners") if full else ("cluster.learners",)
    checkpoint = () if config.gradient_checkpointing else ("learner.gradient_checkpointing",)
    trained = student.parameters if full else student.adapters
    yield Part(
        "weights", (student.weights + student.adapters * FLOAT32) // ranks, PHASES, where, True, ("cluster.learners",)
    )
    if ranks == 1:  # several take their rows from the files
        yield from _on_the_way(work, student)
    micro = _micro(work, config)
    # of the first micro-batch there is no gradient yet while its loss is computed
    phases = UPDATE if rounds(work, config) > 1 else UPDATE[1:]
    yield Part("gradients", trained_bytes(work) // ranks, phases, where, True, shared_out)
    yield Part("AdamW's moments", trained * MOMENTS * FLOAT32 // ranks, RUNNING, where, True, shared_out)
    if full and student.held < FLOAT32:  # `learners.optimizer`: what is summed up and updated is float32
        yield Part("float32 masters", trained * FLOAT32 // ranks, RUNNING, where, True, shared_out)
        yield Part("sums of gradients", trained * FLOAT32 // ranks, phases, where, True, shared_out)
    if ranks > 1:
        # the block that computes, the one that comes next, and what is in no block
        yield Part("gathered weights", (2 * student.block + student.outside) * work.computed, UPDATE)
        if full:
            before = (student.block + student.outside) * FLOAT32
            yield Part("gradients not yet shared out", before, UPDATE[1:])
    elif work.computed < student.held:
        yield Part("weights in bfloat16", student.parameters * work.computed, UPDATE, keys=("cluster.learners",))
    kept = micro * student.kept(work.computed, config.gradient_checkpointing)
    yield Part("activations", kept, UPDATE, keys=(MICRO, *checkpoint))
    yield Part("one block's backward pass", micro * student.backward(work.computed), UPDATE[1:], keys=(MICRO,))
    chunk = FLOAT32 * student.rows * min(LARGEST_CHUNK, micro, work.sampled)
    chunk = min(config.loss_chunk_mb * 2**20, chunk)
    policies = 1 + (work.models.state > 0) + (work.models.reference is not None)
    chunks = policies + (MADE_OF_LOGITS if work.on_gpu else 0)
    yield Part("logits of a chunk", chunk * chunks, UPDATE[:1], keys=("learner.loss_chunk_mb",))
    if full:
        yield Part("the head's gradient", student.head * student.held, UPDATE, keys=("learner.lora",))
    in_micro = min(micro, work.sampled) * work.models.state
    if in_micro:
        yield Part("teachers' states of a micro-batch", in_micro, UPDATE, keys=(MICRO,))
    if work.fleet:
        frozen = [*work.models.teachers.values(), *([] if work.models.reference is None else [work.models.reference])]
        heads = sum(size.head * size.held for size in frozen)
        yield Part("teachers' heads", heads, PHASES, exact=True)
    else:
        yield Part("teachers' states", work.ahead * work.sampled * work.models.state, SCORED, keys=(STEP,))
    for size in work.models.heads.values():
        yield Part(f"head of {size.name}", size.head * size.held, PHASES, exact=True)
        yield Part(f"{size.name}, for its head", size.weights, PHASES[:1], exact=True)


def _fed(work: Work, config: LocalLearnerConfig) -> int:
    return work.fed(work.models.student.shares_prompts and config.layout in ("auto", "tree"))


def rounds(work: Work, config: LocalLearnerConfig) -> int:
    """Micro-batches of a rank."""
    return ceil(ceil(_fed(work, config) / max(config.micro_batch_tokens, work.longest)) / work.ranks)


def _micro(work: Work, config: LocalLearnerConfig) -> int:
    """Tokens of a micro-batch, one sequence at least; of several ranks as few as their rounds have room for."""
    fed = _fed(work, config)
    if work.ranks == 1:
        return min(fed, max(config.micro_batch_tokens, work.longest))
    return max(work.longest, ceil(fed / (rounds(work, config) * work.ranks)))


def _on_the_way(work: Work, size: ModelSize) -> Iterator[Part]:
    """A model is read into the memory of the host, and then moved."""
    if work.on_gpu:
        yield Part("weights on their way to the GPU", size.weights, PHASES[:1], "host")


def trained_bytes(work: Work) -> int:
    """What training changes, as it is held: the weights, or the adapters."""
    student = work.models.student
    return student.adapters * FLOAT32 or student.parameters * student.held


def sampler(work: Work, config: HFEngineConfig) -> Iterator[Part]:
    """One process that samples. Alone in a process with the learner it has the learner's own weights."""
    student, recipe = work.models.student, work.recipe
    if work.fleet or recipe.rollout.lag:
        own = student.weights + student.adapters * FLOAT32
        yield Part("weights", own, exact=True, keys=("student.dtype",))
        yield from _on_the_way(work, student)
    if recipe.rollout.lag and not work.fleet:  # `training.versions`
        yield Part("earlier weights", work.ahead * trained_bytes(work), exact=True, keys=("rollout.lag",))
    max_tokens = recipe.rollout.max_tokens
    sets = [(work.responses, max_tokens), *recipe.eval.asked(max_tokens)]
    asked = [(min(config.max_rows, responses), most) for responses, most in sets]
    rows = max(count for count, _ in asked)
    shared = student.fused and recipe.rollout.samples_per_prompt > 1
    prompts = ceil(rows / recipe.rollout.samples_per_prompt) if shared else rows
    tokens = max(count * most for count, most in asked) + prompts * work.prompt_tokens
    yield Part("keys and values", tokens * student.cache(work.computed), PHASES[1:2], keys=("engine.max_rows",))
    one_token = rows * student.rows * FLOAT32 * WHILE_DRAWING
    all_prompts = prompts * work.prompt_tokens * student.passing(work.computed)
    yield Part("passes", max(one_token, all_prompts), PHASES[1:2], keys=("engine.max_rows",))


def teacher(work: Work, size: ModelSize, devices: int, keys: tuple[str, ...]) -> Iterator[Part]:
    """One process that scores, or the frozen policy of a reference term; of several devices, one."""
    yield Part("weights", size.weights // devices, exact=True, keys=keys)
    yield from _on_the_way(work, size)
    tokens = min(max(SCORED_AT_ONCE, work.longest), work.fed(size.shares_prompts))
    yield Part("passes", tokens * size.passing(size.held), PHASES[2:3])
    cluster = work.recipe.cluster
    if cluster is not None:
        waiting = ceil(work.ahead * work.sampled / cluster.teachers) * size.width * size.held
        most = cluster.state_mb * 2**20
        yield Part("states that wait", min(waiting, most), RUNNING, "host", keys=("cluster.state_mb",))


def past_self(work: Work, section: SelfTeacherConfig) -> Iterator[Part]:
    """What the learner keeps of its own past for a teacher to score with (`learners.past`)."""
    student, trained = work.models.student, trained_bytes(work)
    if section.of == "average":
        numbers = student.adapters or student.parameters
        yield Part("the average, in float32", numbers * FLOAT32, exact=True)
        yield Part("the average, as it scores", trained, exact=True)
    else:
        yield Part("earlier weights", ((section.lag or 0) + 1) * trained, exact=True, keys=("teacher.lag",))
    tokens = min(max(SCORED_AT_ONCE, work.longest), work.fed(shares_prompts=False))
    yield Part("passes", tokens * student.passing(work.computed), PHASES[2:3])


def store(work: Work) -> int:
    """Ray's object store on a node, as large as a local one is made (`assemble.fleet`)."""
    return STORE + versions_in_store(work.recipe) * trained_bytes(work)


def itself() -> Part:
    return Part("Python and torch", PROCESS, where="host")
