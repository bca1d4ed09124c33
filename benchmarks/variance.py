"""Gradient variance of the estimator family: sampled token, top K of teacher or student with a sampled tail, and all.

    python benchmarks/variance.py [RECIPE] [KEY=VALUE ...] [--quick] [--batches 48 --prompts 16 --seed 0]

RECIPE (the demo's where none is given) names student and local teacher. Every batch is sampled anew from the
student; on each, every estimator of the family gives one gradient of the student's weights, through the code that
trains: `RemoteTeacher`, the binary route's bodies, `make_batch`, `distillation_loss`. `teacher-K` is the teacher's top
K at the rollout temperature T, `student-K` the sampler's, `rescale-K` the teacher's certified from log-probs at
temperature 1 (its uncertain positions masked).

    bytes    of bodies on the binary route for each trained token, both ways, the prompt's ids included
    noise    E |g - g_full|^2 on the same samples, relative to K = 0: what the sampled tail adds. Given the states,
             the terms of different tokens are uncorrelated, so this is the sum of their variances
    total    trace of the covariance of g over batches, relative to K = 0: noise, and that states differ
    bias     (g - g_full) along the mean full gradient, averaged over batches: in standard errors (z), and as a
             share of that gradient. z is beyond 4 for a biased estimator, once there are batches enough; what is
             below 1e-4 of the gradient is the rounding of float32 log-probs

One JSON line an estimator, then a table. Exit code 1 where an exact estimator is biased.

With `--coordinates N` the gradient is looked at through N of its entries, spread evenly over every weight: ratios of
traces are estimated, memory is not that of several gradients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.assemble.run import assemble
from limbeck.config.recipe import Recipe, load_recipe
from limbeck.config.shipped import shipped_recipe
from limbeck.config.teacher import LimbeckTeacherConfig
from limbeck.learners.batch import make_batch
from limbeck.learners.local import LocalLearner
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.objectives import Loss, ReverseKL, distillation_loss
from limbeck.records import Failure, Rollout, Scored, ScoreRequest, Scores, Support, TokenScores, TopKScores
from limbeck.seeding import derive_seed
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.remote import Method, Proof, RemoteTeacher
from limbeck.training.collect import collect
from limbeck.training.run import Run
from limbeck.training.run_folder import RunFolder
from limbeck.wire import binary
from limbeck.wire.binary import Result
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import Reply

FULL = "full"
SAMPLED = "sampled"
SUPPORTS = (1, 4, 20, 100)
RESCALED = 4  # the least K from which to rescale
MOST_ERRORS = 4.0  # standard errors
ROUNDING = 1e-4  # of the gradient


class InProcess:
    """The bodies of `limbeck serve` without the server. `bytes` counts them, both ways."""

    kind, acknowledges = "limbeck", True

    def __init__(self, lm: CausalLM) -> None:
        self.policy, self.bytes = LocalPolicy(lm), 0

    async def ask(
        self, pool: Pool, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False
    ) -> Reply:
        sent = binary.write([request])
        ((asked,), _) = binary.read_requests(sent, lambda temperature: temperature or 1.0)
        (scores,) = await self.policy.score([asked])
        if isinstance(scores, TopKScores):
            result = Result(scores.logprobs_of_sampled, scores.ids, scores.logprobs)
        else:
            assert isinstance(scores, TokenScores)
            result = Result(scores.logprobs)
        received = binary.write_answer([asked], [result], scores.temperature, "in process")
        self.bytes += len(sent) + len(received)
        return binary.read(received, [request])[0]

    async def identity(self, pool: Pool, url: str) -> str:
        return "in process"

    async def tokenize(self, pool: Pool, text: str) -> list[int]:
        raise NotImplementedError


@dataclass(frozen=True)
class Candidate:
    """One estimator: who is asked, and the loss that takes the answer."""

    teacher: LocalTeacher | RemoteTeacher
    loss: Loss

    def support(self, rollout: Rollout) -> Support:
        if self.loss.support != "student_top":
            return self.loss.support
        assert rollout.top_ids is not None
        return rollout.top_ids[:, : self.loss.size]

    def bytes(self, head: Head) -> float:
        """So far, on the wire; of the whole distribution per token, as hidden states in float32."""
        if isinstance(self.teacher, LocalTeacher):
            return 4.0 * head.weight_Vd.shape[1]
        dialect = self.teacher.client.dialect
        assert isinstance(dialect, InProcess)
        return float(dialect.bytes)


def estimators(teacher: LocalTeacher, supports: Sequence[int]) -> dict[str, Candidate]:
    """By name; every one gives the scores that the trainer would get."""
    vocabulary = teacher.head.vocabulary

    def served(method: Method, k: int = 1) -> RemoteTeacher:
        section = LimbeckTeacherConfig(url="http://in.process", max_rescale_dropped=1.0, top_logprobs=k)
        pool = Pool(section.urls, PoolSettings())
        client = RemoteClient("t", section, InProcess(teacher.lm), pool, vocabulary, vocabulary)
        return RemoteTeacher(client, Proof(method, teacher.info, acknowledges=True))

    made = {
        FULL: Candidate(teacher, Loss(ReverseKL())),
        SAMPLED: Candidate(served("native"), Loss(ReverseKL(), SAMPLED)),
    }
    for k in (k for k in supports if k <= vocabulary):
        made[f"teacher-{k}"] = Candidate(served("native"), Loss(ReverseKL(), k))
        made[f"student-{k}"] = Candidate(served("native"), Loss(ReverseKL(), "student_top", k=k))
        if k >= RESCALED:
            made[f"rescale-{k}"] = Candidate(served("rescale", k), Loss(ReverseKL(), k))
    return made


@dataclass
class Gradients:
    """Of one estimator, summed over the batches so far. Entries [P]."""

    total_P: Tensor
    squares: list[float] = field(default_factory=list)  # |g|^2 of each batch
    noises: list[float] = field(default_factory=list)  # |g - g_full|^2
    along: list[float] = field(default_factory=list)  # (g - g_full) . g_full of the other half of the batches
    masked: list[float] = field(default_factory=list)  # share of positions
    student: list[float] = field(default_factory=list)  # mass on the support, of the student

    def trace(self) -> float:
        """Unbiased trace of the covariance of g."""
        count = len(self.squares)
        return (sum(self.squares) - float(self.total_P.square().sum()) / count) / (count - 1)


def gradient(
    run: Run, student: CausalLM, samples: Sequence[Scored], one: Loss, stride: int
) -> tuple[Tensor, int, float]:
    """[P] every `stride`-th entry of the gradient of the step's loss, the tokens it was taken over, and their support.

    The last is the student's probability of what is on the support.
    """
    section = run.recipe.learner
    batch = make_batch(samples, "padded", section.micro_batch_tokens, student.device, heads_of(run))
    student.model.zero_grad(set_to_none=True)
    mass = 0.0
    for micro in batch.micro:
        layout = micro.layout
        hidden_Nd = student.hidden(layout.tokens_BL, layout.positions_BL).flatten(0, 1)[layout.predict_N]
        loss, measured = distillation_loss(
            one, batch.temperature, hidden_Nd, student.head(), micro.tokens, micro.teacher, batch.global_tokens
        )
        loss.backward()
        if measured.support_student is not None:
            mass += float(measured.support_student.sum()) / batch.global_tokens
    entries = [p.grad.flatten()[::stride] for p in student.model.parameters() if p.grad is not None]
    return torch.cat(entries).double(), int(batch.global_tokens), mass


async def sample(run: Run, seed: int, number: int, prompts: int) -> list[Rollout]:
    first = number * prompts % max(1, len(run.task.train) - prompts)
    given = run.task.train[first : first + prompts]
    collected = await collect(run, given, run.sampling(derive_seed(seed, "variance", number)), scored=False)
    return [rollout for rollout in collected.rollouts if rollout.trained.any()]


def heads_of(run: Run) -> Mapping[str, Head]:
    assert isinstance(run.teacher, LocalTeacher)
    return run.teacher.heads


def answered(scores: Sequence[Scores | Failure]) -> list[Scores]:
    failures = [score for score in scores if isinstance(score, Failure)]
    assert not failures, failures[0]
    return [score for score in scores if not isinstance(score, Failure)]


async def measure(recipe: Recipe, args: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        assembled = await assemble(recipe, RunFolder(Path(scratch)))
    run = assembled.run
    assert isinstance(run.teacher, LocalTeacher)
    assert isinstance(run.learner, LocalLearner)
    student = run.learner.lm
    student.model.eval()
    made = estimators(run.teacher, args.supports)
    run.student_top = max(candidate.loss.size for candidate in made.values())
    tokens = 0
    size = sum(p.numel() for p in student.model.parameters())
    stride = max(1, size // args.coordinates)
    sums: dict[str, Gradients] = {}
    full_mean: list[Tensor] = [torch.zeros(()), torch.zeros(())]  # sums over even and over odd batches
    kept: dict[str, list[Tensor]] = {name: [] for name in made}
    for number in range(args.batches):
        rollouts = await sample(run, args.seed, number, args.prompts)
        tokens += sum(int(r.trained.sum()) for r in rollouts)
        full_P: Tensor | None = None
        for name, candidate in made.items():
            unit = [run.view.see(rollout, candidate.support(rollout)).request for rollout in rollouts]
            scores = answered(await candidate.teacher.score(unit))
            samples = [Scored(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)]
            g_P, trained, mass = gradient(run, student, samples, candidate.loss, stride)
            full_P = g_P if full_P is None else full_P
            one = sums.setdefault(name, Gradients(torch.zeros_like(g_P)))
            one.total_P += g_P
            one.squares.append(float(g_P.square().sum()))
            one.noises.append(float((g_P - full_P).square().sum()))
            one.masked.append(1 - trained / sum(int(r.trained.sum()) for r in rollouts))
            one.student.append(mass)
            kept[name].append((g_P - full_P).float())
        half = number % 2
        full_mean[half] = full_mean[half] + full_P
        print(f"\rbatch {number + 1} of {args.batches}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    direction = [m / torch.linalg.vector_norm(m) for m in full_mean]
    norm = float(torch.linalg.vector_norm(full_mean[0] + full_mean[1])) / args.batches
    for name, rows in kept.items():
        # along a direction that these samples had no part in: the mean gradient of the other half
        sums[name].along = [float(d.double() @ direction[1 - i % 2]) for i, d in enumerate(rows)]
    head = run.teacher.head
    return [line(name, sums, norm, made[name].bytes(head) / (1 if name == FULL else tokens)) for name in made]


def line(name: str, sums: dict[str, Gradients], norm: float, size: float) -> dict[str, Any]:
    one, sampled = sums[name], sums[SAMPLED]
    along = torch.tensor(one.along, dtype=torch.float64)
    error = float(along.std() / len(along) ** 0.5)
    return {
        "estimator": name,
        "bytes": size,
        "support": sum(one.student) / len(one.student),
        "noise": sum(one.noises) / sum(sampled.noises),
        "total": one.trace() / sampled.trace(),
        "bias_z": float(along.mean()) / error if error > 0 else 0.0,
        "bias_share": float(along.mean()) / norm,
        "bias_share_error": error / norm,
        "masked": sum(one.masked) / len(one.masked),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="gradient variance of the estimator family")
    parser.add_argument("recipe", nargs="?", default=str(shipped_recipe("demo").path))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--quick", action="store_true", help="few batches: does it run, and is nothing far off?")
    parser.add_argument("--batches", type=int)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--supports", type=int, nargs="+", default=list(SUPPORTS), help="K of the estimators between")
    parser.add_argument("--coordinates", type=int, default=200_000)
    args = parser.parse_args()
    args.batches = args.batches or (8 if args.quick else 64)
    recipe = load_recipe(args.recipe, args.overrides)
    lines = asyncio.run(measure(recipe, args))
    shape = {"recipe": recipe.name, "temperature": recipe.rollout.temperature, "batches": args.batches,
             "responses": args.prompts}  # fmt: skip
    for one in lines:
        print(json.dumps({**shape, **{k: v if isinstance(v, str) else float(f"{v:.4g}") for k, v in one.items()}}))
    print(f"\n{'estimator':11} {'bytes':>6} {'support':>8} {'noise':>9} {'total':>6} {'bias / gradient':>19} "
          f"{'z':>5} {'masked':>7}")  # fmt: skip
    for one in lines:
        share = f"{one['bias_share']:+.2%} +- {one['bias_share_error']:.2%}"
        print(f"{one['estimator']:11} {one['bytes']:6.0f} {one['support']:8.2%} {one['noise']:9.4f} "
              f"{one['total']:6.3f} {share:>19} {one['bias_z']:5.1f} {one['masked']:7.2%}")  # fmt: skip
    return int(any(is_biased(one) for one in lines if not one["estimator"].startswith("rescale")))


def is_biased(one: dict[str, Any]) -> bool:
    return bool(abs(one["bias_z"]) > MOST_ERRORS and abs(one["bias_share"]) > ROUNDING)


if __name__ == "__main__":
    sys.exit(main())
