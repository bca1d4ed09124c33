"""Engine `hf`: sampling in this process, with the very parameters the learner trains, or with a copy of its own.

A prefix is computed once for all of its samples, finished rows leave the batch, and the log-prob of every
sampled token is that of the student's whole distribution at the temperature, whatever top_k, top_p and min_p cut.

Shape legend: B rows (responses being decoded), T tokens of a response, K top tokens, d width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limbeck.config.engine import HFEngineConfig
from limbeck.errors import EngineError
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.models.decode import Decoder, Rows
from limbeck.models.equivalence import fast_decode
from limbeck.models.proofs import prove_decoding
from limbeck.models.sampling import draw
from limbeck.protocols import Policy
from limbeck.records import Failure, Sampled, SampleRequest, Sampling
from limbeck.seeding import uniforms

logger = logging.getLogger("limbeck")

LEAVE_SHARE = 0.25  # rows leave when this share has finished: fewer copies of the cache
SYNC_EVERY = {"cpu": 1}  # tokens between looks at who has finished; a look stalls an accelerator
SYNC_ELSEWHERE = 16


class InProcessEngine:
    """Samples from `lm`.

    With `shared`, its weights are the learner's own and `load` only takes note of their version; otherwise `load`
    copies the policy's weights into it, and keeps no policy. Raises `ModelError` for a model that cannot be decoded
    with a cache.
    """

    def __init__(
        self, lm: CausalLM, section: HFEngineConfig, autocast: torch.dtype | None = None, shared: bool = True
    ) -> None:
        self.lm, self.autocast, self.shared = lm, autocast, shared
        self.max_rows: int | None = section.max_rows
        self.version: int | None = None  # of the weights; before the first `load` there are none to sample from
        self.decoder = fast_decode(lm, autocast)
        why = self.decoder.why
        if why:
            prove_decoding(lm)
        logger.info("%s decodes %s", lm.name, f"through transformers: {why}" if why else "by the fast decode")

    async def load(self, policy: Policy) -> None:
        """Raises `EngineError` for weights of other names or shapes."""
        if not self.shared:
            self._copy(policy)
        self.version = policy.version

    def _copy(self, policy: Policy) -> None:
        ours = dict(self.lm.model.state_dict())
        theirs = set()
        with torch.no_grad():
            for name, tensor in policy.tensors():
                if name not in ours or ours[name].shape != tensor.shape:
                    raise EngineError(
                        f"engine hf: the policy has a weight {name!r} of shape {tuple(tensor.shape)}, the student "
                        f"{'none of that name' if name not in ours else f'one of {tuple(ours[name].shape)}'}. The "
                        "learner must publish the student's own weights under their Hugging Face names."
                    )
                ours[name].copy_(tensor)
                theirs.add(name)
        tied = {id_.data_ptr() for name, id_ in ours.items() if name in theirs}
        if missing := [name for name, tensor in ours.items() if tensor.data_ptr() not in tied]:
            raise EngineError(f"engine hf: the policy has no weight {missing[0]!r}, and {len(missing) - 1} more")

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """See `protocols.Engine`; the requests of a unit share their sampling but for `max_tokens`.

        Raises `EngineError` where the model's logits are not finite.
        """
        version = self.version
        assert version is not None, "an engine samples after `load`"
        was_training = self.lm.model.training and self.decoder.parts is None  # fast decode runs no modules
        if was_training:
            self.lm.model.eval()  # no dropout while sampling
        try:
            with torch.inference_mode(), precision(self.lm, None if self.decoder.parts else self.autocast):
                decoded = _Decoding(self.lm, unit, self.decoder).run()
        finally:
            if was_training:
                self.lm.model.train()
        return [_sampled(request, *row, version) for request, row in zip(unit, decoded, strict=True)]


def _sampled(
    request: SampleRequest, tokens: np.ndarray, logprobs: np.ndarray, top_ids: np.ndarray | None, version: int
) -> Sampled:
    """Cut a row at its limit and after its first stop token. Raises `EngineError` for a log-prob that is not finite."""
    tokens = tokens[: request.sampling.max_tokens]
    stops = np.flatnonzero(np.isin(tokens, request.sampling.stop_ids))
    length = int(stops[0]) + 1 if len(stops) else len(tokens)
    logprobs = logprobs[:length]
    if not np.isfinite(logprobs).all():
        raise EngineError(
            f"sampling prompt {request.key.prompt_id!r}: log-prob {logprobs[~np.isfinite(logprobs)][0]} at policy "
            f"version {version}. The student's logits are not finite: look at the last steps' gradient norm and lower "
            "learner.lr."
        )
    return Sampled(
        token_ids=tokens[:length],
        logprobs=logprobs.astype(np.float32),
        finish="stop" if len(stops) else "length",
        version=version,
        top_ids=None if top_ids is None else top_ids[:length],
    )


@dataclass
class _Decoding:
    """One unit on its way from prefixes to responses. Requests of one prefix stand together, and compute it once."""

    lm: CausalLM
    unit: Sequence[SampleRequest]
    decoder: Decoder

    def run(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Of each request [<= max_tokens] token ids, log-probs and top ids; what follows a stop token is noise."""
        sampling, device, head = self._sampling(), self.lm.device, self.lm.head()
        top = min(max(request.top for request in self.unit), head.vocabulary)
        hidden_Bd, responses = self._start(sampling.max_tokens)
        rows = len(hidden_Bd)
        uniform_BT = torch.from_numpy(
            np.stack([uniforms(sampling.seed, request.key, sampling.max_tokens) for request in self.unit])
        ).to(device)
        stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
        sync_every = SYNC_EVERY.get(device.type, SYNC_ELSEWHERE)
        tokens_BT = torch.zeros(rows, sampling.max_tokens, dtype=torch.int64, device=device)
        logprobs_BT = torch.zeros(rows, sampling.max_tokens, device=device)
        top_BTK = torch.zeros(rows, sampling.max_tokens, top, dtype=torch.int64, device=device)
        row_B = torch.arange(rows, device=device)
        limit_B = torch.tensor([request.sampling.max_tokens for request in self.unit], device=device)
        ends = {
            request.sampling.max_tokens for request in self.unit
        }  # rows leave there: a longer one may not be possible
        finished_B = torch.zeros(rows, dtype=torch.bool, device=device)
        for step in range(sampling.max_tokens):
            with torch.autocast(device.type, enabled=False):  # in what the learner computes them in
                logits_BV = head.logits(hidden_Bd)
            if top:
                top_BTK[row_B, step] = logits_BV.topk(top, dim=-1).indices
            token_B, logprob_B = draw(logits_BV, sampling, uniform_BT[row_B, step])
            tokens_BT[row_B, step], logprobs_BT[row_B, step] = token_B, logprob_B.float()
            finished_B |= torch.isin(token_B, stop_ids)
            if step + 1 in ends:
                finished_B |= limit_B == step + 1
            if step + 1 == sampling.max_tokens:
                break
            if step % sync_every == 0 or step + 1 in ends:
                running = torch.nonzero(~finished_B)[:, 0]
                if len(running) == 0:
                    tokens_BT, logprobs_BT = tokens_BT[:, : step + 1], logprobs_BT[:, : step + 1]
                    break
                if len(running) <= (1 - LEAVE_SHARE) * len(row_B) or step + 1 in ends:
                    row_B, token_B, finished_B = row_B[running], token_B[running], finished_B[running]
                    limit_B = limit_B[running]
                    responses.keep(running)
            hidden_Bd = responses.forward(token_B)
        tokens, logprobs, tops = tokens_BT.cpu().numpy(), logprobs_BT.cpu().numpy(), top_BTK.cpu().numpy()
        return [
            (tokens[row], logprobs[row], tops[row, : len(tokens[row]), : request.top] if request.top else None)
            for row, request in enumerate(self.unit)
        ]

    def _sampling(self) -> Sampling:
        """What all share, with the longest turn's `max_tokens`."""
        most = max(request.sampling.max_tokens for request in self.unit)
        sampling, *others = {replace(request.sampling, max_tokens=most) for request in self.unit}
        if others:
            raise ValueError("the requests of a unit have different sampling settings; give each its own unit")
        return sampling

    def _start(self, reserve: int) -> tuple[Tensor, Rows]:
        """Each prefix computed once, its last state repeated for each of its requests: [B, d]."""
        prefixes: list[tuple[int, ...]] = []
        owner = []
        for request in self.unit:
            ids = tuple(request.token_ids.tolist())
            if not prefixes or prefixes[-1] != ids:
                prefixes.append(ids)
            owner.append(len(prefixes) - 1)
        return self.decoder.start(prefixes, torch.tensor(owner, device=self.lm.device), reserve)
