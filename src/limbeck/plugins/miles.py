"""Drop-in for miles: teacher scores at the rollout temperature, proven, retried, beside a task reward.

    --custom-rm-path limbeck.plugins.miles.reward_func
    --custom-reward-post-process-path limbeck.plugins.miles.post_process_rewards
    --rm-url http://teacher:30000/generate
    --reward-key task_reward --eval-reward-key task_reward

See `limbeck.plugins.opd` for what is read of `args`, of samples and of the environment.
"""

from __future__ import annotations

from functools import partial

from limbeck.plugins import opd
from limbeck.plugins.opd import reward_func

__all__ = ["post_process_rewards", "reward_func"]

post_process_rewards = partial(opd.post_process_rewards, once_a_rollout=True)
