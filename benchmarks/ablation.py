"""What each fast piece buys: a step's phases with that piece switched off, against the step with all of them.

    .venv/bin/python benchmarks/ablation.py --case demo smollm2 --repeats 7

All variants take turns in one process, in a new order each round, and what counts is the ratio of medians of processor
seconds: machines have moods, and other work beside this takes wall time. Models have random weights. The objective is
a sum of the final states, for the loss is no part of this. SmolLM2's shape has four of its thirty layers, which are all
alike.

Shape legend: N tokens of a pass, B rows, S states that are read, d width.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.models import decode, ops
from limbeck.models.causal_lm import CausalLM
from limbeck.models.decode import Decoder, FastRows
from limbeck.models.equivalence import fast_decode, use_fused_forward
from limbeck.models.prefix_tree import Tree, build
from limbeck.models.sampling import draw
from limbeck.records import Sampling

PHASES = ("sample", "score", "update")
SHAPES = {
    "demo": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 4, "vocab_size": 99, "max_position_embeddings": 256},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 9,
                "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Tokens of prompts and responses; responses are of mixed lengths."""

    shape: str
    prompts: int
    samples: int
    prompt_tokens: int
    new_tokens: int


CASES = {"demo": Case("demo", 64, 1, 8, 40), "smollm2": Case("smollm2", 2, 4, 128, 24)}


@dataclass(frozen=True)
class Piece:
    """What is switched off, and what it takes part in."""

    name: str
    phases: Sequence[str]
    off: Callable[[Bench], Iterator[None]]


class Bench:
    """One case with everything on; pieces change its fields for the time they are off."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **SHAPES[case.shape])).eval()
        self.case, self.lm = case, CausalLM(case.shape, model, None, SHAPES[case.shape]["vocab_size"])  # type: ignore[arg-type]
        assert use_fused_forward(self.lm) is None
        self.decoder = fast_decode(self.lm)
        assert self.decoder.why is None
        self.layout = "tree" if case.samples > 1 else "padded"
        self.everywhere = False
        choose, vocabulary = random.Random(0), self.lm.vocabulary
        self.prompts = [choose.choices(range(vocabulary), k=case.prompt_tokens) for _ in range(case.prompts)]
        rows = case.prompts * case.samples
        self.lengths = [choose.randint(case.new_tokens // 2, case.new_tokens) for _ in range(rows)]
        self.responses = [choose.choices(range(vocabulary), k=n) for n in self.lengths]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def sample(self) -> None:
        """Rows leave as they do in the engine: a quarter at a time."""
        case, head_ = self.case, self.lm.head()
        owner_B = torch.arange(case.prompts).repeat_interleave(case.samples)
        generator, sampling = torch.Generator().manual_seed(0), Sampling(1.0, case.new_tokens)
        with torch.inference_mode():
            hidden_Bd, rows = self.decoder.start(self.prompts, owner_B, case.new_tokens)
            left_B = torch.tensor(self.lengths)
            for step in range(case.new_tokens):
                token_B, _ = draw(head_.logits(hidden_Bd), sampling, torch.rand(len(hidden_Bd), generator=generator))
                running = torch.nonzero(left_B > step + 1)[:, 0]
                if len(running) == 0:
                    break
                if len(running) <= 0.75 * len(left_B):
                    left_B, token_B = left_B[running], token_B[running]
                    rows.keep(running)
                hidden_Bd = rows.forward(token_B)

    def score(self) -> None:
        with torch.inference_mode():
            self.states()

    def update(self) -> None:
        hidden_Sd = self.states()
        hidden_Sd.backward(torch.ones_like(hidden_Sd))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def states(self) -> Tensor:
        batch = self.batch_tree() if self.layout == "tree" else self.batch_rows()
        tokens_BL, positions_BL, predict_S, tree = batch
        if self.everywhere:
            everywhere_N = torch.arange(tokens_BL.numel())
            return self.lm.states(tokens_BL, positions_BL, everywhere_N, tree)[predict_S]
        return self.lm.states(tokens_BL, positions_BL, predict_S, tree)

    def batch_rows(self) -> tuple[Tensor, Tensor, Tensor, Tree | None]:
        case, fed = self.case, [case_n + self.case.prompt_tokens - 1 for case_n in self.lengths]
        tokens_BL = torch.zeros(len(fed), max(fed), dtype=torch.int64)
        predict: list[int] = []
        for row, response in enumerate(self.responses):
            ids = self.prompts[row // case.samples] + response
            tokens_BL[row, : fed[row]] = torch.tensor(ids[: fed[row]])
            predict += range(row * max(fed) + case.prompt_tokens - 1, row * max(fed) + fed[row])
        return tokens_BL, torch.arange(max(fed)).expand(len(fed), -1), torch.tensor(predict), None

    def batch_tree(self) -> tuple[Tensor, Tensor, Tensor, Tree | None]:
        case = self.case
        tokens: list[int] = []
        positions: list[int] = []
        predict: list[int] = []
        shapes = []
        for p, prompt in enumerate(self.prompts):
            own = self.responses[p * case.samples : (p + 1) * case.samples]
            first = len(tokens) + len(prompt) - 1
            tokens, positions = tokens + prompt, [*positions, *range(len(prompt))]
            for response in own:
                predict += [first, *range(len(tokens), len(tokens) + len(response) - 1)]
                tokens += response[:-1]
                positions += range(len(prompt), len(prompt) + len(response) - 1)
            shapes.append((len(prompt), [len(response) - 1 for response in own]))
        return torch.tensor(tokens)[None], torch.tensor(positions)[None], torch.tensor(predict), build(shapes)


def setting(target: Any, **values: Any) -> Callable[[Bench], Any]:
    """Attributes of a module, or of the bench where `target` is None, replaced for a while."""

    @contextmanager
    def off(bench: Bench) -> Iterator[None]:
        with ExitStack() as stack:
            for name, value in values.items():
                stack.enter_context(patch.object(bench if target is None else target, name, value))
            yield

    return off


@contextmanager
def transformers_decode(bench: Bench) -> Iterator[None]:
    with patch.object(bench, "decoder", Decoder(bench.lm)):
        yield


@contextmanager
def torch_decode(bench: Bench) -> Iterator[None]:
    with patch.object(bench, "decoder", Decoder(bench.lm, bench.decoder.parts, FastRows)):
        yield


@contextmanager
def transformers_forward(bench: Bench) -> Iterator[None]:
    with patch.object(bench.lm, "passes", None):
        yield


def plain_norm(x_Nd: Tensor, layer: Any) -> Tensor:
    return nn.functional.rms_norm(x_Nd, layer.weight.shape, layer.weight, layer.variance_epsilon)


def plain_linears(x_Nd: Tensor, layer: Any, *linears: nn.Linear) -> tuple[Tensor, ...]:
    normed_Nd = plain_norm(x_Nd, layer)
    return tuple(linear(normed_Nd) for linear in linears)


def plain_gated(x_Nd: Tensor, gate_Nn: Tensor, up_Nn: Tensor, down: nn.Linear) -> Tensor:
    return x_Nd + down(nn.functional.silu(gate_Nn) * up_Nn)


def plain_heads(
    x_BLHD: Tensor, cos_BLD: Tensor | None = None, sin_BLD: Tensor | None = None, padded: int | None = None
) -> Tensor:
    x_BHLD = x_BLHD.transpose(1, 2)
    if cos_BLD is not None and sin_BLD is not None:
        one, other = x_BHLD.chunk(2, dim=-1)
        x_BHLD = x_BHLD * cos_BLD[:, None] + torch.cat([-other, one], dim=-1) * sin_BLD[:, None]
    return x_BHLD if padded is None else nn.functional.pad(x_BHLD, (0, 0, 0, padded - x_BHLD.shape[2]))


BY_HAND = {"norm": plain_norm, "normed_linears": plain_linears, "add_gated": plain_gated, "heads": plain_heads}
PIECES = [
    Piece("all of fast decode", ["sample"], transformers_decode),
    Piece("numba", ["sample"], torch_decode),
    Piece("few rows: x @ weight.T", ["sample"], setting(decode, FEW=0)),
    Piece("all of the fused forward", ["score", "update"], transformers_forward),
    Piece("short attention by plain products", ["score", "update"], setting(ops, FEW_KEYS=0)),
    Piece("operations with gradients by hand", ["score", "update"], setting(ops, **BY_HAND)),
    Piece("last layer: only what is read", ["score", "update"], setting(None, everywhere=True)),
    Piece("prefix tree", ["score", "update"], setting(None, layout="padded")),
]


def seconds_of(bench: Bench, phase: str) -> float:
    start = time.process_time()
    getattr(bench, phase)()
    return time.process_time() - start


def run_case(case: Case, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds by piece and phase, the first piece being none."""
    bench = Bench(case)
    jobs: list[tuple[str, str, Any]] = [("nothing off", phase, setting(None)) for phase in PHASES]
    jobs += [(piece.name, phase, piece.off) for piece in PIECES for phase in piece.phases]
    taken: dict[tuple[str, str], list[float]] = {(name, phase): [] for name, phase, _ in jobs}
    order = random.Random(0)
    for repeat in range(repeats + 1):  # the first warms up
        order.shuffle(jobs)
        for name, phase, off in jobs:
            with off(bench):
                seconds = seconds_of(bench, phase)
            if repeat:
                taken[name, phase].append(seconds)
    table: dict[str, dict[str, float]] = {}
    for (name, phase), values in taken.items():
        table.setdefault(name, {})[phase] = statistics.median(values)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.case:
        table = run_case(CASES[name], args.repeats)
        whole = table["nothing off"]
        print(json.dumps({"case": name, "seconds": whole, "threads": args.threads}))
        for piece, seconds in table.items():
            ratios = "  ".join(f"{phase} {seconds[phase] / whole[phase]:.2f}" for phase in PHASES if phase in seconds)
            print(f"  {piece:40} {ratios}", flush=True)


if __name__ == "__main__":
    main()
