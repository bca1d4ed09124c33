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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ObjectiveConfig
from limbeck.errors import (
    EngineError,
    LimbeckError,
    ModelError,
    NonFiniteError,
    RunError,
    place_of,
)
from limbeck.learners.adapters import LoraAdapters, add_adapters
from limbeck.learners.batch import Batch, Heads, check_given_ids, heads_on, make_batch
from limbeck.learners.checkpoint import (
    ADAPTER_FOLDER,
    LEARNER_FILE,
    MODEL_FOLDER,
    restore_state,
    save_state,
    weights_of,
)
from limbeck.learners.forward import Forward
from limbeck.learners.groups import compared_bytes
from limbeck.learners.optimizer import make_optimizer
from limbeck.learners.past import PastSelf
from limbeck.learners.policy import WEIGHTS, Lease, LocalPolicy
from limbeck.learners.process_group import Ranks, Sharding
from limbeck.learners.schedule import learning_rate
from limbeck.learners.token_metrics import TokenMetrics
from limbeck.models.causal_lm import CausalLM, dtype_of, first_line, turn_off_training_noise
from limbeck.models.equivalence import prove_packing, share_prompts, use_fused_forward
from limbeck.models.layout import Layout
from limbeck.models.proofs import prove_model
from limbeck.models.shards import inside, like, rows_here, whole
from limbeck.objectives import Loss, loss_of
from limbeck.records import Scored
from limbeck.reports import Mean, StepReport, Trace

logger = logging.getLogger("limbeck")


class LocalLearner:
    """Trains `lm` for `steps` steps. `version` counts the updates made.

    `heads`, by fingerprint, are the output heads that hidden states of teachers and reference belong to. One of several
    `ranks` takes `lm` as `read_model` gives it, and keeps its part; whatever is asked of one is asked of all of them,
    and the first one's answers are those of all.
    """

    def __init__(
        self,
        lm: CausalLM,
        config: LocalLearnerConfig,
        objective: ObjectiveConfig | Loss,
        steps: int,
        seed: int,
        heads: Heads | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.lm, self.config, self.steps, self.seed = lm, config, steps, seed
        self.ranks = ranks or Ranks()
        if config.cpu_offload and self.ranks.count == 1 and lm.device.type != "cpu":
            raise ModelError(
                "learner.cpu_offload = true in one process: only several ranks keep weights apart from "
                "where they compute. Set cluster.learners = 2 or more, or leave it out."
            )
        self.loss = objective if isinstance(objective, Loss) else loss_of(objective)
        self._heads = heads_on(heads or {}, lm.device)
        self.pasts: list[PastSelf] = []  # of teachers that are this student's own past
        self.version = 0
        narrow = torch.bfloat16 if config.precision == "bfloat16" else None
        self.autocast = narrow if self.ranks.count == 1 else None  # several gather their weights in it
        if self.ranks.count == 1:
            self.layout = _layout(lm, config)
        with warnings.catch_warnings():  # names that are new in transformers, and not in all that we support
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            if config.gradient_checkpointing:
                lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            torch.manual_seed(seed)  # what adapters begin as
            with self.ranks.unread(lm):
                self.adapters: LoraAdapters | None = add_adapters(lm, config.lora) if config.lora else None
        if self.ranks.count > 1:
            self.ranks.shard(lm, Sharding(narrow, config.cpu_offload, self.adapters is not None))
            prove_model(lm)
            self.layout = _layout(lm, config)
        turn_off_training_noise(lm)
        use_fused_forward(lm, config.gradient_checkpointing, self.autocast)
        self.forward = Forward(lm, self.loss, config.loss_chunk_mb * 2**20, self.autocast)
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
            with self.ranks.guarded(f"update {self.version + 1}"):
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
        for past in self.pasts:
            past.after_update()
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
        for micro in self.ranks.own(batch):
            loss, measured = inside(self.lm.model, self.forward.loss, batch, micro)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.collect()
            if micro is not None and measured is not None:
                metrics.add(micro, measured)
        backward_done = time.perf_counter()
        metrics.reduce(self.ranks)
        limit = self.config.max_grad_norm or math.inf
        norm = whole(torch.nn.utils.clip_grad_norm_(self.optimizer.targets(), limit)).item()
        self._stop_if_not_finite(samples, metrics, norm)
        return batch, metrics, norm, backward_done

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        """The metrics of `update`, without a gradient or an update."""
        batch = self._batch(samples)
        self.lm.model.eval()
        metrics = self._metrics(samples)
        with torch.no_grad(), self.ranks.guarded("measuring"):
            for micro in self.ranks.own(batch):
                _, measured = inside(self.lm.model, self.forward.loss, batch, micro)
                if micro is not None and measured is not None:
                    metrics.add(micro, measured)
            metrics.reduce(self.ranks)
        return StepReport(_means(metrics, samples), metrics.maxima(), {"tokens/measured": batch.global_tokens})

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        """See `protocols.Learner`. A pass of its own, so that a step pays for recorded samples only.

        The first of several ranks has them; the others return none.
        """
        batch = self._batch(samples)
        self.lm.model.eval()
        traces: dict[int, Trace] = {}
        with torch.no_grad(), self.ranks.guarded("tracing"):
            for micro in self.ranks.own(batch):
                traces |= inside(self.lm.model, self.forward.traces, batch, micro, top)
            for others in self.ranks.gather(traces):
                traces |= others
        return [traces[index] for index in range(len(samples))] if self.ranks.is_first else []

    async def publish(self) -> LocalPolicy:
        """A lease on the weights as they are. The next update ends it."""
        return self.policy_at(self.version, lease=self._lease)

    def save(self, folder: Path) -> None:
        """A checkpoint: `model/` (with LoRA `adapter/` in its place) and `learner.safetensors`. See `checkpoint`.

        The first rank writes, a tensor at a time; all of them take part.
        """
        policy = LocalPolicy(self.lm, self.version, self.adapters, ranks=self.ranks)
        if self.adapters is None:
            policy.save(folder / MODEL_FOLDER, dtype_of(self.lm))
        else:
            policy.save_adapter(folder / ADAPTER_FOLDER)
        weights = weights_of(self.lm, self.adapters)
        with WEIGHTS, self.ranks.guarded("saving"):
            save_state(folder / LEARNER_FILE, self.version, self.optimizer, self.parameters, weights, self.ranks)
            for past in self.pasts:
                past.save(folder)

    def restore(self, folder: Path) -> None:
        """Take up what `save` wrote. Full weights are loaded with the model, from the checkpoint's `model/`.

        Raises `RunError` naming the file that is missing or of something else.
        """
        wanted, other = (MODEL_FOLDER, ADAPTER_FOLDER) if self.adapters is None else (ADAPTER_FOLDER, MODEL_FOLDER)
        if not (folder / wanted).is_dir():
            found = f" It has {other}/: was it written with another learner.lora?" if (folder / other).is_dir() else ""
            raise RunError(f"{folder} is not a checkpoint of this student: it has no {wanted}/.{found}")
        weights = weights_of(self.lm, self.adapters)
        self.version = restore_state(folder / LEARNER_FILE, self.optimizer, self.parameters, weights, self.ranks)
        if self.adapters is not None:
            self.adapters.load(folder / ADAPTER_FOLDER)
        self._replace_lease(self.version)
        for past in self.pasts:
            past.restore(folder)

    def restore_policy(self, folder: Path, version: int) -> LocalPolicy:
        """See `protocols.RestoresPolicies`."""
        return self.policy_at(version).read(folder)

    def know_heads(self, heads: Heads) -> None:
        """Output heads, by fingerprint, of hidden states that will come."""
        self._heads = heads_on(heads, self.lm.device)

    @property
    def heads(self) -> Heads:
        """Of all whose hidden states may come now."""
        return {**self._heads, **{fingerprint: head for past in self.pasts for fingerprint, head in past.heads.items()}}

    def policy_of(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> LocalPolicy:
        """The policy whose `trained` gave these tensors. They are read, never written."""
        held: dict[nn.Parameter, Tensor] = {}
        for name, tensor in tensors:
            parameter = self.parameters[name]
            rows = tensor if self.ranks.count == 1 else tensor[rows_here(parameter)].clone()
            held[parameter] = like(parameter, rows)
        return self.policy_at(version, held=held)

    def policy_at(
        self, version: int, lease: Lease | None = None, held: Mapping[nn.Parameter, Tensor] | None = None
    ) -> LocalPolicy:
        return LocalPolicy(
            self.lm,
            version,
            self.adapters,
            budget=self.config.micro_batch_tokens,
            autocast=self.autocast,
            lease=lease,
            held=held,
            ranks=self.ranks,
        )

    def take(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Hold the weights of another learner of this student: what `LocalPolicy.trained` gave there.

        Raises `ModelError` for other names or shapes. The optimizer knows nothing of them: this is for sampling.
        """
        self._replace_lease(version)
        missing = dict(self.parameters)
        with torch.no_grad():
            for name, tensor in tensors:
                parameter = missing.pop(name, None)
                if parameter is None or parameter.shape != tensor.shape:
                    raise ModelError(
                        f"weights of update {version} have {name!r} of shape {list(tensor.shape)}, which "
                        f"{self.lm.name} does not train here. Do all processes of the fleet see the same model folder?"
                    )
                parameter.copy_(tensor)
        if missing:
            raise ModelError(f"weights of update {version} lack {next(iter(missing))!r}, and {len(missing) - 1} more")
        self.version = version

    def _replace_lease(self, version: int) -> None:
        """End the lease of every policy that was published so far: the weights are about to be those of `version`."""
        self._lease.replaced_by = version
        self._lease = Lease(version)

    def _metrics(self, samples: Sequence[Scored]) -> TokenMetrics:
        truncated = any(sample.rollout.sampling.truncated for sample in samples)
        prompt_ids = [sample.rollout.prompt.id for sample in samples]
        sources = [sample.rollout.source_name for sample in samples]
        return TokenMetrics(prompt_ids, self.lm.device, truncated, compared_bytes(samples), sources)

    def _batch(self, samples: Sequence[Scored]) -> Batch:
        config, lm = self.config, self.lm
        if self.loss.support == "student_top":
            check_given_ids(samples)
        batch = make_batch(
            samples, self.layout, config.micro_batch_tokens, lm.device, self.heads, lm.vocabulary, self.ranks.count
        )
        if batch.global_tokens == 0:
            raise EngineError(
                f"none of the {len(samples)} responses has a token to learn from. Does the engine strip the stop "
                "token, or stop at once? Does the teacher's valid_mask leave everything out?"
            )
        return batch

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
    by_teacher = metrics.by_teacher([sample.scores.scorer for sample in samples])
    by_task = metrics.by_task([sample.rollout.prompt.task for sample in samples])
    return metrics.means() | by_teacher | metrics.by_source() | by_task


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
