"""The weights that the next steps are sampled with, where a run begins or goes on."""

from __future__ import annotations

from limbeck.assemble.answers import kind_of
from limbeck.assemble.own import checked_part
from limbeck.errors import ModelError, RecipeError
from limbeck.protocols import Learner, Policy, RestoresPolicies
from limbeck.training.run_folder import Checkpoint
from limbeck.training.versions import policy_folder, versions_kept


async def policies_to_sample_from(learner: Learner, lag: int, checkpoint: Checkpoint | None) -> list[Policy]:
    """Oldest first, up to the learner's own. With lag no update reaches them: the checkpoint has the older ones.

    Raises `RecipeError` for a learner that cannot take up older ones again, and `RunError` where they are not there.
    """
    own = await learner.publish()
    if lag == 0:
        return [own]
    if not isinstance(learner, RestoresPolicies):
        raise RecipeError(
            f"rollout.lag = {lag} samples with weights of earlier updates, but learner {kind_of(learner)} cannot take "
            "them up again when a run goes on: it has no `restore_policy` (limbeck.protocols.RestoresPolicies). Write "
            "it, or set rollout.lag = 0."
        )
    policies: list[Policy] = []
    if checkpoint is not None:
        for version in versions_kept(checkpoint.step, lag):
            policy = learner.restore_policy(policy_folder(checkpoint.folder, version), version)
            policies.append(checked_part(policy, Policy, f"learner {kind_of(learner)}: restore_policy", ModelError))
    return [*policies, own.hold()]
