"""What other trainers call a key: for the error of an unknown one.

TRL, transformers' Trainer, verl and peft. A name means the same in whatever table it stands.
"""

from __future__ import annotations

from collections.abc import Mapping

_TARGETS: Mapping[str, str] = {
    "steps": "epochs num_epochs num_train_epochs total_epochs max_steps num_steps total_training_steps",
    "name": "run_name experiment_name",
    "output": "output_dir",
    "trackers": "report_to logger",
    "student.model": "model_name_or_path model_name",
    "student.dtype": "bf16 torch_dtype",
    "teacher.model": "teacher_model teacher_model_name_or_path",
    "task": "dataset dataset_name train_files",
    "rollout.max_tokens": "max_new_tokens max_completion_length max_response_length response_length",
    "rollout.prompts_per_step": "batch_size train_batch_size per_device_train_batch_size generation_batch_size",
    "rollout.samples_per_prompt": "n num_generations num_return_sequences group_size",
    "rollout.sources": "lmbda",
    "learner.lr": "learning_rate",
    "learner.schedule": "lr_scheduler_type scheduler",
    "learner.warmup_steps": "warmup_ratio lr_warmup_steps num_warmup_steps",
    "learner.betas": "adam_beta1 adam_beta2",
    "learner.max_grad_norm": "grad_clip clip_grad gradient_clipping",
    "learner.micro_batch_tokens": "gradient_accumulation_steps micro_batch_size ppo_micro_batch_size_per_gpu",
    "learner.lora.rank": "r lora_r lora_rank",
    "learner.lora.alpha": "lora_alpha",
    "objective.reference.weight": "kl_coef kl_loss_coef",
    "checkpoint.every": "save_steps save_freq",
    "checkpoint.keep_last": "save_total_limit max_actor_ckpt_to_keep",
    "eval.every": "eval_steps test_freq",
}
ALIASES: Mapping[str, str] = {name: key for key, names in _TARGETS.items() for name in names.split()}
NOTES: Mapping[str, str] = {  # of targets that are not counted alike
    "steps": ", counted in updates, not in passes over the data",
    "learner.warmup_steps": ", a count of updates",
    "learner.micro_batch_tokens": ", the tokens of one part of a step, which has as many parts as it needs",
    "rollout.sources": ", of which each has a `share`; without any, the student samples everything",
}


def known_as(name: str) -> str | None:
    """`learning_rate` is `learner.lr` here: the sentence for a name that others use; None for others."""
    target = ALIASES.get(name)
    return None if target is None else f"`{name}` is `{target}` here{NOTES.get(target, '')}."
