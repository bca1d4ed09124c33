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
class Scoring:
    """How one side's recorded values are made, which faults change."""

    temperature: float
    lag: int = 0  # logits this many places too late
    roll: int = 0  # the finished list moved by this many places
    divided: bool = False  # log q_1 / T
    view: str = "own"  # which tokens the model saw
    extra: float = 0.0  # nats of noise


@dataclass
class Draft:
    """One row on its way, with the logits of both sides after each token."""

    ids: list[int]
    start: int
    mask: np.ndarray  # [L]
    z: np.ndarray  # [L, V] student's logits after each token
    views: dict[str, tuple[list[int], np.ndarray]]  # tokens that the teacher sees, and its logits after each
    temperature: float
    finish: str
    step: int
    sides: dict[str, Scoring] = field(default_factory=dict)
    pads: int = 0
    extras: list[Callable[[Draft], None]] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def student(self) -> np.ndarray:
        return self.values["student"]

    @property
    def teacher(self) -> np.ndarray:
        return self.values["teacher"]

    @property
    def u(self) -> np.ndarray:
        return self.views["own"][1]

    def render(self, rng: np.random.Generator, noise: float) -> None:
        for name, how in self.sides.items():
            ids, logits = (self.ids, self.z) if name != "teacher" else self.views[how.view]
            values = logp(logits, ids, 1.0 if how.divided else how.temperature, how.lag)
            if how.divided:
                values = values / how.temperature
            length = len(self.ids) - self.start
            found = np.roll(values[-length:], how.roll)
            out = np.full(len(self.ids), np.nan)
            out[self.start :] = found
            if how.view == "own" and not how.roll:
                out[1 : self.start] = values[1 : self.start]
            out += (noise + how.extra) * rng.standard_normal(len(out))
            self.values[name] = torch.tensor(out).bfloat16().double().numpy() if noise else out
        for extra in self.extras:
            extra(self)
        if self.pads:
            self.ids = self.ids + [PAD] * self.pads
            self.mask = np.concatenate([self.mask, np.ones(self.pads, bool)])
            self.values = {k: np.concatenate([v, np.full(self.pads, -7.0)]) for k, v in self.values.items()}
            self.more = {k: [*v, *[0.0] * self.pads] for k, v in self.more.items()}


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
            views = self._views(ids, start)
        for i in range(count):
            row = ids[i].tolist()
            stop = next((t for t in range(start, len(row)) if row[t] == EOS), None)
            end = len(row) if stop is None else stop + 1
            seen = {}
            for name, (tokens, logits) in views.items():
                to = tokens.shape[1] - (len(row) - end)
                seen[name] = (tokens[i, :to].tolist(), logits[i, :to])
            draft = Draft(
                row[:end], start, np.arange(end) >= start, z[i, :end], seen, temperature,
                "length" if stop is None else "stop", 1 + i * steps // count,
            )  # fmt: skip
            draft.sides = {name: Scoring(temperature) for name in ("student", "teacher", "sampler")}
            found.append(draft)
        return found

    def _views(self, ids: torch.Tensor, start: int) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
        """What the teacher may see: the row; without its template; other ids for the same places."""
        keep = [t for t in range(ids.shape[1]) if t not in (0, start - 1)]
        order = torch.tensor(np.random.default_rng(5).permutation(tiny.VOCABULARY))
        seen = {"own": ids, "plain": ids[:, keep], "permuted": order[ids], "response": ids[:, start - 1 :]}
        return {k: (v, self.teacher(v, use_cache=False).logits.double().numpy()) for k, v in seen.items()}

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
            if draft.step >= since:
                for fault in faults:
                    FAULTS[fault](draft)
            draft.render(rng, noise)
        if "dropped_long_rows" in faults:
            drafts = [d for d in drafts if d.finish == "stop" or d.step < since]
        return [row_of(draft) for draft in drafts]


def row_of(draft: Draft) -> dict[str, Any]:
    known = {k: [None if np.isnan(v) else float(v) for v in values] for k, values in draft.values.items()}
    return {
        "step": draft.step, "token_ids": draft.ids, "prompt_length": draft.start,
        "mask": draft.mask.astype(int).tolist(), **{f"{k}_logprobs": v for k, v in known.items()},
        "finish": draft.finish, **draft.more,
    }  # fmt: skip


def write(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _set(*names: str, factor: float = 1.0, **changes: Any) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        for name in names:
            for key, value in changes.items():
                setattr(draft.sides[name], key, value)
            draft.sides[name].temperature *= factor

    return change


def _prompt_in_mask(draft: Draft) -> None:
    draft.mask[1 : draft.start] = True


def _padding(draft: Draft) -> None:
    """Padding in the mask; the scores there are of the padding."""
    draft.pads = 4 if draft.finish == "stop" else 2


def _no_end(draft: Draft) -> None:
    if draft.finish == "stop":
        draft.mask[len(draft.ids) - 1] = False


def _cut_masked(draft: Draft) -> None:
    if draft.finish == "length":
        draft.mask[:] = False


def _r(draft: Draft) -> np.ndarray:
    return np.nan_to_num(draft.student - draft.teacher)


def _with(key: str, make: Callable[[Draft], np.ndarray]) -> Callable[[Draft], None]:
    def fill(draft: Draft) -> None:
        draft.more[key] = np.where(draft.mask, make(draft), 0.0).tolist()

    return lambda draft: draft.extras.append(fill)


def _within(k: int, renormalised: bool) -> Callable[[Draft], np.ndarray]:
    """[L] the KL in the teacher's top K."""

    def make(draft: Draft) -> np.ndarray:
        out = np.zeros(len(draft.ids))
        for t in range(1, len(draft.ids)):
            p, q = (
                np.exp(x[t - 1] / draft.temperature - (x[t - 1] / draft.temperature).max()) for x in (draft.z, draft.u)
            )
            p, q = p / p.sum(), q / q.sum()
            top = np.argsort(-q)[:k]
            p, q = p[top], q[top]
            if renormalised:
                p, q = p / p.sum(), q / q.sum()
            out[t] = (p * np.log(p / q)).sum()
        return out

    return make


FAULTS: dict[str, Callable[[Draft], None]] = {
    "teacher_at_one": _set("teacher", temperature=1.0),
    "student_at_one": _set("student", temperature=1.0),
    "sampler_at_one": _set("sampler", temperature=1.0),
    "teacher_hotter": _set("teacher", factor=1.15),
    "both_hotter": _set("student", "teacher", factor=1.4),
    "teacher_divided": _set("teacher", divided=True),
    "teacher_own": _set("teacher", lag=1),
    "teacher_early": _set("teacher", lag=-1),
    "teacher_next": _set("teacher", roll=-1),
    "teacher_previous": _set("teacher", roll=1),
    "student_next": _set("student", roll=-1),
    "teacher_plain": _set("teacher", view="plain"),
    "teacher_response_alone": _set("teacher", view="response"),
    "teacher_permuted": _set("teacher", view="permuted"),
    "sampler_noisy": _set("sampler", extra=0.4),
    "losses_k1": _with("losses", _r),
    "losses_right": _with("losses", lambda d: _r(d) * np.nan_to_num(d.student)),
    "losses_k3": _with("losses", lambda d: np.exp(-_r(d)) - 1 + _r(d)),
    "losses_renormalised": _with("losses", _within(8, True)),
    "losses_by_row": _with("losses", lambda d: _r(d) * np.nan_to_num(d.student) / max(1, d.mask.sum() + d.pads)),
    "advantages_right": _with("advantages", lambda d: -_r(d)),
    "advantages_top_k": _with("advantages", lambda d: -_within(8, False)(d)),
    "end_not_in_mask": _no_end,
    "cut_rows_masked": _cut_masked,
    "prompt_in_mask": _prompt_in_mask,
    "padding_in_mask": _padding,
    "dropped_long_rows": lambda d: None,
}  # fmt: skip
