"""How the scores of a proven teacher come to be at the rollout's temperature, in a line for people."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.assemble.own import OwnTeacher
from limbeck.assemble.site import Site
from limbeck.protocols import Teacher
from limbeck.records import ProbeResult
from limbeck.teachers.remote import RemoteTeacher

WORDS = {  # by the method of `contract.methods`
    "native": "exact, by the server",
    "plain": "exact, by the server",
    "baked": "exact, by a checkpoint baked for it",
    "hidden": "exact, from the server's hidden states",
}


def method_line(name: str, teacher: Teacher, found: Sequence[ProbeResult], site: Site) -> str:
    """`teacher at T = 0.7: exact, by the server`; of `rescale`, what the probes `found` of its certificates."""
    if isinstance(teacher, OwnTeacher):
        how = "a part of your own, whose answers were checked"
    elif not isinstance(teacher, RemoteTeacher):
        how = "exact, in this process" if site.fleet is None else "exact, in the fleet's processes"
    elif (method := teacher.proof.method) == "rescale":
        measured = next(result.measured for result in found if result.probe == "method rescale" and result.ok)
        most = teacher.client.section.max_rescale_error
        how = f"rescaled from log-probs at T = 1, certified to {most:g} nats or left out ({measured})"
    else:
        how = WORDS[method]
    return f"{name} at T = {site.recipe.rollout.temperature:g}: {how}"
