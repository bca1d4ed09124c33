"""Dumps of tiny models with faults planted on purpose, each alone or with others, from a step on.

    world = World.make(folder, sharpness=1.0)
    rows = world.dump(temperature=0.7, count=60, seed=1, faults=["teacher_at_one", "prompt_in_mask"], since=5)

Rows are those of the neutral schema. Everything here is computed by transformers, one batch of equal rows at a time,
and by nothing of `limbeck.audit`.

Shape legend: L tokens of a row, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tests import tiny

EOS, USER, ASSISTANT = 1, 3, 4
PAD = 0


@dataclass
class Draft:
    """One row on its way, with the logits of both sides after each token."""

    ids: list[int]
    start: int
    mask: np.ndarray  # [L]
    student: np.ndarray  # [L] what is recorded
    teacher: np.ndarray
    sampler: np.ndarray
    z: np.ndarray  # [L, V] student's logits after each token
    u: np.ndarray  # [L, V] teacher's
    temperature: float
    finish: str
    step: int
    more: dict[str, Any] = field(default_factory=dict)


def logp(logits: np.ndarray, ids: Sequence[int], temperature: float, lag: int = 0) -> np.ndarray:
    """[L] log p of each token from the logits `lag` places later than the right ones; NaN where there are none."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    table = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    out = np.full(len(ids), np.nan)
    for t, token in enumerate(ids):
        if 0 <= t - 1 + lag < len(table):
            out[t] = table[t - 1 + lag, token]
    return out


@dataclass
class World:
    student: PreTrainedModel
    teacher: PreTrainedModel
    student_folder: str
    teacher_folder: str

    @classmethod
    def make(cls, folder: Path, sharpness: float = 1.0, seed: int = 0, teacher_sharpness: float | None = None) -> World:
        """`sharpness` multiplies the logits: 0.3 is flat, 4 is peaked."""
        made = []
        for name, number, times in (
            ("student", seed, sharpness),
            ("teacher", seed + 100, teacher_sharpness or sharpness),
        ):
            model = tiny.build(tiny.config_of("llama", max_position_embeddings=128), number)
            with torch.no_grad():
                model.lm_head.weight.mul_(times)
                model.lm_head.weight[EOS].mul_(2.0)
            model.generation_config.eos_token_id = EOS
            model.save_pretrained(folder / name)
            tiny.character_tokenizer().save_pretrained(folder / name)
            made.append(model.eval())
        return cls(made[0], made[1], str(folder / "student"), str(folder / "teacher"))

    def drafts(
        self, temperature: float, count: int, seed: int, length: int, prompt: int, steps: int, sampled_at: float | None
    ) -> list[Draft]:
        rng = np.random.default_rng(seed)
        found: list[Draft] = []
        inner = rng.integers(5, tiny.VOCABULARY, size=(count, prompt))
        ids = torch.tensor(np.concatenate([np.full((count, 1), USER), inner, np.full((count, 1), ASSISTANT)], axis=1))
        start = ids.shape[1]
        with torch.inference_mode():
            for _ in range(length):
                logits = self.student(ids, use_cache=False).logits[:, -1].double().numpy() / (sampled_at or temperature)
                noise = rng.gumbel(size=logits.shape)
                ids = torch.cat([ids, torch.tensor((logits + noise).argmax(axis=1))[:, None]], dim=1)
            z = self.student(ids, use_cache=False).logits.double().numpy()
            u = self.teacher(ids, use_cache=False).logits.double().numpy()
        for i in range(count):
            row = ids[i].tolist()
            stop = next((t for t in range(start, len(row)) if row[t] == EOS), None)
            end = len(row) if stop is None else stop + 1
            found.append(self._draft(row[:end], start, z[i, :end], u[i, :end], temperature, stop is not None, i * steps // count))
        return found

    def _draft(
        self, ids: list[int], start: int, z: np.ndarray, u: np.ndarray, temperature: float, stopped: bool, step: int
    ) -> Draft:
        mask = np.arange(len(ids)) >= start
        student, teacher = logp(z, ids, temperature), logp(u, ids, temperature)
        return Draft(ids, start, mask, student, teacher, student.copy(), z, u, temperature, "stop" if stopped else "length", step + 1)

    def dump(
        self,
        temperature: float = 0.7,
        count: int = 60,
        seed: int = 0,
        faults: Sequence[str] = (),
        since: int = 1,
        noise: float = 0.0,
        length: int = 12,
        prompt: int = 6,
        steps: int = 10,
        sampled_at: float | None = None,
    ) -> list[dict[str, Any]]:
        """`noise` is in nats, on each recorded log-prob, as half precision makes it; `since` is a step from 1."""
        drafts = self.drafts(temperature, count, seed, length, prompt, steps, sampled_at)
        rng = np.random.default_rng(seed + 1)
        for draft in drafts:
            for values in (draft.student, draft.teacher, draft.sampler):
                values += noise * rng.standard_normal(len(values))
        for fault in sorted(faults, key=list(FAULTS).index):
            for draft in drafts:
                if draft.step >= since:
                    FAULTS[fault](draft)
        if "dropped_long_rows" in faults:
            drafts = [d for d in drafts if d.finish == "stop"]
        if noise:
            for draft in drafts:
                for name in ("student", "teacher", "sampler"):
                    setattr(draft, name, torch.tensor(getattr(draft, name)).bfloat16().double().numpy())
        return [row_of(draft, faults) for draft in drafts]


def row_of(draft: Draft, faults: Sequence[str] = ()) -> dict[str, Any]:
    known = lambda values: [None if np.isnan(v) else float(v) for v in values]
    return {
        "step": draft.step, "token_ids": draft.ids, "prompt_length": draft.start,
        "mask": draft.mask.astype(int).tolist(), "student_logprobs": known(draft.student),
        "teacher_logprobs": known(draft.teacher), "sampler_logprobs": known(draft.sampler), "finish": draft.finish,
        **draft.more,
    }  # fmt: skip


def write(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _noise_of(draft: Draft, name: str) -> np.ndarray:
    logits = draft.z if name != "teacher" else draft.u
    return np.nan_to_num(getattr(draft, name) - logp(logits, draft.ids, draft.temperature))


def _rescore(draft: Draft, name: str, temperature: float) -> None:
    noise = _noise_of(draft, name)
    setattr(draft, name, logp(draft.z if name != "teacher" else draft.u, draft.ids, temperature) + noise)


def _at(name: str, temperature: float | None, factor: float = 1.0) -> Callable[[Draft], None]:
    return lambda draft: _rescore(draft, name, temperature or draft.temperature * factor)


def _roll(name: str, by: int) -> Callable[[Draft], None]:
    def shift(draft: Draft) -> None:
        values = getattr(draft, name)
        values[draft.start :] = np.roll(values[draft.start :], by)

    return shift


def _own(draft: Draft) -> None:
    right = logp(draft.u, draft.ids, draft.temperature)
    draft.teacher = np.where(np.isnan(right), right, logp(draft.u, draft.ids, draft.temperature, lag=1) + _noise_of(draft, "teacher"))


def _divided(draft: Draft) -> None:
    draft.teacher = logp(draft.u, draft.ids, 1.0) / draft.temperature + _noise_of(draft, "teacher")


def _prompt_in_mask(draft: Draft) -> None:
    draft.mask[1 : draft.start] = True


def _padding(draft: Draft) -> None:
    """Padding up to one width, in the mask; the scores there are of the padding."""
    more = 4 if draft.finish == "stop" else 2
    draft.ids = draft.ids + [PAD] * more
    draft.mask = np.concatenate([draft.mask, np.ones(more, bool)])
    for name in ("student", "teacher", "sampler"):
        setattr(draft, name, np.concatenate([getattr(draft, name), np.full(more, -7.0)]))


def _no_end(draft: Draft) -> None:
    if draft.finish == "stop":
        draft.mask[len(draft.ids) - 1] = False


def _cut_masked(draft: Draft) -> None:
    if draft.finish == "length":
        draft.mask[:] = False


def _r(draft: Draft) -> np.ndarray:
    return np.nan_to_num(draft.student - draft.teacher)


def _with(key: str, make: Callable[[Draft], np.ndarray]) -> Callable[[Draft], None]:
    def add(draft: Draft) -> None:
        draft.more[key] = np.where(draft.mask, make(draft), 0.0).tolist()

    return add


def _within(k: int, renormalised: bool) -> Callable[[Draft], np.ndarray]:
    """[L] the KL in the teacher's top K."""

    def make(draft: Draft) -> np.ndarray:
        out = np.zeros(len(draft.ids))
        for t in range(1, len(draft.ids)):
            p, q = (np.exp(x[t - 1] / draft.temperature - (x[t - 1] / draft.temperature).max()) for x in (draft.z, draft.u))
            p, q = p / p.sum(), q / q.sum()
            top = np.argsort(-q)[:k]
            p, q = p[top], q[top]
            if renormalised:
                p, q = p / p.sum(), q / q.sum()
            out[t] = (p * np.log(p / q)).sum()
        return out

    return make


FAULTS: dict[str, Callable[[Draft], None]] = {
    "teacher_at_one": _at("teacher", 1.0),
    "student_at_one": _at("student", 1.0),
    "sampler_at_one": _at("sampler", 1.0),
    "teacher_hotter": _at("teacher", None, 1.15),
    "both_hotter": lambda d: (_rescore(d, "student", d.temperature * 1.4), _rescore(d, "teacher", d.temperature * 1.4))[0],
    "teacher_divided": _divided,
    "teacher_own": _own,
    "teacher_next": _roll("teacher", -1),
    "teacher_previous": _roll("teacher", 1),
    "student_next": _roll("student", -1),
    "losses_k1": _with("losses", _r),
    "losses_right": _with("losses", lambda d: _r(d) * np.nan_to_num(d.student)),
    "losses_k3": _with("losses", lambda d: np.exp(-_r(d)) - 1 + _r(d)),
    "losses_renormalised": _with("losses", _within(8, True)),
    "losses_by_row": _with("losses", lambda d: _r(d) * np.nan_to_num(d.student) / d.mask.sum()),
    "advantages_right": _with("advantages", lambda d: -_r(d)),
    "advantages_top_k": _with("advantages", lambda d: -_within(8, False)(d)),
    "end_not_in_mask": _no_end,
    "cut_rows_masked": _cut_masked,
    "prompt_in_mask": _prompt_in_mask,
    "padding_in_mask": _padding,
    "dropped_long_rows": lambda d: None,
}  # fmt: skip
