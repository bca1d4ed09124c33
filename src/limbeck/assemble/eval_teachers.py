"""Teachers for evaluation sets that sample in another way than training: proven again, as they are asked there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from limbeck.assemble.site import Site
from limbeck.assemble.tasks import Asked, Tasks
from limbeck.assemble.teachers import OpenTeachers
from limbeck.errors import ContractError
from limbeck.protocols import Task, Teacher
from limbeck.records import ProbeResult
from limbeck.training.eval_sets import OWN, EvalSet
from limbeck.training.run_folder import RunFolder


@dataclass(frozen=True)
class EvalTeachers:
    """By the temperature they were proven at, where it is not that of training."""

    at: Mapping[float, Teacher]
    results: tuple[ProbeResult, ...]


def proven_in_training(site: Site, tasks: Tasks) -> Task:
    """What the teachers of training are proven on: its prompts, and those of sets that sample as training does."""
    alike = [one for one in _scored(site, tasks) if _samples_as_training(one, site)]
    return Asked(tasks.own.train, [*tasks.own.held_out, *(prompt for one in alike for prompt in one.prompts)])


async def prove_eval_teachers(teachers: OpenTeachers, site: Site, tasks: Tasks) -> EvalTeachers:
    """For each other temperature or length that a set is scored at, the teachers' whole contract there.

    Raises `ContractError` naming the set where a teacher has no exact scores there.
    """
    at: dict[float, Teacher] = {}
    results: list[ProbeResult] = []
    for one in _scored(site, tasks):
        if _samples_as_training(one, site):
            continue
        for member in teachers.members.values():
            member.results.clear()  # those of training are kept already
        try:
            proven = await teachers.prove(_site_of(one, site), Asked(one.prompts))
        except ContractError as error:
            raise ContractError(
                f"eval.sets.{one.name} is sampled at temperature {one.temperature:g}, for at most {one.max_tokens} "
                f"tokens, and its reverse KL needs the teacher's scores there: {error} For its rewards alone set "
                f"eval.sets.{one.name}.score = false.",
                error.results,
            ) from error
        if one.temperature != site.recipe.rollout.temperature:
            at[one.temperature] = proven.teacher
        results += [replace(result, probe=f"eval.sets.{one.name}: {result.probe}") for result in proven.results]
    return EvalTeachers(at, tuple(results))


def _scored(site: Site, tasks: Tasks) -> Sequence[EvalSet]:
    return [one for one in tasks.sets(site.recipe) if one.scored and one.name != OWN]


def _samples_as_training(one: EvalSet, site: Site) -> bool:
    rollout = site.recipe.rollout
    return one.temperature == rollout.temperature and one.max_tokens <= rollout.max_tokens


def _site_of(one: EvalSet, site: Site) -> Site:
    """Where the recipe samples as the set does. What is kept of the teachers has a folder of its own."""
    there = {"temperature": one.temperature, "max_tokens": one.max_tokens}
    recipe = site.recipe.model_copy(update={"rollout": site.recipe.rollout.model_copy(update=there)})
    return replace(site, recipe=recipe, folder=RunFolder(site.folder.path / f"eval-{one.name}"))
