"""Seconds and memory of the distillation loss, forward and backward, against materialised logits.

    python benchmarks/loss.py [--quick] [--tokens 4096 --vocabulary 49152 --width 576 --teacher-width 576]
    python benchmarks/loss.py --large          8192 tokens, a vocabulary of 151936, width 896: does it fit in 2 GB?
    python benchmarks/loss.py --scaling        seconds against tokens and against vocabulary

Each variant runs in a process of its own, round after round in turn (a busy machine then slows all
alike; only ratios within one run mean anything). A round is one forward and backward pass from hidden
states to the gradients of hidden states and head, the teacher's logits included. Memory is the process's
peak resident set during the pass minus what was resident before it, with inputs in place: the weight's
gradient counts as extra. One JSON line per variant, then one with the ratios to the materialised loss.

Values are checked: the exact variants must agree with a plain float64 loop to 1e-4, estimates
(`sampled`, `top-20`) must lie within five standard errors of it. Exit code 1 where they do not.

Shape legend: N tokens, V vocabulary, d hidden width, D the teacher's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MB = 2**20
TEMPERATURE = 0.8
CHUNKS_MB = (48, 96, 128)
SAMPLED_CHUNK_MB = 96
VARIANTS = (
    "materialised",
    *(f"limbeck-full-{chunk}MB" for chunk in CHUNKS_MB),
    "limbeck-sampled",
    "limbeck-top-20",
)
EXACT = {"materialised", *(f"limbeck-full-{chunk}MB" for chunk in CHUNKS_MB)}
BAR = {"memory": 1 / 12, "time": 0.8}
FULL = "limbeck-full-96MB"  # the default chunk
LARGE = {"tokens": 8192, "vocabulary": 151936, "width": 896, "teacher_width": 896}
LARGE_BAR_MB = 2048
SCALES = {"tokens": (512, 1024, 2048, 4096), "vocabulary": (8192, 16384, 32768, 65536)}
SCALED = {"tokens": 1024, "vocabulary": 16384, "width": 256, "teacher_width": 256}
LINEAR = 1.1  # the largest exponent that passes as linear


@dataclass(frozen=True)
class Inputs:
    """Random policies whose logits have a deviation of about 2, the student's near the teacher's."""

    hidden_Nd: Any
    weight_Vd: Any
    teacher_hidden_ND: Any
    teacher_weight_VD: Any


def make_inputs(args: argparse.Namespace) -> Inputs:
    import torch

    generator = torch.Generator().manual_seed(args.seed)

    def draw(rows: int, width: int, scale: float) -> Any:
        return torch.randn(rows, width, generator=generator).mul_(scale)

    return Inputs(
        draw(args.tokens, args.width, 1.0).requires_grad_(),
        draw(args.vocabulary, args.width, 2.0 * args.width**-0.5).requires_grad_(),
        draw(args.tokens, args.teacher_width, 1.0),
        draw(args.vocabulary, args.teacher_width, 2.0 * args.teacher_width**-0.5),
    )


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """The exact loss, a few rows at a time in float64, and a token of each position sampled from p."""
    import torch

    inputs, total, rows = make_inputs(args), 0.0, 32
    generator = torch.Generator().manual_seed(args.seed + 1)
    sampled, behaviour = [], []
    with torch.no_grad():
        for start in range(0, args.tokens, rows):
            c = slice(start, start + rows)
            logits_CV = inputs.hidden_Nd[c] @ inputs.weight_Vd.T
            logp_CV = torch.log_softmax(logits_CV.double() / TEMPERATURE, dim=-1)
            logits_CV = inputs.teacher_hidden_ND[c] @ inputs.teacher_weight_VD.T
            logq_CV = torch.log_softmax(logits_CV.double() / TEMPERATURE, dim=-1)
            total += float((logp_CV.exp() * (logp_CV - logq_CV)).sum())
            point_C1 = torch.rand(len(logp_CV), 1, generator=generator, dtype=torch.float64)
            sampled_C1 = torch.searchsorted(logp_CV.exp().cumsum(dim=1), point_C1)
            sampled_C1.clamp_(max=args.vocabulary - 1)
            sampled += sampled_C1[:, 0].tolist()
            behaviour += logp_CV.gather(1, sampled_C1)[:, 0].tolist()
    Path(args.sampled).write_text(json.dumps({"sampled": sampled, "behaviour": behaviour}))
    return {"loss": total / args.tokens}


def materialised(inputs: Inputs, args: argparse.Namespace) -> Callable[[int], dict[str, Any]]:
    """What one writes first: all `[N, V]` logits and plain autograd."""
    import torch

    def run(count: int) -> dict[str, Any]:
        logits_NV = inputs.hidden_Nd[:count] @ inputs.weight_Vd.T
        logp_NV = torch.log_softmax(logits_NV / TEMPERATURE, dim=-1)
        del logits_NV
        with torch.no_grad():
            logits_NV = inputs.teacher_hidden_ND[:count] @ inputs.teacher_weight_VD.T
            logq_NV = torch.log_softmax(logits_NV / TEMPERATURE, dim=-1)
            del logits_NV
        loss = (logp_NV.exp() * (logp_NV - logq_NV)).sum(dim=-1).sum() / count
        loss.backward()
        return {"loss": loss.item()}

    return run


def fused(inputs: Inputs, args: argparse.Namespace) -> Callable[[int], dict[str, Any]]:
    import torch

    from limbeck.objectives import Dense, Head, Loss, ReverseKL, Tokens, distillation_loss

    _, kind, *rest = args.variant.split("-")
    chunk_mb = int(rest[0].removesuffix("MB")) if kind == "full" else SAMPLED_CHUNK_MB
    loss_to_minimise = Loss(ReverseKL(), support=int(rest[0]) if kind == "top" else kind)
    drawn = json.loads(Path(args.sampled).read_text())
    sampled_N, behaviour_N = torch.tensor(drawn["sampled"]), torch.tensor(drawn["behaviour"])

    def run(count: int) -> dict[str, Any]:
        loss, measured = distillation_loss(
            loss_to_minimise,
            TEMPERATURE,
            inputs.hidden_Nd[:count],
            Head(inputs.weight_Vd),
            Tokens(sampled_N[:count], torch.arange(count), behaviour_N[:count]),
            Dense(inputs.teacher_hidden_ND[:count], Head(inputs.teacher_weight_VD)),
            float(count),
            chunk_bytes=chunk_mb * MB,
        )
        loss.backward()
        estimate_N = measured.objective.double()
        return {"loss": loss.item(), "standard_error": float(estimate_N.std() / count**0.5)}

    return run


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One timed pass in this process, after a short one that wakes threads and kernels."""
    import torch

    inputs = make_inputs(args)
    run = (materialised if args.variant == "materialised" else fused)(inputs, args)
    resident = start_memory()
    run(max(1, args.tokens // 16))
    inputs.hidden_Nd.grad = inputs.weight_Vd.grad = None
    started = time.perf_counter()
    result = run(args.tokens)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    grads = [inputs.hidden_Nd.grad, inputs.weight_Vd.grad]
    return {
        **result,
        "seconds": seconds,
        "extra_mb": (peak - resident) / MB,
        "peak_mb": peak / MB,
        "gradient_norms": [float(torch.linalg.vector_norm(g)) for g in grads],
        "threads": torch.get_num_threads(),
    }


def start_memory() -> int:
    """Bytes resident now; the high-water mark of the imports is lowered to it where the kernel allows."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def in_process(args: argparse.Namespace, variant: str) -> dict[str, Any]:
    """This script again, for one variant."""
    command = [sys.executable, __file__, "--variant", variant, "--sampled", args.sampled]
    for option in ("tokens", "vocabulary", "width", "teacher_width", "seed"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def agrees(variant: str, result: dict[str, Any], exact: float) -> bool:
    gap = abs(result["loss"] - exact)
    if variant in EXACT:
        return gap <= 1e-4 * abs(exact)
    return gap <= 5 * result["standard_error"]


def compare(args: argparse.Namespace) -> int:
    shape = {option: getattr(args, option) for option in ("tokens", "vocabulary", "width", "teacher_width")}
    exact = in_process(args, "prepare")["loss"]
    rounds: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.repeats):
        for variant in VARIANTS:
            rounds[variant].append(in_process(args, variant))

    lines: dict[str, dict[str, Any]] = {}
    for variant, results in rounds.items():
        seconds = [result["seconds"] for result in results]
        lines[variant] = {
            "variant": variant,
            **shape,
            "threads": results[0]["threads"],
            "seconds": round(statistics.median(seconds), 3),
            "all_seconds": [round(s, 3) for s in seconds],
            "extra_mb": round(statistics.median(result["extra_mb"] for result in results), 1),
            "loss": results[0]["loss"],
            "agrees": all(agrees(variant, result, exact) for result in results),
        }
        print(json.dumps(lines[variant]), flush=True)

    plain = lines["materialised"]
    norms = {variant: rounds[variant][0]["gradient_norms"] for variant in VARIANTS}
    gradients = all(
        abs(a - b) <= 1e-3 * b for variant in EXACT for a, b in zip(norms[variant], norms["materialised"], strict=True)
    )
    ratios = {
        variant: {
            "time": round(line["seconds"] / plain["seconds"], 3),
            "memory": round(line["extra_mb"] / plain["extra_mb"], 4),
        }
        for variant, line in lines.items()
        if variant != "materialised"
    }
    agreed = gradients and all(line["agrees"] for line in lines.values())
    bar = {key: round(value, 4) for key, value in BAR.items()}
    print(json.dumps({"exact_loss": exact, "agree": agreed, "bar": bar, "ratios": ratios}))
    return 0 if agreed else 1


def large(args: argparse.Namespace) -> int:
    """Peak memory and time at a vocabulary of 152k, one forward and backward. Values are checked elsewhere."""
    for option, value in LARGE.items():
        setattr(args, option, value)
    unused = {"sampled": [0] * args.tokens, "behaviour": [0.0] * args.tokens}
    Path(args.sampled).write_text(json.dumps(unused))
    result = in_process(args, FULL)
    fits = result["extra_mb"] <= LARGE_BAR_MB
    line = {key: round(result[key], 1) for key in ("seconds", "extra_mb", "peak_mb")}
    print(json.dumps({"variant": FULL, **LARGE, **line, "bar_mb": LARGE_BAR_MB, "fits": fits}))
    return 0 if fits else 1


def scaling(args: argparse.Namespace) -> int:
    """Seconds as tokens grow and as the vocabulary grows, the other held; and the exponent of the growth."""
    import math

    linear = True
    for what, sizes in SCALES.items():
        runs: dict[int, tuple[Inputs, Callable[[int], Any], int]] = {}
        for size in sizes:
            for option, value in {**SCALED, what: size, "variant": FULL}.items():
                setattr(args, option, value)
            sampled = {"sampled": [0] * args.tokens, "behaviour": [0.0] * args.tokens}
            Path(args.sampled).write_text(json.dumps(sampled))
            inputs = make_inputs(args)
            runs[size] = (inputs, fused(inputs, args), args.tokens)
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(args.repeats + 1):
            for size, (inputs, run, count) in runs.items():
                inputs.hidden_Nd.grad = inputs.weight_Vd.grad = None
                started = time.perf_counter()
                run(count)
                taken[size].append(time.perf_counter() - started)
        seconds = {size: statistics.median(rounds[1:]) for size, rounds in taken.items()}
        x, y = [math.log(size) for size in sizes], [math.log(seconds[size]) for size in sizes]
        exponent = statistics.linear_regression(x, y).slope
        linear = linear and exponent <= LINEAR
        rounded = {str(size): round(value, 4) for size, value in seconds.items()}
        print(
            json.dumps({"scaling": what, "seconds": rounded, "exponent": round(exponent, 3), "bar": LINEAR}), flush=True
        )
    return 0 if linear else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="time and memory of the loss, fused and materialised")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--teacher-width", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small shape once: does it run and agree?")
    parser.add_argument("--large", action="store_true", help="only: peak memory at a vocabulary of 152k")
    parser.add_argument("--scaling", action="store_true", help="only: growth with tokens and with vocabulary")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--sampled", help=argparse.SUPPRESS)
    args = parser.parse_args()
    small = {"tokens": 512, "vocabulary": 16384, "width": 256, "teacher_width": 256, "repeats": 1}
    full_size = {"tokens": 4096, "vocabulary": 49152, "width": 576, "teacher_width": 576, "repeats": 3}
    for option, default in (small if args.quick else full_size).items():
        if getattr(args, option) is None:
            setattr(args, option, default)

    if args.variant:
        print(json.dumps(prepare(args) if args.variant == "prepare" else measure(args)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        args.sampled = str(Path(folder) / "sampled.json")
        return (large if args.large else scaling if args.scaling else compare)(args)


if __name__ == "__main__":
    sys.exit(main())
