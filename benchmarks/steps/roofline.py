"""The floor of each phase from measured rates of this machine.

    python -m steps.roofline WORK.json        prints {"rates", "gflop", "peak", "own_shapes"}, seconds

`peak`: a phase's FLOPs at the best matmul rate (2048^3) or its bytes at the copy rate, whichever is more.
`own_shapes`: the same matmuls in the phase's own shapes, timed one by one (small ones run far under the
peak), attention at the rate of the attention kernel, decoding at the row counts it goes through. Nothing
in between is counted: norms, activations, softmax, the sampler and Python are what measured/floor shows.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from steps.cases import Work
from steps.floors import Counts, Shape, flops, moved_bytes

PEAK = 2048
COPY_BYTES = 256 * 2**20
LARGEST_ROWS = 4096  # of a timed matmul; more rows take proportionally longer
LOSS_ROWS = 256  # of the loss's chunks


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Median of a few runs after one that warms up."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def rates() -> dict[str, float]:
    """FLOP/s of a large matmul, bytes/s of a copy (read and written)."""
    a, b = torch.randn(PEAK, PEAK), torch.randn(PEAK, PEAK)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return {
        "matmul": 2 * PEAK**3 / seconds(lambda: a @ b, 5),
        "copy": 2 * COPY_BYTES / seconds(lambda: target.copy_(source), 5),
    }


def matmul_seconds(rows: int, matrices: Sequence[tuple[int, int, int]], backward: bool = False) -> float:
    """Seconds of `rows` tokens through (out, in, how many) matrices, or of the two matmuls back."""
    timed, total = min(rows, LARGEST_ROWS), 0.0
    for outputs, inputs, count in matrices:
        x, weight = torch.randn(timed, inputs), torch.randn(outputs, inputs)
        if backward:
            grad = torch.randn(timed, outputs)
            total += count * seconds(lambda g=grad, x=x, w=weight: (g @ w, g.T @ x))
        else:
            total += count * seconds(lambda x=x, w=weight: torch.nn.functional.linear(x, w))
    return total * rows / timed


def attention_rate(shape: Shape, rows: int, length: int) -> float:
    """FLOP/s of the causal attention kernel, the masked half not counted."""
    sizes = (min(rows, 8), shape.heads, length, shape.head_width)
    q, k, v = (torch.randn(sizes) for _ in range(3))
    taken = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    return 4 * sizes[0] * shape.heads * shape.head_width * length * (length + 1) / 2 / taken


def decode_seconds(rows_at: Sequence[int], shape: Shape) -> float:
    """Body and head matmuls of every pass, interpolated between a few row counts."""
    most = max(rows_at)
    known = sorted({1, *(2**n for n in range(1, most.bit_length())), most})
    matrices = [*shape.matrices(), (shape.vocabulary, shape.width, 1)]
    taken = [matmul_seconds(rows, matrices) for rows in known]
    return sum(_between(rows, known, taken) for rows in rows_at)


def _between(rows: int, known: Sequence[int], taken: Sequence[float]) -> float:
    high = next(i for i, count in enumerate(known) if count >= rows)
    if known[high] == rows:
        return taken[high]
    share = (rows - known[high - 1]) / (known[high] - known[high - 1])
    return taken[high - 1] + share * (taken[high] - taken[high - 1])


def floors(work: Work) -> dict[str, Any]:
    from transformers import AutoConfig

    student, teacher = (Shape.of(AutoConfig.from_pretrained(path)) for path in (work.student, work.teacher))
    counts, rate = Counts.of(work.case), rates()
    needed, moved = flops(counts, student, teacher), moved_bytes(counts, student)
    peak = {phase: count / rate["matmul"] for phase, count in needed.items()}
    for phase, count in moved.items():
        peak[phase] = max(peak.get(phase, 0.0), count / rate["copy"])

    attend = attention_rate(student, work.case.rows, work.case.prompt_tokens + work.case.new_tokens)

    def attention(shape: Shape, pairs: int) -> float:
        return shape.attention(pairs) / attend

    forward = matmul_seconds(counts.tokens, student.matrices()) + attention(student, counts.pairs)
    backward = matmul_seconds(counts.tokens, student.matrices(), backward=True) + 2 * attention(student, counts.pairs)
    heads = [(shape.vocabulary, shape.width, 1) for shape in (student, teacher)]
    chunks = counts.sampled / LOSS_ROWS
    own = {
        "prefill": matmul_seconds(counts.prompt_tokens, student.matrices()) + attention(student, counts.prompt_pairs),
        "decode": max(
            decode_seconds(counts.rows_at, student) + attention(student, counts.fed_pairs),
            moved["decode"] / rate["copy"],
        ),
        "teacher": matmul_seconds(counts.tokens, teacher.matrices()) + attention(teacher, counts.pairs),
        "student_forward": forward,
        "loss": chunks * (matmul_seconds(LOSS_ROWS, heads) + matmul_seconds(LOSS_ROWS, heads[:1], backward=True)),
        "student_backward": backward,
        "optimizer": peak["optimizer"],
    }
    return {
        "rates": {
            "matmul_gflops": round(rate["matmul"] / 1e9, 1),
            "attention_gflops": round(attend / 1e9, 1),
            "copy_gb_s": round(rate["copy"] / 1e9, 1),
        },
        "gflop": {phase: round(count / 1e9, 2) for phase, count in needed.items()},
        "peak": {phase: round(value, 5) for phase, value in peak.items()},
        "own_shapes": {phase: round(value, 5) for phase, value in own.items()},
    }


def main() -> None:
    work = Work.read(sys.argv[1])
    torch.set_num_threads(work.threads)
    with torch.inference_mode():
        print(json.dumps(floors(work)))


if __name__ == "__main__":
    main()
