"""All responses of a tiny student to one prompt, seen by a tiny teacher with another tokenizer.

The student is a table of logits, one row a prefix of its tokens, and ends after some tokens at most; the teacher is a
table too, made row by row as it is asked. Each response goes the way of a real one, view, batch and loss, and its
gradient is weighted by its probability, so every expectation is exact.

Shape legend: P prefixes, B responses, N tokens of all of them, G groups, V the student's vocabulary.
"""

# ruff: noqa: N802 (shape suffixes of properties)
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from limbeck.config.objective import ReverseKLConfig
from limbeck.learners.batch import MicroBatch, make_batch
from limbeck.objectives import Head, distillation_loss, loss_of
from limbeck.records import Groups, Key, Prompt, Sampled, Sampling, Scored, ScoreRequest, TokenScores, View, single_turn
from limbeck.teacher_views.retokenized import RetokenizedView
from limbeck.teacher_views.spelling import Speller

PROMPT = "a"
PAIRS = {  # tokens of the student, tokens of the teacher
    "coarse": (["ab", "ba"], []),
    "fine": ([], ["ab"]),
    "crossing": (["ab"], ["ba"]),
    "one tokenizer": (["ab"], ["ab"]),
    "long": ([], ["ab", "aba", "abab"]),
}


@cache
def tokenizer(longer: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Over "a" and "b", with longer tokens, each made of one before it and a character."""
    vocab = {name: i for i, name in enumerate(["<eos>", "a", "b", *longer])}
    backend = Tokenizer(models.BPE(vocab, [(name[:-1], name[-1]) for name in longer]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@dataclass(frozen=True, eq=False)
class World:
    """Everything that a student can say in at most `length` tokens and an end, and what a teacher makes of it."""

    student: PreTrainedTokenizerFast
    teacher: PreTrainedTokenizerFast
    seed: int = 0
    length: int = 3

    @cached_property
    def view(self) -> RetokenizedView:
        def prompts(prompt: Prompt) -> Sequence[int]:
            ids: list[int] = self.teacher(prompt.text)["input_ids"]
            return ids

        return RetokenizedView(Speller(self.student, [0]), Speller(self.teacher), prompts)

    @cached_property
    def responses(self) -> list[tuple[int, ...]]:
        others = range(1, len(self.student))
        return [(*y, 0) for n in range(self.length + 1) for y in itertools.product(others, repeat=n)]

    @cached_property
    def number(self) -> dict[tuple[int, ...], int]:
        """Of each prefix."""
        return {y: i for i, y in enumerate(dict.fromkeys(y[:t] for y in self.responses for t in range(len(y))))}

    @cached_property
    def prefix_N(self) -> Tensor:
        return torch.tensor([self.number[y[:t]] for y in self.responses for t in range(len(y))])

    @cached_property
    def sampled_N(self) -> Tensor:
        return torch.tensor([token for y in self.responses for token in y])

    @cached_property
    def sequence_N(self) -> Tensor:
        return torch.tensor([b for b, y in enumerate(self.responses) for _ in y])

    def table(self, seed: int, scale: float = 1.0) -> Tensor:
        """[P, V] logits of a student, for which the end is certain after `length` tokens."""
        generator = torch.Generator().manual_seed(seed)
        z_PV = scale * torch.randn(len(self.number), len(self.student), generator=generator, dtype=torch.float64)
        last = [i for prefix, i in self.number.items() if len(prefix) == self.length]
        z_PV[last, 1:] = -200.0
        return z_PV

    def logq(self, ids: Sequence[int], scored: Sequence[bool]) -> list[float]:
        """The teacher's log-probs of its tokens, from a row of logits for each of its prefixes."""
        found = []
        for t, wanted in enumerate(scored):
            if wanted:
                code = hash((self.seed, *(int(i) for i in ids[:t]))) % 2**31
                row = torch.randn(len(self.teacher), generator=torch.Generator().manual_seed(code), dtype=torch.float64)
                found.append(float(torch.log_softmax(row, 0)[int(ids[t])]))
        return found

    @cached_property
    def views(self) -> list[tuple[View, Groups, TokenScores]]:
        found = []
        for b, y in enumerate(self.responses):
            view = self.view.see(self._rollout(b, y, np.zeros(len(y), np.float32)), "sampled")
            assert isinstance(view, View)
            assert view.groups is not None
            request: ScoreRequest = view.request
            logq = np.array(self.logq(request.token_ids.tolist(), request.scored.tolist()))
            found.append((view, view.groups, TokenScores("teacher", 1.0, logq)))
        return found

    def _rollout(self, b: int, y: tuple[int, ...], logprobs: np.ndarray) -> object:
        prompt = Prompt(f"p{b}", tuple(self.student(PROMPT)["input_ids"]), text=PROMPT)
        sampled = Sampled(np.array(y, dtype=np.int64), logprobs, "stop", 0)
        return single_turn(prompt, Key(f"p{b}"), sampled, Sampling(1.0, self.length + 1))

    @cached_property
    def logq_B(self) -> Tensor:
        """log Q of the teacher's own tokens of each response's text."""
        return torch.tensor([scores.logprobs.sum() for _, _, scores in self.views], dtype=torch.float64)

    def logp_N(self, z_PV: Tensor) -> Tensor:
        return torch.log_softmax(z_PV, dim=-1)[self.prefix_N, self.sampled_N]

    def logp_B(self, z_PV: Tensor) -> Tensor:
        return torch.zeros(len(self.responses), dtype=torch.float64).index_add(0, self.sequence_N, self.logp_N(z_PV))

    def objective(self, z_PV: Tensor) -> Tensor:
        """J = E log P(y) - log Q(the teacher's tokens of y's text)."""
        logp_B = self.logp_B(z_PV)
        return (logp_B.exp() * (logp_B - self.logq_B)).sum()

    def micro_batch(self, mu_PV: Tensor) -> MicroBatch:
        """All responses as the learner has them, sampled by the policy of `mu_PV`."""
        logmu_N = self.logp_N(mu_PV).numpy()
        samples = []
        for b, (y, (_, groups, scores)) in enumerate(zip(self.responses, self.views, strict=True)):
            rollout = self._rollout(b, y, logmu_N[(self.sequence_N == b).numpy()])
            samples.append(Scored(rollout, scores, groups=groups))  # type: ignore[arg-type]
        batch = make_batch(samples, "padded", 10**6, torch.device("cpu"), vocabulary=len(self.student))
        (micro,) = batch.micro
        return micro

    def expected_gradient(
        self, z_PV: Tensor, discount: float, mu_PV: Tensor | None = None, cap: float = 1e30
    ) -> Tensor:
        """[P, V] of the loss, over responses sampled by the policy of `mu_PV`, the student's own where absent."""
        mu_PV = z_PV if mu_PV is None else mu_PV
        micro = self.micro_batch(mu_PV)
        place_N = torch.cat([torch.nonzero(self.sequence_N == b)[:, 0] for b in micro.members])  # by length there
        hidden_NV = z_PV[self.prefix_N[place_N]].clone().requires_grad_()
        objective = loss_of(ReverseKLConfig(support="sampled", discount=discount, importance_cap=cap))
        head = Head(torch.eye(len(self.student), dtype=torch.float64))
        loss, _ = distillation_loss(objective, 1.0, hidden_NV, head, micro.tokens, micro.teacher, 1.0)
        (grad_NV,) = torch.autograd.grad(loss, hidden_NV)
        weighted_NV = self.logp_B(mu_PV).exp()[self.sequence_N[place_N], None] * grad_NV
        return torch.zeros_like(z_PV).index_add(0, self.prefix_N[place_N], weighted_NV)


@cache
def world(pair: str, seed: int = 0, length: int = 3) -> World:
    ours, theirs = PAIRS[pair]
    return World(tokenizer(tuple(ours)), tokenizer(tuple(theirs)), seed, length)
