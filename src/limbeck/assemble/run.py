"""From a recipe to the parts of a run. The only place that chooses between backends."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.assemble.teachers import open_teachers, prove_teachers
from limbeck.config.engine import HFEngineConfig, SGLangEngineConfig
from limbeck.config.factory import Build
from limbeck.config.recipe import Recipe
from limbeck.config.student import StudentConfig
from limbeck.config.teacher import LocalTeacherConfig
from limbeck.engines.hf import InProcessEngine
from limbeck.engines.served import ServedEngine
from limbeck.engines.sglang import SGLangServer
from limbeck.engines.vllm import VLLMServer
from limbeck.errors import RecipeError
from limbeck.learners.local import MODEL_FOLDER, InProcessLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model, resolve
from limbeck.models.text import Decoder, Names
from limbeck.protocols import Engine, Task
from limbeck.records import ProbeResult, Sampling
from limbeck.tasks import load_task
from limbeck.teachers.local import LocalTeacher
from limbeck.training.run import Run
from limbeck.training.run_folder import Checkpoint, RunFolder
from limbeck.wire.http import Pool, PoolSettings

if TYPE_CHECKING:
    pass

FIXED_TEXT = 64  # tokens of the task's prompts that a served engine is held to


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to start, and what was proven about its teacher."""

    run: Run
    student: CausalLM
    verdicts: tuple[ProbeResult, ...]


async def assemble(recipe: Recipe, folder: RunFolder, checkpoint: Checkpoint | None = None) -> Assembled:
    """Load everything the recipe names and prove the teacher's contract.

    Raises `LimbeckError` of one kind or another for anything that cannot work, before any training.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    device = pick_device(recipe.device)
    whole_weights = recipe.learner.lora is None
    source = (
        StudentConfig(model=str(checkpoint.folder / MODEL_FOLDER)) if checkpoint and whole_weights else recipe.student
    )
    student = load_model(source.model_copy(update={"attention": recipe.student.attention}), device)
    opened = open_teachers(recipe, student, device)
    build = Build(recipe, None, student.tokenizer, device, recipe.seed, folder.path)
    task = load_task(recipe.task, build, _longest_prompt(recipe, student, opened.contexts))
    verdicts = await prove_teachers(opened, task, recipe, student, folder, checkpoint is not None)

    learner = InProcessLearner(student, recipe.learner, recipe.objective, recipe.steps, recipe.seed)
    if checkpoint:
        learner.restore(checkpoint.folder)
    engine = _engine(recipe, student, learner, task, folder)
    await engine.load(await learner.publish())
    if isinstance(engine, ServedEngine):
        verdicts += [ProbeResult(*proof) for proof in engine.proofs]
        folder.write_lines("contract.jsonl", [asdict(verdict) for verdict in verdicts])
    run = Run(
        recipe=recipe,
        task=task,
        engine=engine,
        teacher=opened.teacher,
        learner=learner,
        decode=Decoder(student.tokenizer),
        names=Names(student.tokenizer),
        stop_ids=(*student.stop_ids, *recipe.rollout.stop_ids),
        folder=folder,
        start=checkpoint.step if checkpoint else 0,
        reference=_reference(recipe, student.vocabulary, device),
        min_scored_fraction=opened.min_scored_fraction,
        same_weights=checkpoint is None
        and isinstance(recipe.teacher, LocalTeacherConfig)
        and resolve(recipe.student.model) == resolve(recipe.teacher.model),
    )
    return Assembled(run, student, tuple(verdicts))


def pick_device(name: str) -> torch.device:
    """The device a recipe names. Raises `RecipeError` where this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"device = {name!r} cannot be used: {str(error).splitlines()[0]}. Try 'auto' or 'cpu'."
        ) from None
    return device


def _engine(recipe: Recipe, student: CausalLM, learner: InProcessLearner, task: Task, folder: RunFolder) -> Engine:
    section, rollout = recipe.engine, recipe.rollout
    if isinstance(section, HFEngineConfig):
        return InProcessEngine(student, section, learner.autocast)
    settings = PoolSettings(
        concurrency=section.max_concurrency,
        timeout=section.timeout,
        patience=section.retry_seconds,
        token_env=section.token_env,
        table="engine",
    )
    ids = [id_ for prompt in task.train[:FIXED_TEXT] for id_ in prompt.token_ids]
    sampling = Sampling(rollout.temperature, rollout.max_tokens, (*student.stop_ids, *rollout.stop_ids), recipe.seed)
    return ServedEngine(
        server=SGLangServer(section.weights) if isinstance(section, SGLangEngineConfig) else VLLMServer(),
        pool=Pool([section.url], settings),
        folder=Path(section.weights_folder or folder.path / "weights").resolve(),
        text=(ids * FIXED_TEXT)[: min(FIXED_TEXT, (student.context or FIXED_TEXT) - 1)],
        sampling=sampling,
        vocabulary=student.vocabulary,
        tolerance=section.tolerance,
    )


def _longest_prompt(recipe: Recipe, student: CausalLM, of_teachers: list[int]) -> int | None:
    contexts = [*of_teachers, *([] if student.context is None else [student.context])]
    if not contexts:
        return None
    room = min(contexts) - recipe.rollout.max_tokens
    if room < 1:
        raise RecipeError(
            f"rollout.max_tokens = {recipe.rollout.max_tokens} leaves no room for a prompt in a context of "
            f"{min(contexts)} tokens. Lower it."
        )
    return room


def _reference(recipe: Recipe, vocabulary: int, device: torch.device) -> LocalTeacher | None:
    section = recipe.objective.reference
    if section is None:
        return None
    source = recipe.student.model_copy(update={"model": section.model or recipe.student.model})
    lm = load_model(source, device)
    lm.vocabulary = vocabulary
    return LocalTeacher("reference", lm)


def run_path(recipe: Recipe) -> Path:
    """Where a recipe's run goes."""
    return Path(recipe.output) / recipe.name


def teacher_as_student(recipe: Recipe) -> Recipe:
    """The recipe that evaluates the teacher on the student's prompts."""
    if not isinstance(recipe.teacher, LocalTeacherConfig):
        raise RecipeError(
            f"a teacher of kind {recipe.teacher.kind!r} scores but does not sample here, so it cannot be evaluated. "
            "Evaluate its model folder with --model."
        )
    return recipe.model_copy(
        update={
            "student": StudentConfig(model=recipe.teacher.model, attention=recipe.teacher.attention),
            "engine": HFEngineConfig(),  # a server of the student cannot hold the teacher
        }
    )
