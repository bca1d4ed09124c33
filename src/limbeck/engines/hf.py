"""Engine `hf`: sampling in this process, with the very parameters the learner trains.

A prompt is computed once for all of its samples, finished rows leave the batch, and the log-prob of
every sampled token is that of the distribution it was drawn from.

Shape legend: P prompts, B rows (responses being decoded), L prompt length, d width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.config.engine import HFEngineConfig
from limbeck.errors import EngineError
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.models.decode import Decoder, Rows
from limbeck.models.equivalence import fast_decode
from limbeck.models.sampling import draw, uniforms
from limbeck.protocols import Policy
from limbeck.records import Failure, Prompt, Rollout, Sampling

logger = logging.getLogger("limbeck")

LEAVE_SHARE = 0.25  # rows leave when this share has finished: fewer copies of the cache
SYNC_EVERY = {"cpu": 1}  # tokens between looks at who has finished; a look stalls an accelerator
SYNC_ELSEWHERE = 16


class InProcessEngine:
    """Samples from `lm`, whose weights it shares: `load` only takes note of their version."""

    def __init__(self, lm: CausalLM, section: HFEngineConfig, autocast: torch.dtype | None = None) -> None:
        self.lm, self.max_rows, self.autocast = lm, section.max_rows, autocast
        self.version = 0
        self.decoder = Decoder(lm, why="bfloat16 autocast") if autocast else fast_decode(lm)
        why = self.decoder.why
        logger.info("%s decodes %s", lm.name, f"through transformers: {why}" if why else "by the fast decode")

    async def load(self, policy: Policy) -> None:
        self.version = policy.version

    async def close(self) -> None:
        """Nothing to release: the weights are the learner's."""

    async def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int = 1
    ) -> list[Rollout | Failure]:
        """See `protocols.Engine`. Raises `EngineError` where the model's logits are not finite."""
        rollouts: list[Rollout | None] = [None] * (len(prompts) * samples_per_prompt)
        was_training = self.lm.model.training and self.decoder.parts is None  # fast decode runs no modules
        if was_training:
            self.lm.model.eval()  # no dropout while sampling
        try:
            with torch.inference_mode(), precision(self.lm, self.autocast):
                for rows in self._groups(prompts, samples_per_prompt):
                    for index, rollout in self._decode(prompts, rows, samples_per_prompt, sampling):
                        rollouts[index] = rollout
        finally:
            if was_training:
                self.lm.model.train()
        done: list[Rollout | Failure] = [rollout for rollout in rollouts if rollout is not None]
        assert len(done) == len(rollouts)
        return done

    def _groups(self, prompts: Sequence[Prompt], samples: int) -> Iterator[list[tuple[int, list[int]]]]:
        """(prompt, its sample numbers) decoded together: at most `max_rows` rows, like lengths together."""
        group: list[tuple[int, list[int]]] = []
        room = self.max_rows
        for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids)):
            numbers = list(range(samples))
            while numbers:
                if room == 0 or (group and len(numbers) > room and samples <= self.max_rows):
                    yield group
                    group, room = [], self.max_rows
                group.append((index, numbers[:room]))
                numbers, room = numbers[room:], room - len(group[-1][1])
        if group:
            yield group

    def _decode(
        self, prompts: Sequence[Prompt], rows: list[tuple[int, list[int]]], samples: int, sampling: Sampling
    ) -> Iterator[tuple[int, Rollout]]:
        """Rollouts of one group, each with its place in the answer."""
        decoding = _Decoding(self.lm, [prompts[i] for i, _ in rows], [n for _, n in rows], sampling, self.decoder)
        tokens, logprobs = decoding.run()
        row = 0
        for index, numbers in rows:
            for number in numbers:
                yield (
                    index * samples + number,
                    self._rollout(prompts[index], number, tokens[row], logprobs[row], sampling),
                )
                row += 1

    def _rollout(
        self, prompt: Prompt, number: int, tokens: np.ndarray, logprobs: np.ndarray, sampling: Sampling
    ) -> Rollout:
        """Cut a row after its first stop token. Raises `EngineError` for a log-prob that is not finite."""
        stops = np.flatnonzero(np.isin(tokens, sampling.stop_ids))
        length = int(stops[0]) + 1 if len(stops) else len(tokens)
        logprobs = logprobs[:length]
        if not np.isfinite(logprobs).all():
            raise EngineError(
                f"sampling prompt {prompt.id!r}: log-prob {logprobs[~np.isfinite(logprobs)][0]} at policy version "
                f"{self.version}. The student's logits are not finite: look at the last steps' gradient norm "
                "and lower learner.lr."
            )
        prefix = len(prompt.token_ids)
        return Rollout(
            prompt=prompt,
            sample=number,
            token_ids=np.concatenate([np.asarray(prompt.token_ids, dtype=np.int64), tokens[:length]]),
            trained=np.arange(prefix + length) >= prefix,
            behaviour_logprobs=logprobs.astype(np.float32),
            policy_version=self.version,
            finish="stop" if len(stops) else "length",
            sampling=sampling,
        )


@dataclass
class _Decoding:
    """One batch on its way from prompts to responses. Sampled rows stand prompt by prompt."""

    lm: CausalLM
    prompts: list[Prompt]
    numbers: list[list[int]]  # sample numbers of each prompt
    sampling: Sampling
    decoder: Decoder

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """[rows, <= max_tokens] token ids and their log-probs; what follows a stop token is noise."""
        sampling, device, head = self.sampling, self.lm.device, self.lm.head()
        hidden_Bd, responses = self._start()
        rows = len(hidden_Bd)
        dice_BT = torch.from_numpy(
            np.stack([
                uniforms(sampling.seed, prompt.id, number, sampling.max_tokens)
                for prompt, numbers in zip(self.prompts, self.numbers, strict=True)
                for number in numbers
            ])
        ).to(device)  # fmt: skip
        stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
        sync_every = SYNC_EVERY.get(device.type, SYNC_ELSEWHERE)
        tokens_BT = torch.zeros(rows, sampling.max_tokens, dtype=torch.int64, device=device)
        logprobs_BT = torch.zeros(rows, sampling.max_tokens, device=device)
        row_B = torch.arange(rows, device=device)
        finished_B = torch.zeros(rows, dtype=torch.bool, device=device)
        for step in range(sampling.max_tokens):
            token_B, logprob_B = draw(head.logits(hidden_Bd), sampling, dice_BT[row_B, step])
            tokens_BT[row_B, step], logprobs_BT[row_B, step] = token_B, logprob_B.float()
            finished_B |= torch.isin(token_B, stop_ids)
            if step + 1 == sampling.max_tokens:
                break
            if step % sync_every == 0:
                running = torch.nonzero(~finished_B)[:, 0]
                if len(running) == 0:
                    tokens_BT, logprobs_BT = tokens_BT[:, : step + 1], logprobs_BT[:, : step + 1]
                    break
                if len(running) <= (1 - LEAVE_SHARE) * len(row_B):
                    row_B, token_B, finished_B = row_B[running], token_B[running], finished_B[running]
                    responses.keep(running)
            hidden_Bd = responses.forward(token_B)
        return tokens_BT.cpu().numpy(), logprobs_BT.cpu().numpy()

    def _start(self) -> tuple[Tensor, Rows]:
        """Each prompt computed once, its last state repeated for each of its samples: [B, d]."""
        prompt_B = torch.tensor([p for p, n in enumerate(self.numbers) for _ in n], device=self.lm.device)
        prompts = [prompt.token_ids for prompt in self.prompts]
        return self.decoder.start(prompts, prompt_B, self.sampling.max_tokens)
