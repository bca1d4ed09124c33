"""What an audit found: values first, then one page of text or JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from limbeck.audit.dump import Row
from limbeck.formatting import number

Value: TypeAlias = float | int | str


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. `measured` and `expected` are numbers where it is a number."""

    name: str  # "teacher_temperature"
    measured: Value  # 1.0
    expected: Value  # 0.7
    text: str  # what was seen, with its number and unit: one sentence
    cause: str
    remedy: str
    since_step: int | None = None  # None: from the first one on, or the dump has no steps
    since_row: int | None = None  # from 0; None: from the first one on

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class NotChecked:
    """Something that this dump does not show."""

    name: str
    why: str


@dataclass
class Report:
    """The whole result. `student` and `teacher` have at least `temperature`, None where the dump does not show it."""

    dump: str
    temperature: float
    rows: int
    tokens: int
    student: dict[str, Any] = field(default_factory=lambda: {"temperature": None})
    teacher: dict[str, Any] = field(default_factory=lambda: {"temperature": None})
    findings: list[Finding] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how the dump was read, where a reader may expect otherwise

    @property
    def checked(self) -> bool:
        """Whether anything at all was compared."""
        return bool(self.findings) or "tokens" in self.student or "tokens" in self.teacher

    def as_json(self) -> dict[str, Any]:
        return {
            "dump": self.dump,
            "rows": self.rows,
            "tokens": self.tokens,
            "expected_temperature": self.temperature,
            "student": _finite(self.student),
            "teacher": _finite(self.teacher),
            "checked": self.checked,
            "notes": self.notes,
            "findings": [_finite(finding.as_json()) for finding in self.findings],
            "not_checked": [vars(item) for item in self.not_checked],
        }


def since(rows: Sequence[Row], first: int) -> dict[str, int | None]:
    """`since_step` and `since_row` of a finding that begins with row `first`."""
    if first == 0:
        return {"since_step": None, "since_row": None}
    return {"since_step": rows[first].step, "since_row": rows[first].index}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: None stands for what could not be measured."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def page(report: Report) -> str:
    """One page of plain text."""
    lines = [
        f"{report.dump}: {report.rows:,} rows, {report.tokens:,} trained tokens, T = {report.temperature:g} expected",
        "",
        _side("student", report.student),
        _side("teacher", report.teacher),
        "",
    ]
    if not report.findings:
        lines.append("No finding." if report.checked else "Nothing could be checked: this is no all-clear.")
    for place, finding in enumerate(report.findings, start=1):
        lines += [
            f"{place}. {finding.name}{_when(finding)}",
            f"   {finding.text}",
            f"   measured {_shown(finding.measured)}, expected {_shown(finding.expected)}",
            f"   Likely cause: {finding.cause}",
            f"   Remedy: {finding.remedy}",
        ]
    if report.notes:
        lines += ["", *report.notes]
    if report.not_checked:
        lines += ["", "Not checked:"]
        lines += [f"  {item.name}: {item.why}" for item in report.not_checked]
    return "\n".join(lines)


def _side(name: str, side: Mapping[str, Any]) -> str:
    temperature = side.get("temperature")
    if temperature is None:
        return f"{name}: the dump does not show at which temperature it was scored"
    text = f"{name}: scored at T = {temperature:.4f} ± {number(side.get('temperature_error'))}"
    residual, mismatch = side.get("residual"), side.get("sampler_mismatch")
    if residual is not None:
        text += f", {number(residual)} nats a token from what we compute"
    return text if mismatch is None else f"{text}, {number(mismatch)} from the sampler's"


def _when(finding: Finding) -> str:
    if finding.since_step is not None:
        return f" (from step {finding.since_step} on)"
    return "" if finding.since_row is None else f" (from row {finding.since_row} on)"


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
