"""Per-token numbers of a step's micro-batches, summed where they are and read once at the end.

Shape legend: N tokens of a micro-batch, R responses of the step, P prompts of the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.learners.batch import MicroBatch
from limbeck.learners.process_group import Ranks
from limbeck.objectives import Measured
from limbeck.reports import Mean

BATCH_NAMES = {
    "reverse_kl/exact": "reverse_kl",
    "entropy/student": "student_entropy",
    "entropy/teacher": "teacher_entropy",
    "top_k_overlap": "overlap",
    "reverse_kl/reference": "reference_kl",
    "objective": "objective",
    "support/student": "support_student",
    "support/teacher": "support_teacher",
    "support/sampled": "support_sampled",
}
OWN_NAMES = ("reverse_kl/sampled", "importance/mean", "importance/square", "mismatch")
NAMES = (*OWN_NAMES, *BATCH_NAMES)
KL_NAMES = ("reverse_kl/sampled", "reverse_kl/exact")
OF_OWN_SAMPLES = (*OWN_NAMES, "support/student", "support/teacher", "support/sampled")
BY_SOURCE = (*KL_NAMES, "objective")
STUDENT = "student"  # the source whose tokens the student sampled


class TokenMetrics:
    """Collects `Measured` of every micro-batch of a step.

    `prompt_ids` [R] say which prompt each response is to: responses to one prompt are not independent, so
    standard errors are over prompts. Of `truncated` sampling there is no sampled KL: the mean of log p - log q over
    what top_p and the like keep is no divergence of p, which is whole. `sizes` [R] are the bytes that were compared, of
    teachers with another tokenizer: a token of theirs is no measure.

    `sources` [R] say who wrote each response. What compares a sampler with the learner, or takes a token for a sample
    of the student (`OF_OWN_SAMPLES`), is of the student's own alone: of other tokens it would be the mean of nothing.
    """

    def __init__(
        self,
        prompt_ids: Sequence[str],
        device: torch.device,
        truncated: bool = False,
        sizes: Sequence[int] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        self.responses, self.device, self.truncated = len(prompt_ids), device, truncated
        self.sizes_R = None if sizes is None else torch.tensor(sizes, dtype=torch.float64, device=device)
        self.sources = [STUDENT] * self.responses if sources is None else list(sources)
        self.own_R: Tensor | None = None  # None: all of them
        if any(source != STUDENT for source in self.sources):
            self.own_R = torch.tensor([source == STUDENT for source in self.sources], device=device)
        places = {prompt_id: place for place, prompt_id in enumerate(dict.fromkeys(prompt_ids))}
        self.prompts = len(places)
        self.prompt_R = torch.tensor([places[one] for one in prompt_ids], dtype=torch.int64, device=device)
        self.totals_R: dict[str, Tensor] = {}
        self.counts_R: dict[str, Tensor] = {}
        self.importance_max_R = torch.zeros(self.responses, device=device, dtype=torch.float64)

    def add(self, micro: MicroBatch, measured: Measured) -> None:
        """Adds one micro-batch; forces no synchronisation."""
        members = torch.tensor(micro.members, device=self.device)
        response_N = members[micro.tokens.sequence_N]
        log_weight_N = measured.student_logprob - micro.tokens.behaviour_N
        weight_N = log_weight_N.exp()
        if self.own_R is not None:
            weight_N = torch.where(self.own_R[response_N], weight_N, 0.0)
        self.importance_max_R.scatter_reduce_(0, response_N, weight_N.double(), "amax")
        if not self.truncated:
            self._sum("reverse_kl/sampled", response_N, measured.student_logprob - measured.teacher_logprob)
        self._sum("importance/mean", response_N, weight_N)
        self._sum("importance/square", response_N, weight_N.square())
        self._sum("mismatch", response_N, log_weight_N.abs())
        for name, field in BATCH_NAMES.items():
            values_N = getattr(measured, field)
            if values_N is not None:
                self._sum(name, response_N, values_N)

    def _sum(self, name: str, response_N: Tensor, values_N: Tensor) -> None:
        values_N, ones_N = values_N.double(), torch.ones_like(values_N).double()
        if self.own_R is not None and name in OF_OWN_SAMPLES:
            own_N = self.own_R[response_N]
            values_N, ones_N = torch.where(own_N, values_N, 0.0), own_N.double()
        for store, addend in ((self.totals_R, values_N), (self.counts_R, ones_N)):
            if name not in store:
                store[name] = torch.zeros(self.responses, device=self.device, dtype=torch.float64)
            store[name].index_add_(0, response_N, addend)

    def reduce(self, ranks: Ranks) -> None:
        """Make the totals those of all ranks. Exact: each response was on one of them, and the others add zero."""
        if ranks.count == 1:
            return
        nothing_R = torch.zeros_like(self.importance_max_R)
        stores = (self.totals_R, self.counts_R)
        rows = [self.importance_max_R, *(store.get(name, nothing_R) for store in stores for name in NAMES)]
        self.importance_max_R, *sums = ranks.sum(torch.stack(rows))
        for store, values in zip(stores, (sums[: len(NAMES)], sums[len(NAMES) :]), strict=True):
            store.update(zip(NAMES, values, strict=True))
        for name in [name for name in NAMES if not self.counts_R[name].any()]:
            del self.totals_R[name], self.counts_R[name]

    def non_finite(self) -> list[int]:
        """Responses whose objective is NaN or infinite."""
        total_R = self.totals_R.get("objective")
        return [] if total_R is None else torch.nonzero(~torch.isfinite(total_R))[:, 0].tolist()

    def means(self) -> dict[str, Mean]:
        """Every mean of the step, with its spread over prompts where that says something."""
        means = {}
        for name in NAMES:
            if name not in self.totals_R or (self.own_R is not None and not self.counts_R[name].any()):
                continue
            total_R = self.totals_R[name]
            if name.startswith("reverse_kl"):
                means[name] = self._clustered(total_R, self.counts_R[name])
            else:
                total, count = torch.stack([total_R.sum(), self.counts_R[name].sum()]).tolist()
                means[name] = Mean(total, count)
        if self.sizes_R is not None and "reverse_kl/sampled" in means:
            total_R = torch.where(self.sizes_R > 0, self.totals_R["reverse_kl/sampled"], 0.0)
            means["reverse_kl/byte"] = self._clustered(total_R, self.sizes_R)
        if "importance/square" in means:
            square = means.pop("importance/square")
            mean = means["importance/mean"]
            share = mean.total**2 / (mean.count * square.total)  # Kish's effective sample size over N
            means["importance/effective_share"] = Mean(share * mean.count, mean.count)
        return means

    def _clustered(self, total_R: Tensor, count_R: Tensor) -> Mean:
        """The mean over tokens, and the spread of prompts around it."""
        total_P, count_P = (
            torch.zeros(self.prompts, device=self.device, dtype=torch.float64).index_add_(0, self.prompt_R, values_R)
            for values_R in (total_R, count_R)
        )
        total, count = total_R.sum(), count_R.sum()
        spread = (total_P - total / count * count_P).square().sum()
        total_, count_, spread_ = torch.stack([total, count, spread]).tolist()
        return Mean(total_, count_, spread_, clusters=int((count_P > 0).sum()))

    def by_teacher(self, names: Sequence[str]) -> dict[str, Mean]:
        """`teacher/NAME/reverse_kl/...` where several teachers scored the step. `names` [R]: who scored each."""
        return self._by("teacher", names, KL_NAMES)

    def by_source(self) -> dict[str, Mean]:
        """`source/NAME/...` where several wrote the step's responses, or another than the student."""
        return self._by("source", self.sources, BY_SOURCE) if self.own_R is not None else {}

    def by_task(self, names: Sequence[str]) -> dict[str, Mean]:
        """`task/NAME/reverse_kl/...` where prompts of several tasks were answered. `names` [R]: of which each is."""
        own = [name if source == STUDENT else "" for name, source in zip(names, self.sources, strict=True)]
        return self._by("task", own, KL_NAMES)

    def _by(self, what: str, names: Sequence[str], keys: Sequence[str]) -> dict[str, Mean]:
        several = sorted(set(names) - {""})
        means = {}
        for name in several if len(several) > 1 or what == "source" else ():
            mine_R = torch.tensor([one == name for one in names], device=self.device)
            for key in keys:
                if key in self.totals_R and (key not in OF_OWN_SAMPLES or what != "source" or name == STUDENT):
                    parts = (torch.where(mine_R, store[key], 0.0) for store in (self.totals_R, self.counts_R))
                    means[f"{what}/{name}/{key}"] = self._clustered(*parts)
        return means

    def maxima(self) -> dict[str, float]:
        if STUDENT not in self.sources:
            return {}
        return {"importance/max": self.importance_max_R.max().item()}
