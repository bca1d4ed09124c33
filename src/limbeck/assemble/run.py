"""From a recipe to the parts of a run. Each kind of part is one entry in one table, here or in `teachers.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.assemble.engines import make_engine
from limbeck.assemble.environments import limits_of, open_environment
from limbeck.assemble.eval_teachers import prove_eval_teachers, proven_in_training
from limbeck.assemble.fleet import REFERENCE, StudentPlan, open_fleet
from limbeck.assemble.own import OwnLearner, checked_part
from limbeck.assemble.policies import policies_to_sample_from
from limbeck.assemble.same_as_before import same_base_as_before, same_model_as_before
from limbeck.assemble.site import Given, Site, pick_device
from limbeck.assemble.sources import load_rows, make_sources
from limbeck.assemble.tasks import load_tasks
from limbeck.assemble.teachers import open_teachers
from limbeck.assemble.work import work_of
from limbeck.config.engine import HFEngineConfig
from limbeck.config.factory import Build, PythonPartConfig, build_part
from limbeck.config.recipe import Recipe
from limbeck.config.student import StudentConfig
from limbeck.config.teacher import LocalTeacherConfig
from limbeck.config.view import SameViewConfig
from limbeck.contract.tokenizers import check_same_tokenizer
from limbeck.engines.served import ServedEngine
from limbeck.engines.several import ServedEngines
from limbeck.environments.single_turn import SingleTurn
from limbeck.errors import ModelError, RecipeError, RunError
from limbeck.learners.checkpoint import MODEL_FOLDER
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM, shared_vocabulary, stop_ids_of
from limbeck.models.head import Head
from limbeck.models.loading import load_model, load_outline, resolve
from limbeck.models.text import Decoder, Names, vocabulary_note
from limbeck.objectives import Loss, loss_of
from limbeck.protocols import BatchesTurns, Environment, Learner, Objective, Samples
from limbeck.records import ProbeResult
from limbeck.teachers.local import LocalTeacher
from limbeck.training.alarms import kl_should_fall
from limbeck.training.interruption import cancel_others
from limbeck.training.journal import Journal
from limbeck.training.kept_prompts import keep_prompts
from limbeck.training.run import Run
from limbeck.training.run_folder import Checkpoint, RunFolder

if TYPE_CHECKING:
    from limbeck.cluster.teachers import TeacherPool

RETURN_WITHIN = 600.0  # seconds in which a node that was lost may come back, or another in its place


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to start, and what was proven about its teacher."""

    run: Run
    results: tuple[ProbeResult, ...]
    methods: tuple[str, ...]  # a line for each teacher: how its scores come to be at the rollout's temperature


async def assemble(
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Checkpoint | None = None,
    given: Given | None = None,
    again: bool = False,
) -> Assembled:
    """Load everything the recipe names and prove the teacher's contract; `given` are parts the caller made.

    `again`: after the fleet lost processes, whose nodes may come back.

    Raises `LimbeckError` of one kind or another for anything that cannot work, before any training.
    """
    resources = AsyncExitStack()
    try:
        return await _assemble(recipe, folder, checkpoint, given or Given(), resources, again)
    except BaseException as error:
        if isinstance(error, Exception):  # else whoever ends this task ends the others too
            await cancel_others()  # parts that were being started at the same time
        await resources.aclose()
        raise


async def _assemble(
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    given: Given,
    resources: AsyncExitStack,
    again: bool,
) -> Assembled:
    site, source = await _open_site(recipe, folder, checkpoint, given, resources, again)
    student, fleet = site.student, site.fleet
    loss = loss_of(recipe.objective, given.objective, site.build)
    teachers, reference_model = open_teachers(site, loss), _reference(site)
    models = [student, *teachers.models, *([] if reference_model is None else [reference_model])]
    vocabulary = _share_vocabulary(models, loss)
    contexts = [*teachers.contexts, *(lm.context for lm in models)]
    tasks, stop_ids = load_tasks(site, contexts), stop_ids_of(student, recipe.rollout.stop_ids)
    task, rows = tasks.own, load_rows(site, stop_ids, contexts, teachers.as_seen)
    keep_prompts(folder, task, recipe, checkpoint, rows)
    environment = await open_environment(site, task)
    if fleet is not None:
        plan = StudentPlan(recipe, source, vocabulary, folder.path, folder.path == run_path(recipe))
        await asyncio.gather(fleet.start(plan), teachers.start(site))
    reference = None if reference_model is None else await _reference_teacher(site, reference_model)
    proven = await teachers.prove(site, proven_in_training(site, tasks))
    elsewhere = await prove_eval_teachers(teachers, site, tasks)
    if reference is not None:
        await same_model_as_before("reference", reference, site)

    learner = await _learner(site, loss, {**proven.heads, **({} if reference is None else reference.heads)})
    teachers.follow(learner)
    if checkpoint:
        await _restore(learner, checkpoint)
    student_top = loss.size if proven.asks_about_ids else 0
    engine = make_engine(site, learner, task, stop_ids, student_top)
    policies = await policies_to_sample_from(learner, recipe.rollout.lag, checkpoint)
    await engine.load(policies[0])
    of_engine = engine.results if isinstance(engine, ServedEngine | ServedEngines) else ()
    results = (*_notes(student), *proven.results, *elsewhere.results, *of_engine)
    folder.write_lines("contract.jsonl", [asdict(result) for result in results])
    sources = make_sources(site, rows, proven.teacher)
    samplers = () if sources is None else sources.samplers.values()
    run = Run(
        recipe=recipe,
        task=task,
        environment=environment,
        journal=_journal(folder, environment, [engine, *samplers]),
        limits=limits_of(recipe.environment, given.environment, contexts, vocabulary),
        engine=engine,
        teacher=proven.teacher,
        view=proven.view,
        learner=learner if fleet is not None or isinstance(learner, LocalLearner) else OwnLearner(learner),
        decode=Decoder(student.tokenizer),
        names=Names(student.tokenizer),
        stop_ids=stop_ids,
        folder=folder,
        support="full" if loss.support == "student_top" else loss.support,
        sources=sources,
        student_top=student_top,
        start=checkpoint.step if checkpoint else 0,
        reference=reference,
        eval_tasks=tasks.of_sets,
        eval_teachers=elsewhere.at,
        min_scored_fraction=teachers.min_scored_fraction,
        same_weights=checkpoint is None and given.teacher is None and _is_self_taught(recipe),
        kl_should_fall=given.objective is None and given.learner is None and kl_should_fall(recipe),
        teacher_seconds=proven.seconds,
        computing_seconds=None if fleet is None else fleet.computing_seconds,
        usage=dict if fleet is None else fleet.usage,
        work=work_of(engine, proven.teacher, learner),
        resources=resources,
    )
    run.versions.begin(policies)
    return Assembled(run, results, proven.methods)


def _journal(folder: RunFolder, environment: Environment, engines: Sequence[Samples]) -> Journal | None:
    """Of what does not follow from the seed: what an environment may do, and what a server samples."""
    fixed = isinstance(environment, SingleTurn) and not any(isinstance(engine, BatchesTurns) for engine in engines)
    return None if fixed else Journal(folder)


async def _open_site(
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    given: Given,
    resources: AsyncExitStack,
    again: bool,
) -> tuple[Site, StudentConfig]:
    """The student and, with [cluster], the cluster, where the driver has the student's outline alone."""
    if given.objective is not None:
        checked_part(given.objective, Objective, "objective")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    source = _student_source(recipe, checkpoint)
    if recipe.cluster is None:
        fleet, device = None, pick_device(recipe.device)
        student = load_model(source, device)
    else:
        student, device = load_outline(source), torch.device("cpu")
        fleet = await open_fleet(recipe, student, given, resources, RETURN_WITHIN if again else 0.0)
    _refuse_baked_student(student)
    build = Build(recipe, student.info(), student.tokenizer, device, recipe.seed, folder.path)
    site = Site(recipe, student, device, build, folder, given, resources, resumed=checkpoint is not None, fleet=fleet)
    if given.learner is None and not _trains_all_weights(recipe):
        same_base_as_before(student, site)
    return site, source


def _share_vocabulary(models: Sequence[CausalLM], loss: Loss) -> int:
    """What all of them are compared over. Raises `RecipeError` where objective.k is more."""
    vocabulary = shared_vocabulary(models)
    for lm in models:
        lm.vocabulary = vocabulary
    if loss.k is not None and loss.k > vocabulary:
        raise RecipeError(f"objective.k = {loss.k}, but student and teacher share {vocabulary} tokens. Lower it.")
    return vocabulary


async def _reference_teacher(site: Site, lm: CausalLM) -> LocalTeacher | TeacherPool:
    if site.fleet is None:
        return LocalTeacher(REFERENCE, lm)
    return await site.fleet.start_teacher(REFERENCE, _reference_source(site.recipe), lm)


async def _restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Raises `RunError` where the learner's state is not of as many updates as the checkpoint says."""
    learner.restore(checkpoint.folder)
    version = (await learner.publish()).version
    if version != checkpoint.step:
        raise RunError(
            f"{checkpoint.folder} is of step {checkpoint.step}, but the learner's state in it is of {version} updates: "
            f"files of two checkpoints are mixed. Remove {checkpoint.folder} to go on from the one before."
        )


def _notes(student: CausalLM) -> list[ProbeResult]:
    """What one should know of the student, and what is done about it."""
    notes = []
    if student.stop_ids_note is not None:
        notes.append(ProbeResult("stop tokens", student.stop_ids_note, "a response ends at any of them"))
    unnamed = vocabulary_note(student.name, student.tokenizer, student.vocabulary)
    if unnamed is not None:
        notes.append(ProbeResult("vocabulary", unnamed, "a token for every id"))
    return notes


def _student_source(recipe: Recipe, checkpoint: Checkpoint | None) -> StudentConfig:
    """The model folder that the student's weights come from: with adapters, always the base."""
    if checkpoint is None or not _trains_all_weights(recipe) or not (checkpoint.folder / MODEL_FOLDER).is_dir():
        return recipe.student
    return recipe.student.model_copy(update={"model": str(checkpoint.folder / MODEL_FOLDER)})


def _trains_all_weights(recipe: Recipe) -> bool:
    return isinstance(recipe.learner, PythonPartConfig) or recipe.learner.lora is None


def _refuse_baked_student(student: CausalLM) -> None:
    if student.natural_temperature != 1:
        raise ModelError(
            f"{student.name!r} was written by `limbeck bake` for temperature {student.natural_temperature:g}: its "
            "logits are divided already, and whoever trains or evaluates divides them again. Take the model that it "
            "was made of."
        )


async def _learner(site: Site, loss: Loss, heads: Mapping[str, Head]) -> Learner:
    section = site.recipe.learner
    if site.fleet is not None:
        return await site.fleet.learner_with(heads)
    if site.given.learner is not None:
        return checked_part(site.given.learner, Learner, "learner")
    if isinstance(section, PythonPartConfig):
        learner: Learner = build_part(section, "learner", site.build)
        return checked_part(learner, Learner, "learner")
    return LocalLearner(site.student, section, loss, site.recipe.steps, site.recipe.seed, heads)


def _reference(site: Site) -> CausalLM | None:
    """The frozen policy of a KL-to-reference term; its tokenizer is compared with the student's, like a teacher's."""
    if site.recipe.objective.reference is None:
        return None
    source = _reference_source(site.recipe)
    lm = load_model(source, site.device) if site.fleet is None else load_outline(source)
    student = site.student
    check_same_tokenizer(student.name, student.tokenizer, lm.name, lm.tokenizer, False, "reference")
    if lm.natural_temperature != 1:
        raise ModelError(
            f"objective.reference.model = {lm.name!r} was written by `limbeck bake` for temperature "
            f"{lm.natural_temperature:g}. Name the model that it was made of."
        )
    return lm


def _reference_source(recipe: Recipe) -> StudentConfig:
    section = recipe.objective.reference
    assert section is not None
    return recipe.student.model_copy(update={"model": section.model or recipe.student.model})


def _is_self_taught(recipe: Recipe) -> bool:
    student, teacher = recipe.student, recipe.teacher
    if not isinstance(teacher, LocalTeacherConfig) or student.dtype != teacher.dtype:
        return False
    if not isinstance(teacher.view, SameViewConfig):
        return False
    return resolve(student.model) == resolve(teacher.model)


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
