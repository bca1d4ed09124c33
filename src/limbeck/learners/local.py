"""Learner `local`: AdamW in this process, full weights or low-rank adapters.

The update is a sum over all trained tokens of the step over their global count, so it does not
depend on how the step is split, padded or packed. Nothing in it is random: dropout and its like are
off, for the student must be the distribution that was sampled from. So a resumed run needs no generator state.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ObjectiveConfig
from limbeck.errors import (
    ContractError,
    EngineError,
    LimbeckError,
    ModelError,
    NonFiniteError,
    RunError,
    place_of,
)
from limbeck.learners.adapters import LoraAdapters, add_adapters
from limbeck.learners.batch import Batch, Heads, MicroBatch, check_given_ids, make_batch
from limbeck.learners.checkpoint import (
    ADAPTER_FOLDER,
    LEARNER_FILE,
    MODEL_FOLDER,
    restore_state,
    save_state,
    weights_of,
)
from limbeck.learners.optimizer import make_optimizer
from limbeck.learners.policy import Lease, LocalPolicy
from limbeck.learners.token_metrics import TokenMetrics
from limbeck.learners.tracing import trace_micro_batch
from limbeck.models.causal_lm import CausalLM, dtype_of, first_line, precision, turn_off_training_noise
from limbeck.models.equivalence import prove_packing, share_prompts, use_fused_forward
from limbeck.models.layout import Layout
from limbeck.objectives import Loss, Measured, distillation_loss, loss_of
from limbeck.records import Scored
from limbeck.reports import Mean, StepReport, Trace

logger = logging.getLogger("limbeck")


class LocalLearner:
    """Trains `lm` for `steps` steps. `version` counts the updates made.

    `heads`, by fingerprint, are the output heads that hidden states of teachers and reference belong to.
    """

    def __init__(
        self,
        lm: CausalLM,
        config: LocalLearnerConfig,
        objective: ObjectiveConfig | Loss,
        steps: int,
        seed: int,
        heads: Heads | None = None,
    ) -> None:
        self.lm, self.config, self.steps, self.seed = lm, config, steps, seed
        self.loss = objective if isinstance(objective, Loss) else loss_of(objective)
        self.heads = _narrowed(heads or {}, lm)
        self.version = 0
        self.layout = _layout(lm, config)
        self.autocast = torch.bfloat16 if config.precision == "bfloat16" else None
        with warnings.catch_warnings():  # names that are new in transformers, and not in all that we support
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            if config.gradient_checkpointing:
                lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            torch.manual_seed(seed)  # what adapters begin as
            self.adapters: LoraAdapters | None = add_adapters(lm, config.lora) if config.lora else None
        turn_off_training_noise(lm)
        use_fused_forward(lm, config.gradient_checkpointing, self.autocast)
        self.parameters = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(list(self.parameters.values()), config)
        self._lease = Lease(self.version)

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        """One optimizer step. Raises `NonFiniteError` before a step that would spoil the weights.

        Whatever is raised before the step (an objective's mistake, too little memory) is a `ModelError`: nothing was
        updated then.
        """
        clock = time.perf_counter()
        try:
            batch, metrics, norm, backward_done = self._gradient(samples)
        except LimbeckError:
            raise
        except Exception as error:
            self.optimizer.zero_grad(set_to_none=True)
            raise ModelError(_before_the_step(error, self.version + 1)) from error
        lr = learning_rate(self.config, self.version, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._replace_lease(self.version + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        seconds = {
            "update/backward": backward_done - clock,
            "update/optimizer": time.perf_counter() - backward_done,
        }
        maxima = {**metrics.maxima(), "grad_norm": norm, "lr": lr}
        return StepReport(_means(metrics, samples), maxima, {"tokens/trained": batch.global_tokens}, seconds)

    def _gradient(self, samples: Sequence[Scored]) -> tuple[Batch, TokenMetrics, float, float]:
        """The batch, its metrics, the norm of the gradient that the weights hold then, and when backward was done."""
        batch = self._batch(samples)
        if not self.lm.model.training:  # a walk over all modules
            self.lm.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self._metrics(samples)
        for micro in batch.micro:
            loss, measured = self._loss(batch, micro, self._hidden(micro))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.collect()
            metrics.add(micro, measured)
        backward_done = time.perf_counter()
        limit = self.config.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.optimizer.targets(), limit).item()
        self._stop_if_not_finite(samples, metrics, norm)
        return batch, metrics, norm, backward_done

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        """The metrics of `update`, without a gradient or an update."""
        batch = self._batch(samples)
        self.lm.model.eval()
        metrics = self._metrics(samples)
        with torch.no_grad():
            for micro in batch.micro:
                metrics.add(micro, self._loss(batch, micro, self._hidden(micro))[1])
        return StepReport(_means(metrics, samples), metrics.maxima(), {"tokens/measured": batch.global_tokens})

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        """See `protocols.Learner`. A pass of its own, so that a step pays for recorded samples only."""
        batch = self._batch(samples)
        self.lm.model.eval()
        traces: dict[int, Trace] = {}
        with torch.no_grad():
            for micro in batch.micro:
                hidden_Nd = self._hidden(micro)
                measured = self._loss(batch, micro, hidden_Nd)[1]
                own_top = self.loss.support != "student_top"
                traced = trace_micro_batch(hidden_Nd, self.lm.head(), micro, measured, batch.temperature, top, own_top)
                traces |= dict(zip(micro.members, traced, strict=True))
        return [traces[index] for index in range(len(samples))]

    async def publish(self) -> LocalPolicy:
        """A lease on the weights as they are. The next update ends it."""
        return LocalPolicy(
            self.lm,
            self.version,
            self.adapters,
            budget=self.config.micro_batch_tokens,
            autocast=self.autocast,
            lease=self._lease,
        )

    def save(self, folder: Path) -> None:
        """A checkpoint: `model/` (with LoRA `adapter/` in its place) and `learner.safetensors`. See `checkpoint`."""
        policy = LocalPolicy(self.lm, self.version, self.adapters)
        if self.adapters is None:
            policy.save(folder / MODEL_FOLDER, dtype_of(self.lm))
        else:
            policy.save_adapter(folder / ADAPTER_FOLDER)
        save_state(
            folder / LEARNER_FILE, self.version, self.optimizer, self.parameters, weights_of(self.lm, self.adapters)
        )

    def restore(self, folder: Path) -> None:
        """Take up what `save` wrote. Full weights are loaded with the model, from the checkpoint's `model/`.

        Raises `RunError` naming the file that is missing or of something else.
        """
        wanted, other = (MODEL_FOLDER, ADAPTER_FOLDER) if self.adapters is None else (ADAPTER_FOLDER, MODEL_FOLDER)
        if not (folder / wanted).is_dir():
            found = f" It has {other}/: was it written with another learner.lora?" if (folder / other).is_dir() else ""
            raise RunError(f"{folder} is not a checkpoint of this student: it has no {wanted}/.{found}")
        weights = weights_of(self.lm, self.adapters)
        self.version = restore_state(folder / LEARNER_FILE, self.optimizer, self.parameters, weights)
        if self.adapters is not None:
            self.adapters.load(folder / ADAPTER_FOLDER)
        self._replace_lease(self.version)

    def _replace_lease(self, version: int) -> None:
        """End the lease of every policy that was published so far: the weights are about to be those of `version`."""
        self._lease.replaced_by = version
        self._lease = Lease(version)

    def _metrics(self, samples: Sequence[Scored]) -> TokenMetrics:
        truncated = any(sample.rollout.sampling.truncated for sample in samples)
        return TokenMetrics([sample.rollout.prompt.id for sample in samples], self.lm.device, truncated)

    def _batch(self, samples: Sequence[Scored]) -> Batch:
        config, lm = self.config, self.lm
        if self.loss.support == "student_top":
            check_given_ids(samples)
        batch = make_batch(samples, self.layout, config.micro_batch_tokens, lm.device, self.heads, lm.vocabulary)
        if batch.global_tokens == 0:
            raise EngineError(
                f"none of the {len(samples)} responses has a token to learn from. Does the engine strip the stop "
                "token, or stop at once? Does the teacher's valid_mask leave everything out?"
            )
        return batch

    def _loss(self, batch: Batch, micro: MicroBatch, hidden_Nd: Tensor) -> tuple[Tensor, Measured]:
        return distillation_loss(
            self.loss,
            batch.temperature,
            hidden_Nd,
            self.lm.head(),
            micro.tokens,
            micro.teacher,
            batch.global_tokens,
            micro.reference,
            self.config.loss_chunk_mb * 2**20,
        )

    def _hidden(self, micro: MicroBatch) -> Tensor:
        """[N, d] at the positions that predict the trained tokens."""
        layout = micro.layout
        with precision(self.lm, self.autocast):
            return self.lm.states(layout.tokens_BL, layout.positions_BL, layout.predict_N, layout.tree)

    def _stop_if_not_finite(self, samples: Sequence[Scored], metrics: TokenMetrics, norm: float) -> None:
        if math.isfinite(norm):
            return
        offenders = metrics.non_finite()
        self.optimizer.zero_grad(set_to_none=True)
        names = ", ".join(samples[i].rollout.prompt.id for i in offenders[:5]) or "none of the losses"
        raise NonFiniteError(
            f"update {self.version + 1} has a gradient norm of {norm}; nothing was updated. Responses with a "
            f"loss that is not finite: {len(offenders)} of {len(samples)} ({names}). Lower learner.lr, or look "
            "at the saved samples.",
            [samples[i] for i in offenders] or list(samples),
        )


def _before_the_step(error: Exception, update: int) -> str:
    remedy = ""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        remedy = " Lower learner.micro_batch_tokens or learner.loss_chunk_mb, or set learner.gradient_checkpointing."
    reason = f"{type(error).__name__}: {first_line(error)} ({place_of(error)})"
    return f"update {update} was not made: {reason}. The weights are those before it.{remedy}"


def _means(metrics: TokenMetrics, samples: Sequence[Scored]) -> dict[str, Mean]:
    return metrics.means() | metrics.by_teacher([sample.scores.scorer for sample in samples])


def _narrowed(heads: Heads, lm: CausalLM) -> Heads:
    """Heads over the student's vocabulary. Raises `ContractError` for one that has not all of it."""
    for fingerprint, head in heads.items():
        if head.vocabulary < lm.vocabulary:
            raise ContractError(
                f"the output head {fingerprint} has {head.vocabulary} tokens, but {lm.name} is compared over "
                f"{lm.vocabulary}. Student and teacher must share their vocabulary."
            )
    return {fingerprint: head.narrow(lm.vocabulary) for fingerprint, head in heads.items()}


def learning_rate(config: LocalLearnerConfig, step: int, steps: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, then the schedule down to 0 at `steps`."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.lr * factor


def _layout(lm: CausalLM, config: LocalLearnerConfig) -> Layout:
    """The layout asked for, proven for this model. Raises `ModelError` where it cannot have it."""
    if config.layout == "packed":
        prove_packing(lm)
    if config.layout in ("padded", "packed"):
        return config.layout
    why = share_prompts(lm)
    if why is None:
        return "tree"
    if config.layout == "tree":
        raise ModelError(f"{lm.name} cannot share prompts among their samples: {why}. Set learner.layout = 'padded'.")
    logger.info("%s: each sample's prompt is computed anew, for the model cannot share it: %s", lm.name, why)
    return "padded"
