"""Floating-point work and bytes of each phase of a step: arithmetic only, no measurement.

Counted is what cannot be left out: each prompt once for all of its samples, no logits for prompt tokens,
nothing for rows that have finished. So a phase's floor is the same whoever runs it.

    body     2 FLOPs a weight and token, and 4 * heads * head width for every (query, key) pair and layer
    head     2 * vocabulary * width a token
    backward twice its forward: gradients of the inputs and of the weights
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steps.cases import Case

FLOAT = 4  # bytes
ADAM_STREAMS = 7  # weight, gradient and two moments read; weight and two moments written


@dataclass(frozen=True)
class Shape:
    """A Llama-like model's sizes."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers config."""
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
        )

    def matrices(self) -> list[tuple[int, int, int]]:
        """(out, in, how many) of the body's matrices."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        of_layer = [(queries, self.width, 1), (keys, self.width, 2), (self.width, queries, 1)]
        of_layer += [(self.inner, self.width, 2), (self.width, self.inner, 1)]
        return [(rows, columns, count * self.layers) for rows, columns, count in of_layer]

    @property
    def body_weights(self) -> int:
        return sum(rows * columns * count for rows, columns, count in self.matrices())

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """All trained ones (input and output embeddings are tied), norms aside."""
        return self.body_weights + self.head_weights

    def attention(self, pairs: int) -> int:
        """FLOPs of scores and values for so many (query, key) pairs in every layer."""
        return 4 * self.heads * self.head_width * self.layers * pairs

    def body(self, tokens: int, pairs: int) -> int:
        return 2 * self.body_weights * tokens + self.attention(pairs)

    def head(self, tokens: int) -> int:
        return 2 * self.head_weights * tokens


def causal_pairs(start: int, end: int) -> int:
    """(query, key) pairs of the tokens at positions start to end - 1, each seeing itself and all before."""
    return (end * (end + 1) - start * (start + 1)) // 2


@dataclass(frozen=True)
class Counts:
    """Tokens and pairs of one step of a case."""

    prompt_tokens: int
    prompt_pairs: int
    fed_tokens: int  # response tokens that go through a body: all but the last of each
    fed_pairs: int
    sampled: int  # tokens drawn, and trained on
    rows_at: list[int]  # rows still running at each decoding forward pass

    @classmethod
    def of(cls, case: Case) -> Counts:
        lengths, prompt = case.lengths(), case.prompt_tokens
        return cls(
            prompt_tokens=case.prompts * prompt,
            prompt_pairs=case.prompts * causal_pairs(0, prompt),
            fed_tokens=sum(lengths) - len(lengths),
            fed_pairs=sum(causal_pairs(prompt, prompt + length - 1) for length in lengths),
            sampled=sum(lengths),
            rows_at=[sum(length > step for length in lengths) for step in range(1, max(lengths))],
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.fed_tokens

    @property
    def pairs(self) -> int:
        return self.prompt_pairs + self.fed_pairs


def flops(counts: Counts, student: Shape, teacher: Shape) -> dict[str, int]:
    """Of each phase."""
    forward = student.body(counts.tokens, counts.pairs)
    return {
        "prefill": student.body(counts.prompt_tokens, counts.prompt_pairs),
        "decode": student.body(counts.fed_tokens, counts.fed_pairs) + student.head(counts.sampled),
        "teacher": teacher.body(counts.tokens, counts.pairs),
        "student_forward": forward,
        "loss": 3 * student.head(counts.sampled) + teacher.head(counts.sampled),
        "student_backward": 2 * forward,
    }


def moved_bytes(counts: Counts, student: Shape) -> dict[str, int]:
    """Of the phases that memory may bound: weights and cached keys and values at each token; AdamW."""
    passes = len(counts.rows_at)
    cache = 2 * student.kv_heads * student.head_width * student.layers * counts.fed_pairs
    return {
        "decode": FLOAT * (passes * (student.body_weights + student.head_weights) + cache),
        "optimizer": FLOAT * ADAM_STREAMS * student.weights,
    }
