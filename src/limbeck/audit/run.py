"""`audit(path, student, teacher, temperature)`: what another trainer really did, from what it recorded.

Rows are read, both sides recomputed, and each check says what it found, or that the dump cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.audit.claims import settle
from limbeck.audit.context import others
from limbeck.audit.dump import Dump, Reals, Row
from limbeck.audit.finite import check_finite
from limbeck.audit.fit import units_of
from limbeck.audit.losses import (
    AT_T,
    Tokens,
    check_advantages,
    check_losses,
    tokens_of,
)
from limbeck.audit.masks import (
    check_end,
    check_padding,
    check_prompt,
    check_surprising_prompt,
    check_truncation,
    sampled_of,
)
from limbeck.audit.normalisation import check_step_losses, check_weights
from limbeck.audit.read import read_dump
from limbeck.audit.recompute import (
    Curves,
    bfloat16_noise,
    local_curves,
    most_positions,
)
from limbeck.audit.report import Finding, NotChecked, Report
from limbeck.audit.sampling import check_lengths, check_mismatch, check_sampling, mismatch_of, sampled_at
from limbeck.audit.server import SERVER_ROWS, SERVERS, ask_server
from limbeck.audit.sides import Side, SideResult, audit_side
from limbeck.audit.spells import spells
from limbeck.audit.supports import dense_estimators
from limbeck.audit.tokenizers import check_tokenizers
from limbeck.config.base import ModelConfig
from limbeck.errors import DataError, RecipeError
from limbeck.records import Ints, Mask

if TYPE_CHECKING:
    from limbeck.models.causal_lm import CausalLM


def audit(path: Path, student: str, teacher: str, temperature: float) -> Report:
    """The report on the dump at `path`.

    `student` is a model folder or hub name, `teacher` too, or a server: KIND=URL, where a URL alone is a
    `limbeck serve`. Raises `DataError` for a dump that cannot be read, `ModelError`, and for a server what its
    contract raises.
    """
    if not 0 < temperature < float("inf"):
        raise RecipeError(f"--temperature must be a finite number above 0, got {temperature}")
    dump = read_dump(path)
    report = Report(dump.kind, temperature, len(dump.rows), sum(int(row.trained.sum()) for row in dump.rows))
    if not dump.rows:
        _nothing(report, dump.lacks["tokens"])
        return report
    return _Audit(dump, report, student, teacher).run()


def _nothing(report: Report, why: str) -> None:
    checks = ("student_temperature", "teacher_temperature", "shift", "template", "tokenizer", "mask", "loss")
    report.not_checked = [NotChecked(name, why) for name in checks]


class _Audit:
    """One audit on its way. Checks append to the report, in the order of the page."""

    def __init__(self, dump: Dump, report: Report, student: str, teacher: str) -> None:
        import torch

        from limbeck.models.loading import load_model

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        claims = settle(dump, report.temperature, teacher.startswith(SERVERS))
        self.dump, self.report, self.temperature = replace(dump, rows=claims.rows), report, claims.temperature
        report.notes, report.findings = list(claims.notes), list(claims.findings)
        self.student = load_model(ModelConfig(model=student), device)
        self.teacher: CausalLM | None = None
        self.server = teacher if teacher.startswith(SERVERS) else None
        if self.server is None:
            self.teacher = load_model(ModelConfig(model=teacher), device)
        self.stops, self.pad = frozenset(self.student.stop_ids), self.student.tokenizer.pad_token_id
        self.rows = self._chosen(self.dump.rows)
        self.units = units_of(self.rows)[0] if self.rows else np.zeros(0, np.int64)
        self.sides: dict[str, SideResult] = {}
        self.exact = False
        self._estimates: Mapping[str, Reals] | None = None

    def _chosen(self, rows: list[Row]) -> list[Row]:
        """As many rows as can be recomputed in a few minutes, at even distances."""
        vocabulary = max(lm.head().vocabulary for lm in (self.student, self.teacher) if lm is not None)
        rows = [row for row in rows if row.mask is None or row.mask.any() or row.finish is not None]
        total, most = sum(len(row.token_ids) for row in rows), most_positions(vocabulary)
        count = len(rows) if total <= most else max(1, len(rows) * most // total)
        if self.server is not None:
            count = min(count, SERVER_ROWS)
        if count < len(rows):
            self._untold("other_rows", f"{count} of {len(rows)} rows were recomputed, at even distances")
        return [rows[index * len(rows) // count] for index in range(count)]

    def run(self) -> Report:
        for name, why in self.dump.lacks.items():
            self._untold(name, why)
        if not self.rows:
            _nothing(self.report, "no row has a trained token: every mask is 0")
            return self.report
        self._add(*check_finite(self.rows))
        self._add(check_tokenizers(self.student, self.teacher, self.rows))
        self.clean = sampled_of(self.rows, self.stops, self.pad)
        curves = local_curves(self.student, self.rows, self.temperature, self.pad)
        self._sides(curves)
        self._mismatch()
        self._masks(curves)
        self._sampling(curves)
        self._losses()
        return self.report

    def _add(self, findings: Sequence[Finding], untold: Sequence[NotChecked] = ()) -> None:
        self.report.findings += findings
        self.report.not_checked += untold

    def _untold(self, name: str, why: str) -> None:
        self.report.not_checked.append(NotChecked(name, why))

    def _sides(self, curves: Curves) -> None:
        """Each side by itself; then again, with less allowed, where one of them shows that the dump is exact."""
        made = [self._side("student", curves, self.student)]
        if self.dump.has("sampler"):
            made.append(self._side("sampler", curves, self.student))
        elif "sampler" not in self.dump.lacks:
            self._untold("sampler_trainer_mismatch", "the dump has no sampler log-probs: who sampled is not known")
        made.append(self._teacher(curves))
        known = [side for side in made if side is not None]
        rows = [replace(row, mask=mask) for row, mask in zip(self.rows, self.clean, strict=True)]
        for side in known:
            self.sides[side.name] = audit_side(side, rows, self.units, self.temperature)
        self.exact = any(result.exact for result in self.sides.values())
        for side in known if self.exact else ():
            if side.floor > 0 and self.sides[side.name].explained:
                side.strict = True
                self.sides[side.name] = audit_side(side, rows, self.units, self.temperature)
        for name, result in self.sides.items():
            self._add(self._named(result.findings) if name == "sampler" else result.findings, result.not_checked)
        self._values()

    def _named(self, findings: Sequence[Finding]) -> list[Finding]:
        """The sampler's findings. Whether its weights are the trainer's is a question of the two together."""
        trainer = self.sides.get("student")
        if trainer is None or not trainer.explained:
            return list(findings)
        by_itself = [f for f in findings if not f.name.endswith("tokenizer_or_weights")]
        if self._comparable():
            return by_itself
        other = [replace(f, name="sampler_trainer_mismatch") for f in findings if f not in by_itself]
        return [*by_itself, *other]

    def _comparable(self) -> bool:
        """Whether sampler and trainer recorded the same thing, so that their values can be compared directly."""
        if not {"student", "sampler"} <= set(self.sides):
            return False
        found = [f for name in ("student", "sampler") for f in self.sides[name].findings]
        return all(f.name == "sampler_tokenizer_or_weights" for f in found)

    def _values(self) -> None:
        of = "student" if self.dump.has("student") else "sampler"
        if of in self.sides:
            self.report.student = {"recorded_as": of, **self.sides[of].values}
        if of == "student" and "sampler" in self.sides:
            self.report.student["sampler_temperature"] = self.sides["sampler"].values["temperature"]
            off, _ = mismatch_of(self.rows, self.clean)
            self.report.student["sampler_mismatch"] = float(off.mean()) if len(off) else None
        if "teacher" in self.sides:
            self.report.teacher = self.sides["teacher"].values

    def _side(self, name: str, curves: Curves, lm: CausalLM | None) -> Side | None:
        if not self.dump.has(name):
            if name not in self.dump.lacks:
                self._untold(f"{name}_temperature", f"the dump has no {name} log-probs")
            return None
        floor = 0.0 if lm is None else bfloat16_noise(lm, self.rows, self.temperature)
        side = Side(name, curves, floor)
        if lm is not None:
            side.recompute = partial(local_curves, lm, temperature=self.temperature, pad=self.pad)
            side.others = partial(others, student=self.student.tokenizer, side=lm.tokenizer)
        return side

    def _teacher(self, of_student: Curves) -> Side | None:
        if not self.dump.has("teacher"):
            return self._side("teacher", of_student, None)
        if self.teacher is None:
            assert self.server is not None
            return self._side("teacher", ask_server(self.server, self.rows, self.temperature, self.student), None)
        try:
            curves = local_curves(self.teacher, self.rows, self.temperature, self.pad)
        except DataError as error:
            cause, remedy = "two vocabularies", "give both models one tokenizer"
            self._add([Finding("tokenizer", str(error), "ids of one tokenizer", str(error), cause, remedy)])
            return None
        return self._side("teacher", curves, self.teacher)

    def _masks(self, curves: Curves) -> None:
        if all(row.mask is None for row in self.rows):
            self._untold("mask", "the dump has no loss mask")
            return
        self._add(*check_padding(self.rows, curves, self.stops, self.pad))
        findings = check_prompt(self.rows)
        beta = self._beta()
        if not findings and beta is not None:
            findings = check_surprising_prompt(self.rows, curves, beta)
        self._add(findings)
        self._add(*check_end(self.rows, curves, self.stops, self.pad))
        self._add(*check_truncation(self.dump.rows, self.stops, self.pad))

    def _beta(self) -> float | None:
        """1/T that the tokens were sampled at, where the student is known to be the one that sampled them.

        What the sampler recorded decides, where it recorded anything: the trainer's own column says how the trainer
        scores, and not who sampled.
        """
        side = self.sides.get("sampler", self.sides.get("student"))
        names = {finding.name for finding in self.report.findings}
        stale = names & {"sampler_trainer_mismatch", "sampler_tokenizer_or_weights"}
        return 1 / self.temperature if side is not None and side.explained and not stale else None

    def _mismatch(self) -> None:
        if self._comparable():
            floor = self.sides["student"].values.get("bfloat16_noise") or 0.0
            off = mismatch_of(self.rows, self.clean)
            self._add(check_mismatch(self.rows, self.units, off, floor, self.exact))

    def _sampling(self, curves: Curves) -> None:
        if self._beta() is None:
            self._untold("sampling_temperature", "the student given is not known to be the one that sampled")
            return
        states, row_of = _states(self.rows, self.clean, curves)
        fitted = sampled_at(curves, states, row_of, self.temperature)
        if isinstance(fitted, NotChecked):
            self._add([], [fitted])
            return
        self.report.student |= {"sampled_at": fitted[0], "sampled_at_error": fitted[1]}
        wrong = check_sampling(fitted, self.temperature)
        prompts = any(finding.name == "prompt_in_mask" for finding in self.report.findings)
        if not prompts:
            self._add(wrong)
        if not wrong and not prompts and self.stops:
            self._add(check_lengths(self.rows, curves, self.stops))

    def _losses(self) -> None:
        tokens = tokens_of(self.rows, self.clean)
        if not len(tokens.row) or not (self.dump.has("losses") or self.dump.has("advantages")):
            self._untold("loss", "the dump has no losses and no advantages of single tokens beside both log-probs")
        else:
            for check in (check_losses, check_advantages):
                self._add(*spells(self.rows, tokens, self.units, self._dense, check))
        weighed = check_weights(self._whole(), self.rows)
        named = any(finding.name == "normalisation" for finding in self.report.findings)
        if weighed is not None and not named:
            self._add(*weighed)
        elif not named:
            self._add(*check_step_losses(self._whole(), self.rows))

    def _whole(self) -> Dump:
        """The dump as it was audited: steps are not whole where only some rows were."""
        return replace(self.dump, complete=self.dump.complete and len(self.rows) == len(self.dump.rows))

    def _dense(self, tokens: Tokens) -> Mapping[str, Reals]:
        """Estimators over whole distributions, computed once; none for a served teacher."""
        if self.teacher is None:
            return {}
        if self._estimates is None:
            betas = (self._fitted("student", "sampler"), self._fitted("teacher"))
            models = (self.student, self.teacher)
            found = dict(dense_estimators(*models, self.rows, tokens, betas))
            meant = 1 / self.temperature
            if max(abs(beta - meant) for beta in betas) > 0.01 * meant:  # the loss may have used what was meant
                at_T = dense_estimators(*models, self.rows, tokens, (meant, meant))
                found |= {f"{name}{AT_T}": values for name, values in at_T.items()}
            self._estimates = found
        return self._estimates

    def _fitted(self, *names: str) -> float:
        """1/T of a side, as it was found to be."""
        found = [self.sides[name].beta for name in names if name in self.sides]
        return next((beta for beta in found if np.isfinite(beta)), 1 / self.temperature)


def _states(rows: Sequence[Row], clean: Sequence[Mask], curves: Curves) -> tuple[Ints, Ints]:
    """The states that predict the sampled tokens, and the row of each."""
    places = [np.flatnonzero(mask) - 1 + curves.first[index] for index, mask in enumerate(clean)]
    row_of = [np.full(len(part), index) for index, part in enumerate(places)]
    return np.concatenate(places), np.concatenate(row_of)
