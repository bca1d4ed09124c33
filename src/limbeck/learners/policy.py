"""A published policy: a lease on the student's weights of one version.

    policy = await learner.publish()
    policy.save(folder, "bfloat16")      adapters merged in, tensor by tensor
    kept = policy.hold()                 a copy that no update reaches; with LoRA of the adapter alone

Nothing is copied to publish. The learner's next update ends the lease: from then on reading raises.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.config.student import StudentConfig
from limbeck.errors import ModelError, RunError, StalePolicyError
from limbeck.learners.adapters import LoraAdapters
from limbeck.learners.process_group import Ranks
from limbeck.learners.saving import write_model
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.models.head import Head
from limbeck.models.layout import lay_out, plan
from limbeck.models.loading import load_model
from limbeck.models.scoring import refusal, score_hidden
from limbeck.models.shards import inside, like, rows_here, standing_in, whole
from limbeck.models.states import LocalStates
from limbeck.records import (
    Adapter,
    Failure,
    HiddenScores,
    ScoreRequest,
    Scores,
    TokenScores,
    TopKScores,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCORER = "student"
WEIGHTS = threading.RLock()  # a checkpoint is written in a thread of its own: no weights are exchanged under it
DISPLACED: dict[nn.Parameter, Tensor] = {}  # live values, while held ones are in their place


@dataclass(eq=False)
class Lease:
    """Whether the weights are still those of the version that was published."""

    version: int
    replaced_by: int | None = None

    def check(self) -> None:
        """Raises `StalePolicyError` once it has ended."""
        if self.replaced_by is not None:
            raise StalePolicyError(
                f"the policy of version {self.version} was read after its weights became those of version "
                f"{self.replaced_by}. Publish again, or take policy.hold() before the update."
            )


class LocalPolicy:
    """The student's weights in this process. Without a `lease` nobody changes them.

    `budget` bounds the tokens of one forward pass of `score`. `held` are values of some parameters that take
    the place of the model's own.
    """

    def __init__(
        self,
        lm: CausalLM,
        version: int = 0,
        adapters: LoraAdapters | None = None,
        *,
        budget: int = 8192,
        autocast: torch.dtype | None = None,
        lease: Lease | None = None,
        held: Mapping[nn.Parameter, Tensor] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.lm, self.version, self.adapters, self.budget, self.autocast = lm, version, adapters, budget, autocast
        self.info = lm.info()
        self.adapter: Adapter | None = None if adapters is None else adapters.record
        self._lease = lease or Lease(version)
        self.ranks = ranks or Ranks()
        self._held = dict(held or {})
        self._fingerprint: str | None = None  # of the head, once it was asked for

    def tensors(self, dtype: str = "float32") -> Iterator[tuple[str, Tensor]]:
        """The weights under their Hugging Face names, adapters merged in, one at a time.

        A model whose files hold its tensors in another arrangement, such as an expert at a time, comes all at once.
        The first of several ranks has them; the others take part, and are given none. Raises `StalePolicyError`.
        """
        with self.ranks.guarded("publishing"):
            for named in self._arranged(torch_dtype(dtype)):
                if self.ranks.is_first:
                    yield named

    def _arranged(self, target: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        merged = self._merged(target)
        if getattr(self.lm.model, "_weight_conversions", None):
            from transformers.core_model_loading import revert_weight_conversion

            merged = iter(revert_weight_conversion(self.lm.model, dict(merged)).items())
        yield from merged

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors as they lie here, without what adapters add, under the names they are published by."""
        if self.adapters is None:
            return iter(self.lm.model.state_dict().items())
        return ((name, tensor) for name, tensor, _ in self.adapters.base())

    def _merged(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        iterator = _state(self.lm, dtype) if self.adapters is None else self.adapters.merged()
        while True:
            self._lease.check()
            with self._in_place():  # for one tensor, and never while somebody else runs
                found = next(iterator, None)
            if found is None:
                return
            name, tensor = found
            yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """What training changes, under the names that the parameters have in the model, in the dtype they are held in.

        All weights, or the adapter alone; on every rank. It may be the memory itself. Raises `StalePolicyError`.
        """
        with self.ranks.guarded("publishing"):
            for name, parameter in self.lm.model.named_parameters():
                if parameter.requires_grad:
                    self._lease.check()
                    yield name, whole(self._held.get(parameter, parameter.data))

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """An ordinary Hugging Face model folder with its tokenizer, adapters merged in. Raises `StalePolicyError`."""
        self._lease.check()
        tensors = self.tensors(dtype)
        if getattr(self.lm.model, "_weight_conversions", None):
            found = dict(tensors)
            shapes, tensors = {name: tensor.shape for name, tensor in found.items()}, iter(found.items())
        else:
            shapes = {name: tensor.shape for name, tensor in self._named()}
        write_model(self.lm, shapes, tensors, folder, torch_dtype(dtype), self.ranks)

    def save_adapter(self, folder: Path, dtype: str = "float32") -> None:
        """The adapter alone, in peft's format. Raises `StalePolicyError`, and `ModelError` where there is none."""
        self._lease.check()
        if self.adapters is None:
            raise ModelError(f"{self.lm.name} is trained in its full weights: it has no adapter to save.")
        with self._in_place():
            self.adapters.save(folder, self.ranks, torch_dtype(dtype))

    def hold(self) -> LocalPolicy:
        """A copy that no update reaches. Raises `StalePolicyError`."""
        self._lease.check()
        parameters = self.adapters.parameters().values() if self.adapters else self.lm.model.parameters()
        with self._in_place():
            held = {parameter: parameter.detach().clone() for parameter in parameters}
        return LocalPolicy(
            self.lm,
            self.version,
            self.adapters,
            budget=self.budget,
            autocast=self.autocast,
            held=held,
            ranks=self.ranks,
        )

    def read(self, folder: Path) -> LocalPolicy:
        """A copy with the weights that `save` wrote to `folder`, or `save_adapter` where there is an adapter.

        Raises `RunError` where there is no such folder or it is of another adapter, and `ModelError`.
        """
        if not folder.is_dir():
            raise RunError(f"{folder} is missing: it held the weights of version {self.version}.")
        if self.adapters is not None:
            copied = self.hold()
            with copied._in_place():
                self.adapters.load(folder)
            return copied
        source = StudentConfig.model_validate({"model": str(folder), "dtype": self.info.dtype})
        theirs = dict(load_model(source, self.lm.device).model.named_parameters())
        held = {
            parameter: like(parameter, theirs[name].data[rows_here(parameter)].clone())
            for name, parameter in self.lm.model.named_parameters()
        }
        return LocalPolicy(
            self.lm, self.version, budget=self.budget, autocast=self.autocast, held=held, ranks=self.ranks
        )

    def head(self) -> Head:
        """The output head of these weights; of held ones it stays what it is."""
        with self._in_place():
            return self.lm.head().detach()

    @contextmanager
    def _in_place(self, to_run: bool = False) -> Iterator[None]:
        """The held values where the live ones lie, which come back untouched."""
        whole_ones = {parameter: value for parameter, value in self._held.items() if not isinstance(parameter, DTensor)}
        sharded: dict[nn.Parameter, Tensor] = {p: value for p, value in self._held.items() if p not in whole_ones}
        with WEIGHTS:
            _put_back()
            try:
                for parameter, value in whole_ones.items():
                    DISPLACED[parameter] = parameter.data
                    parameter.data = value
                with standing_in(sharded, to_run):
                    yield
            finally:
                _put_back()

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """Log-probs under these weights, each at its request's temperature. Raises `StalePolicyError`.

        What a request cannot be given for is a `Failure`: ids that the model does not have, more tokens than its
        context. Several ranks compute the same, each for itself.
        """
        self._lease.check()
        answers: list[Scores | Failure | None] = [refusal(self.lm, request) for request in unit]
        asked = [i for i, answer in enumerate(answers) if answer is None]
        was_training = self.lm.model.training
        self.lm.model.eval()
        try:
            with self._in_place(to_run=True), torch.no_grad(), self.ranks.guarded("scoring"):
                for part in plan([len(unit[i].token_ids) for i in asked], self.budget, "padded"):
                    places = [asked[i] for i in part]
                    scored = inside(self.lm.model, self._score_batch, [unit[i] for i in places])
                    for i, scores in zip(places, scored, strict=True):
                        answers[i] = scores
        finally:
            self.lm.model.train(was_training)
        return [answer for answer in answers if answer is not None]

    def _score_batch(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        batch = lay_out(requests, "padded").to(self.lm.device)
        counts = [int(request.scored.sum()) for request in requests]
        with precision(self.lm, self.autocast):
            hidden_Nd = self.lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N)
            pairs = zip(requests, torch.split(hidden_Nd, counts), strict=True)
            return [self._answer(request, hidden_Sd) for request, hidden_Sd in pairs]

    def _answer(self, request: ScoreRequest, hidden_Sd: Tensor) -> Scores:
        head, support = self.lm.head(), request.support
        if isinstance(support, str) and support == "full":
            self._fingerprint = self._fingerprint or head.fingerprint()
            return HiddenScores(SCORER, LocalStates(hidden_Sd), self._fingerprint, self.info.natural_temperature)
        ids_S = torch.from_numpy(request.scored_ids).to(hidden_Sd.device)
        given = torch.tensor(support) if isinstance(support, np.ndarray) else support
        scored = score_hidden(head, hidden_Sd, ids_S, request.temperature, given)
        logprobs_S = scored.logprobs_S.float().cpu().numpy()
        if scored.top_ids_SK is None or scored.top_logprobs_SK is None:
            return TokenScores(SCORER, scored.temperature, logprobs_S)
        return TopKScores(
            SCORER,
            scored.temperature,
            scored.top_ids_SK.cpu().numpy(),
            scored.top_logprobs_SK.float().cpu().numpy(),
            logprobs_S,
        )


def _put_back() -> None:
    """The live values. A signal can end this half-way: then whoever reads weights next does the rest."""
    for parameter, value in DISPLACED.items():
        parameter.data = value
    DISPLACED.clear()


def _state(lm: CausalLM, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in lm.model.state_dict().items():  # asked for at the first tensor, with the held values in place
        # rows travel between ranks in `dtype`
        yield name, whole(tensor.to(dtype)) if isinstance(tensor, DTensor) else tensor


def torch_dtype(name: str) -> torch.dtype:
    """Raises `ModelError` for a dtype that no weights are written in."""
    if name not in DTYPES:
        raise ModelError(f"weights cannot be written as {name!r}, expected one of {', '.join(DTYPES)}.")
    return DTYPES[name]
