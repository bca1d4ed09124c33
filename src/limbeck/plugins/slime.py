"""Drop-in for slime: teacher scores at the rollout temperature, proven, retried, beside a task reward.

    --custom-rm-path limbeck.plugins.slime.reward_func
    --custom-reward-post-process-path limbeck.plugins.slime.post_process_rewards
    --rm-url http://teacher:30000/generate
    --reward-key task_reward --eval-reward-key task_reward

See `limbeck.plugins.opd` for what is read of `args`, of samples and of the environment.
"""

from limbeck.plugins.opd import post_process_rewards, reward_func

__all__ = ["post_process_rewards", "reward_func"]
