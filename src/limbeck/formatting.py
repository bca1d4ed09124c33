"""Numbers as people read them: the one way in which tables, panels and messages show them."""

from __future__ import annotations

import math
import reprlib

ROUNDING_NOISE = 1e-7  # float32 resolves no more: what is smaller is 0 with a rounding error


def number(value: float | None, digits: int = 4) -> str:
    """A number in the units of its column, with `digits` decimals, fewer where it is large. None is a dash.

    >>> [number(x) for x in (0.12345, -0.00001, 6.9e-18, 6e-06, 1234.5, 12, None)]
    ['0.1235', '0.0000', '0.0000', '<0.0001', '1,234', '12', '-']
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if isinstance(value, int):
        return f"{value:,}"
    if ROUNDING_NOISE < value < 0.5 * 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    decimals = 0 if size >= 1000 else min(digits, 1) if size >= 100 else min(digits, 2) if size >= 10 else digits
    return _without_minus_zero(f"{value:,.{decimals}f}")


def significant(value: float | None, digits: int = 3) -> str:
    """A number whose size is not known beforehand, such as a learning rate: `digits` digits that count.

    >>> [significant(x) for x in (0.0, 5e-05, 0.00025, 1234567.0)]
    ['0', '5e-05', '0.00025', '1.23e+06']
    """
    return "-" if value is None else _without_minus_zero(f"{value:.{digits}g}")


def with_error(value: float | None, error: float | None, digits: int = 4) -> str:
    """`0.1234 ± 0.0021`; the number alone where there is no error."""
    return number(value, digits) + (f" ± {number(error, digits)}" if error is not None else "")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """`[0.402, 0.561]`; nothing where there is none."""
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def duration(seconds: float) -> str:
    """`0.7 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    rounded = round(seconds)
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Bytes in the units that memory is sold in: `131 GB`, `4.1 GB`, `97 MB`, `0 MB`.

    >>> [size(x) for x in (131_051_765_760, 4_096_000_000, 97_000_000, 10_000)]
    ['131 GB', '4.1 GB', '97 MB', '0 MB']
    """
    gigabytes = count / 1e9
    if gigabytes < 0.9995:
        return f"{count / 1e6:.0f} MB"
    return f"{gigabytes:,.0f} GB" if gigabytes >= 99.95 else f"{gigabytes:.1f} GB"


def counted(count: int, what: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def _without_minus_zero(text: str) -> str:
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text


def shown(value: object, most: int = 80) -> str:
    """A value in a message, cut where it is long: bounded in time and size for whatever value it is.

    >>> shown("a" * 100, 10), shown(10**9), shown(10**400), shown([[1, 2]] * 90, 10)
    ("'aaaaa...'", '1000000000', 'an integer of 1329 bits', '[[1, 2]...')
    """
    if isinstance(value, str | bytes):
        text = repr(value[: most + 1])
        return text if len(text) <= most else f"{text[: most - 4]}...{text[-1]}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = _SHORT.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


class _Short(reprlib.Repr):
    """Cuts what is long and what is deep before it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother, self.maxstring, self.maxdict = 4, 100, 100, 20
        self.maxlist = self.maxtuple = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else "..."


_SHORT = _Short()
