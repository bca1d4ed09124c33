"""Two loops that torch takes thirty small operations for, compiled by numba: decoding on a CPU.

With models of a few million weights a token costs less arithmetic than it costs to start operations on it.
`KernelRows` uses these. The first call compiles (seconds), later processes find the result in numba's cache.

Shape legend: P prompts, B rows, J key-value heads, G query heads of each, D head width, L prompt tokens,
C capacity of a row's own keys, d model width, n = (J G + 2 J) D.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

# Sums may be reordered, which lets them be vectorised; NaN and infinity mean what they always do.
REORDER = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(fastmath=REORDER, cache=True)
def rms_norm(x_dB: Any, weight_d: Any, eps: float, out_dB: Any) -> None:
    """Root mean square norm of each column."""
    width, rows = x_dB.shape
    scale_B = np.zeros(rows, x_dB.dtype)
    for i in range(width):
        for b in range(rows):
            scale_B[b] += x_dB[i, b] * x_dB[i, b]
    for b in range(rows):
        scale_B[b] = 1.0 / math.sqrt(scale_B[b] / width + eps)
    for i in range(width):
        for b in range(rows):
            out_dB[i, b] = x_dB[i, b] * scale_B[b] * weight_d[i]


@numba.njit(fastmath=REORDER, cache=True, parallel=True)
def attend(
    heads_nB: Any,  # queries, keys and values of one token of each row
    cos_BD: Any,
    sin_BD: Any,
    prompt_B: Any,  # which prompt a row answers
    length_P: Any,  # tokens of each prompt
    prompt_keys_PJLD: Any,
    prompt_values_PJLD: Any,
    slot_B: Any,  # where a row's own keys and values lie
    keys_BJCD: Any,
    values_BJCD: Any,
    written: int,  # tokens that each row has of its own
    scaling: float,
    out_nB: Any,  # [J G D, B]
) -> None:
    """Turn queries and keys to their positions, append keys and values, and attend to prompt and row."""
    rows, kv_heads, width = len(slot_B), keys_BJCD.shape[1], keys_BJCD.shape[3]
    half, group = width // 2, out_nB.shape[0] // (kv_heads * width)
    first_key, first_value = kv_heads * group * width, kv_heads * (group + 1) * width
    for b in numba.prange(rows):
        kind = heads_nB.dtype
        query_D, sum_D = np.empty(width, kind), np.empty(width, kind)
        prompt, slot = prompt_B[b], slot_B[b]
        prompt_tokens = length_P[prompt]
        scores = np.empty(prompt_tokens + written + 1, kind)
        for j in range(kv_heads):
            prompt_keys, prompt_values = prompt_keys_PJLD[prompt, j], prompt_values_PJLD[prompt, j]
            keys, values = keys_BJCD[slot, j], values_BJCD[slot, j]
            for i in range(half):
                one, other = heads_nB[first_key + j * width + i, b], heads_nB[first_key + j * width + half + i, b]
                keys[written, i] = one * cos_BD[b, i] - other * sin_BD[b, i]
                keys[written, half + i] = other * cos_BD[b, half + i] + one * sin_BD[b, half + i]
            for i in range(width):
                values[written, i] = heads_nB[first_value + j * width + i, b]
            for g in range(group):
                head = (j * group + g) * width
                for i in range(half):
                    one, other = heads_nB[head + i, b] * scaling, heads_nB[head + half + i, b] * scaling
                    query_D[i] = one * cos_BD[b, i] - other * sin_BD[b, i]
                    query_D[half + i] = other * cos_BD[b, half + i] + one * sin_BD[b, half + i]
                largest = kind.type(-np.inf)
                for t in range(prompt_tokens):
                    score = kind.type(0)
                    for i in range(width):
                        score += query_D[i] * prompt_keys[t, i]
                    scores[t] = score
                    largest = max(largest, score)
                for t in range(written + 1):
                    score = kind.type(0)
                    for i in range(width):
                        score += query_D[i] * keys[t, i]
                    scores[prompt_tokens + t] = score
                    largest = max(largest, score)
                total = kind.type(0)
                for i in range(width):
                    sum_D[i] = 0
                for t in range(prompt_tokens):
                    weight = np.exp(scores[t] - largest)
                    total += weight
                    for i in range(width):
                        sum_D[i] += weight * prompt_values[t, i]
                for t in range(written + 1):
                    weight = np.exp(scores[prompt_tokens + t] - largest)
                    total += weight
                    for i in range(width):
                        sum_D[i] += weight * values[t, i]
                for i in range(width):
                    out_nB[head + i, b] = sum_D[i] / total
