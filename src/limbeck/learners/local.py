"""Learner `local`: AdamW in this process, whole weights or low-rank adapters.

The update is a sum over all trained tokens of the step over their global count, so it does not
depend on how the step is split, padded or packed. Randomness (dropout) follows from seed and step,
so a resumed run needs no generator state.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.config.learner import LocalLearnerConfig, LoraConfig
from limbeck.config.objective import ObjectiveConfig
from limbeck.errors import EngineError, ModelError, NonFiniteError, RunError
from limbeck.learners.batch import Batch, MicroBatch, make_batch
from limbeck.learners.token_metrics import TokenMetrics
from limbeck.learners.tracing import trace_micro_batch
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.models.equivalence import prove_packing, share_prompts, use_fused_forward
from limbeck.models.layout import Layout, lay_out, plan
from limbeck.models.sampling import truncate
from limbeck.objectives import Measured, distillation_loss
from limbeck.records import Floats, Mean, Rollout, Scored, StepReport, Trace

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger("limbeck")

ROWS = 256  # of logits alive at once where log-probs are recomputed
STATE_FILE = "learner.safetensors"
MODEL_FOLDER = "model"


class InProcessLearner:
    """Trains `lm` for `steps` steps. `version` counts the updates made."""

    def __init__(
        self, lm: CausalLM, section: LocalLearnerConfig, objective: ObjectiveConfig, steps: int, seed: int
    ) -> None:
        self.lm, self.section, self.objective, self.steps, self.seed = lm, section, objective, steps, seed
        self.version = 0
        self.layout = _layout(lm, section)
        self.autocast = torch.bfloat16 if section.precision == "bfloat16" else None
        if section.gradient_checkpointing:
            lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(seed)  # what adapters begin as
        self.adapters = _add_adapters(lm, section.lora) if section.lora else None
        if self.layout != "packed" and self.autocast is None:
            use_fused_forward(lm, section.gradient_checkpointing)
        self.parameters = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": section.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=section.lr,
            betas=section.betas,
            fused=True,
        )

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        """One optimizer step. Raises `NonFiniteError` before a step that would spoil the weights."""
        clock = time.perf_counter()
        batch = self._batch(samples)
        torch.manual_seed(hash((self.seed, self.version)))
        if not self.lm.model.training:  # a walk over all modules
            self.lm.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        measures = TokenMetrics(len(samples), self.lm.device)
        for micro in batch.micro:
            loss, measured = self._loss(batch, micro)
            loss.backward()  # type: ignore[no-untyped-call]
            measures.add(micro, measured)
        backward_done = time.perf_counter()
        limit = self.section.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit).item()
        self._stop_if_not_finite(samples, measures, norm)
        lr = learning_rate(self.section, self.version, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        seconds = {
            "update/backward": backward_done - clock,
            "update/optimizer": time.perf_counter() - backward_done,
        }
        maxima = {**measures.maxima(), "grad_norm": norm, "lr": lr}
        return StepReport(_means(measures, samples), maxima, {"tokens/trained": batch.global_tokens}, seconds)

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        """The metrics of `update`, without a gradient or an update."""
        batch = self._batch(samples)
        self.lm.model.eval()
        measures = TokenMetrics(len(samples), self.lm.device)
        with torch.no_grad():
            for micro in batch.micro:
                measures.add(micro, self._loss(batch, micro)[1])
        return StepReport(_means(measures, samples), measures.maxima(), {"tokens/measured": batch.global_tokens})

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        """See `protocols.Learner`. A pass of its own, so that a step pays for recorded samples only."""
        batch = self._batch(samples)
        self.lm.model.eval()
        traces: dict[int, Trace] = {}
        with torch.no_grad():
            for micro in batch.micro:
                hidden_Nd = self._hidden(micro)
                traced = trace_micro_batch(hidden_Nd, self.lm.head(), micro, batch.temperature, top)
                traces |= dict(zip(micro.members, traced, strict=True))
        return [traces[index] for index in range(len(samples))]

    async def publish(self) -> LocalPolicy:
        return LocalPolicy(self.version, self.lm, self.adapters, self.section.micro_batch_tokens, self.autocast)

    def save(self, folder: Path) -> None:
        """`model/`, an ordinary Hugging Face folder, and `learner.safetensors`, what resuming needs."""
        LocalPolicy(self.version, self.lm, self.adapters).save(folder / MODEL_FOLDER)
        state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{key}/{name}"] = value.detach().cpu().contiguous()
            if self.section.lora:
                state[f"adapter/{name}"] = parameter.detach().cpu().contiguous()
        save_file(state, folder / STATE_FILE, metadata={"version": str(self.version)})

    def restore(self, folder: Path) -> None:
        """Take up optimizer state and adapters of `save`. Whole weights are loaded with the model.

        Raises `RunError` where the file is not of this student.
        """
        path = folder / STATE_FILE
        with safe_open(path, framework="pt") as file:
            self.version = int(file.metadata()["version"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        for full_name, value in state.items():
            kind, _, rest = full_name.partition("/")
            key, _, name = rest.partition("/") if kind == "optimizer" else ("", "", rest)
            if name not in self.parameters:
                raise RunError(f"{path} has state for a weight {name!r} that the student does not train")
            parameter = self.parameters[name]
            if kind == "adapter":
                parameter.data.copy_(value)
            else:
                self.optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)

    def _batch(self, samples: Sequence[Scored]) -> Batch:
        section = self.section
        batch = make_batch(samples, self.layout, section.micro_batch_tokens, self.lm.device)
        if batch.global_tokens == 0:
            raise EngineError(
                f"none of the {len(samples)} responses has a sampled token, so there is nothing to learn from. "
                "Does the engine strip the stop token, or stop at once?"
            )
        return batch

    def _loss(self, batch: Batch, micro: MicroBatch) -> tuple[Tensor, Measured]:
        return distillation_loss(
            self.objective,
            batch.temperature,
            self._hidden(micro),
            self.lm.head(),
            micro.tokens,
            micro.teacher,
            batch.global_tokens,
            micro.reference,
            self.section.loss_chunk_mb * 2**20,
        )

    def _hidden(self, micro: MicroBatch) -> Tensor:
        """[N, d] at the positions that predict the trained tokens."""
        layout = micro.layout
        with precision(self.lm, self.autocast):
            return self.lm.states(layout.tokens_BL, layout.positions_BL, layout.predict_N, layout.tree)

    def _stop_if_not_finite(self, samples: Sequence[Scored], measures: TokenMetrics, norm: float) -> None:
        if math.isfinite(norm):
            return
        offenders = measures.non_finite()
        self.optimizer.zero_grad(set_to_none=True)
        names = ", ".join(samples[i].rollout.prompt.id for i in offenders[:5]) or "none of the losses"
        raise NonFiniteError(
            f"update {self.version + 1} has a gradient norm of {norm}; nothing was updated. Responses with a "
            f"loss that is not finite: {len(offenders)} of {len(samples)} ({names}). Lower learner.lr, or look "
            "at the saved samples.",
            [samples[i] for i in offenders] or list(samples),
        )


@dataclass(frozen=True)
class LocalPolicy:
    """The student's weights as they are now, adapters merged in."""

    version: int
    lm: CausalLM
    adapters: PeftModel | None = None
    budget: int = 8192  # tokens of one forward pass
    autocast: torch.dtype | None = None

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._merged().state_dict().items()

    def save(self, folder: Path) -> None:
        self._merged().save_pretrained(folder)
        self.lm.tokenizer.save_pretrained(folder)

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        found: list[Floats] = [np.zeros(0, np.float32)] * len(rollouts)
        was_training = self.lm.model.training
        self.lm.model.eval()
        with torch.inference_mode(), precision(self.lm, self.autocast):
            for part in plan([len(rollout.token_ids) for rollout in rollouts], self.budget, "padded"):
                batch = lay_out([rollouts[i] for i in part], "padded").to(self.lm.device)
                hidden_Nd = self.lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N)
                counts = [int(rollouts[i].trained.sum()) for i in part]
                for i, hidden_Sd in zip(part, torch.split(hidden_Nd, counts), strict=True):
                    found[i] = self._sampled(hidden_Sd, rollouts[i])
        self.lm.model.train(was_training)
        return found

    def _sampled(self, hidden_Sd: Tensor, rollout: Rollout) -> Floats:
        """[S] log-probs of a rollout's sampled tokens, some rows of the vocabulary at a time."""
        head, sampling, values = self.lm.head(), rollout.sampling, []
        ids_S = torch.from_numpy(rollout.response_ids).to(hidden_Sd.device)
        for hidden_Cd, ids_C in zip(torch.split(hidden_Sd, ROWS), torch.split(ids_S, ROWS), strict=True):
            logp_CV = torch.log_softmax(head.logits(hidden_Cd).float() / sampling.temperature, dim=-1)
            logp_CV = truncate(logp_CV, sampling) if sampling.truncated else logp_CV
            values.append(logp_CV.gather(1, ids_C[:, None])[:, 0].cpu().numpy())
        return np.concatenate(values) if values else np.zeros(0, np.float32)

    def _merged(self) -> PreTrainedModel:
        """A copy where there are adapters: merging and unmerging in place would move the weights."""
        if self.adapters is None:
            return self.lm.model
        merged: PreTrainedModel = copy.deepcopy(self.adapters).merge_and_unload()
        return merged


def _means(measures: TokenMetrics, samples: Sequence[Scored]) -> dict[str, Mean]:
    return measures.means() | measures.by_teacher([sample.scores.teacher for sample in samples])


def learning_rate(section: LocalLearnerConfig, step: int, steps: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, then the schedule down to 0 at `steps`."""
    warmup = section.warmup_steps
    if step < warmup:
        return section.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[section.schedule]
    return section.lr * factor


def _layout(lm: CausalLM, section: LocalLearnerConfig) -> Layout:
    """The layout asked for, proven for this model. Raises `ModelError` where it cannot have it."""
    if section.layout == "packed":
        prove_packing(lm)
    if section.layout in ("padded", "packed"):
        return section.layout
    why = share_prompts(lm)
    if why is None:
        return "tree"
    if section.layout == "tree":
        raise ModelError(f"{lm.name} cannot share prompts among their samples: {why}. Set learner.layout = 'padded'.")
    logger.info("%s: each sample's prompt is computed anew, for the model cannot share it: %s", lm.name, why)
    return "padded"


def _add_adapters(lm: CausalLM, lora: LoraConfig) -> PeftModel:
    """Put LoRA layers into the model; only they train.

    Raises `ModelError` without `peft`, for modules that are not there, and for adapters on the head.
    """
    try:
        import peft
    except ImportError:
        raise ModelError("learner.lora needs peft: pip install 'limbeck[lora]'") from None
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0
    )
    try:
        adapters = peft.get_peft_model(lm.model, config)
    except ValueError as error:
        raise ModelError(f"learner.lora.target_modules = {lora.target_modules!r} for {lm.name}: {error}") from error
    lm.head()
    return adapters
