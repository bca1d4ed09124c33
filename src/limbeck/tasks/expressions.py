r"""The expressions in a text: which of its numbers belong together, and what they say together.

    list(expressions(plain(r"$2\frac{1}{2}$ of 3x")))     [2 1/2 -> Number(5/2), 3x -> None]      (`spellings.plain`)

Each is taken as far as it goes: a sum, a root or a variable makes one expression that is no number, instead of
leaving its last digits for one.
"""

# ruff: noqa: RUF001 (it is about such characters)

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Number:
    """A number as it is written. `percent`: with a percent sign, so that 50 % is `Number(50, percent=True)`."""

    value: Fraction
    percent: bool = False


@dataclass(frozen=True)
class Expression:
    """One expression in a text that `plain` has made plain. `number` is None where it is not one finite number."""

    start: int
    end: int
    number: Number | None


class _NotANumberError(Exception):
    """What is being read is an expression, but not one finite number."""


LONGEST = 400  # digits, and powers of ten: about the range of a float. Hostile text ends here

# What may stand right behind the digits and leaves them a number: 5cm. Other letters are variables: 5x.
UNITS_OF_ONE_LETTER = frozenset("mgshlLJNVWAKCF")
_UNITS = """
    mm cm dm km mg kg lb lbs oz ft in yd mi ml cl dl hr hrs min mins sec secs ms kb mb gb kw kwh mph kmh kph rpm hz khz
    mhz ghz pa kpa st nd rd th usd eur gbp pm am px pts
"""
UNITS = frozenset(_UNITS.split())


def group_at(text: str, start: int) -> str:
    """The bracketed group at `start`, brackets included; what does not close within 200 characters is the bracket."""
    depth = 0
    for position in range(start, min(len(text), start + 200)):
        depth += (text[position] in "({[") - (text[position] in ")}]")
        if not depth:
            return text[start : position + 1]
    return text[start]


# Where an expression begins, goes on and breaks. A digit right behind a letter belongs to a word (x2, m^2); a comma
# groups thousands only before exactly three digits.

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![.0-9])\.[0-9]+"
_FUNCTIONS = (
    r"\\(?:sqrt|log|ln|lg|sin|cos|tan|exp|binom|mp|infty|lfloor|lceil|sum|prod|int|lim|max|min|gcd|bmod|pmod|bar|overline|"
    r"alpha|beta|gamma|delta|theta|phi|lambda|mu|sigma|omega|varphi)(?![A-Za-z])|[\u0370-\u03ff∞√±]"
)
_START = re.compile(
    rf"""
      (?P<function> (?:{_FUNCTIONS}) (?:[ \t]*(?=[0-9({{\\]))? )
    | (?P<call> (?<![A-Za-z]) (?:sqrt|log|ln|sin|cos|tan|exp|abs|floor|ceil|max|min|gcd|lcm|[A-Za-z]) (?=\() )
    | (?P<fraction> \\frac(?![A-Za-z]) )
    | \\[A-Za-z]+
    | (?P<word> [A-Za-z_]+ (?: [0-9_]+(?:\.[0-9]+)* | \}}?\^\{{?-?[0-9]+\}}? | _\{{[^{{}}\n]{{0,40}}\}} )* )
    | (?P<several> [(\[] (?=[^()\[\]\n]{{0,200}} ,(?![0-9]{{3}}(?![0-9])))
                   (?:[^()\[\]A-Za-z\n]|\\[a-z]+){{1,200}} [)\]] )
    | (?P<spaced> (?<![0-9.,]) [0-9]{{1,3}} (?:[ ][0-9]{{3}})+ (?![0-9]) )  # 1 234: one number, or two?
    | (?P<number> {_DIGITS} )
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(
    rf"(?P<sign>[-+]\s?)?[$€£¥₹]?\s?(?P<inner>[-+])?(?P<digits>{_DIGITS})(?:[eE](?P<exponent>[-+]?[0-9]+)(?![A-Za-z0-9]))?"
)
_FRACTION = re.compile(r"(?P<sign>[-+]\s?)?[$€£¥₹]?\\frac(?![A-Za-z])\s*")
_SIGN_BEFORE = re.compile(r"(?:[-+] ?)?(?:[$€£¥₹] ?)?[-+]?$")
_NEGATIVE_BEFORE = re.compile(r"(?<![A-Za-z])(?:negative|(?P<minus>minus))\s+$", re.IGNORECASE)
_SAYS = re.compile(r"(?<![A-Za-z])(?:is|be|was|equals|gives|becomes)$", re.IGNORECASE)  # a sign may follow, no operand
_OPERATOR_GLUED = re.compile(r"[-+×/^](?=[0-9({\\])")
_POWER = re.compile(r"\s?\^\s?(?:\{\s*(?P<braced>[-+]?[0-9]+)\s*\}|(?P<bare>[-+]?[0-9]+))")
_TIMES = re.compile(r"[ \t]*(?:×|[xX](?=[ \t]*[0-9.]))[ \t]*")
_TEN = re.compile(r"10(?![0-9.,])")
_OVER = re.compile(r"[ \t]*/[ \t]*(?=[-+]?[0-9.])")
_MIXED = re.compile(r"[ \t]+(?P<top>[0-9]+)[ \t]*/[ \t]*(?P<bottom>[0-9]+)(?![0-9./])")
_MIXED_LATEX = re.compile(r"[ \t]*(?=\\frac(?![A-Za-z]))")
_MAGNITUDE = re.compile(r"[ \t-]?[ \t]*(hundred|thousand|million|billion|trillion)(?![A-Za-z])", re.IGNORECASE)
_MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PERCENT = re.compile(r"[ \t]?(?:%|percent(?![A-Za-z])|per cent(?![A-Za-z]))")
_BREAKS = re.compile(
    rf"""
      [ \t]?\^                                                # another power than a whole one
    | [ \t]*(?:{_FUNCTIONS}) | [ \t]*[xyz](?![A-Za-z0-9])     # 2π, 2√3, 2 x
    | [ \t]*[-+±][ \t]*(?=[0-9.(\\$€£]|[A-Za-z](?![A-Za-z]))  # a sum, a range, a date
    | [ \t]*×[ \t]*(?=\S)                                     # a product
    | [ \t]*/[ \t]*(?=[0-9(\\]|(?![mghlsd])[A-Za-z](?![A-Za-z])) | [ \t]*(?=\\frac(?![A-Za-z]))  # another fraction
    | [:'’](?=[0-9]) | _(?=[0-9{{]) | \.[0-9]+ | \.?\\(?:overline|bar|dot)  # a ratio or a time, a version, a period
    | [ ]?\\[lc]?dots(?![A-Za-z])
    | \((?=[^()\n]{{0,40}}[0-9+×^]|[A-Za-z]\))              # 2(3), 2(x)
    | [)\]}}]+[ \t]*[\^/×π] | [)\]}}]+[-+](?=[0-9(])          # (2)/3
    """,
    re.VERBOSE,
)
_GOES_ON = re.compile(r"\.\.|…")  # 0.333..., where digits follow the point
_GLUED = re.compile(r"(?P<letters>[A-Za-z]+)[0-9]*")
_REST = re.compile(
    rf"(?:{_DIGITS})|\.[0-9]+|[A-Za-z](?![A-Za-z])|{_FUNCTIONS}|\\frac"
    r"|[-+×/^:'’_](?=[ \t]*[0-9({\\.$]|[A-Za-z](?![A-Za-z]))"
    r"|[ \t]+(?=[-+×/][ \t]*[0-9({\\])|(?<=[-+×/])[ \t]+(?=[0-9({\\])"
)


def expressions(text: str) -> Iterator[Expression]:
    """The expressions of a plain text, in order."""
    position = 0
    while match := _START.search(text, position):
        start, position = match.start(), match.end()
        kind = match.lastgroup
        if kind in ("number", "fraction"):
            expression = _read(text, _with_sign(text, start))
        elif kind in ("function", "call", "several", "spaced"):
            expression = _rest(text, start, position)
        elif kind == "word" and len(match[0]) == 1 and _OPERATOR_GLUED.match(text, position):
            expression = _rest(text, start, position)  # x-7 is an expression, covid-19 is none
        else:
            continue
        yield expression
        position = max(position, expression.end)


def _with_sign(text: str, start: int) -> int:
    """Where a number begins that has its digits, or its \\frac, at `start`: its sign and currency belong to it."""
    match = _SIGN_BEFORE.search(text[max(0, start - 5) : start])
    assert match is not None  # it may be empty
    found, begin = match[0], start - len(match[0])
    if found[:1] in ("-", "+"):
        spaced = found[1:2] == " "
        operand = text[max(0, begin - 1) : begin].isalnum()
        before = text[max(0, begin - 9) : begin]
        bare = before.rstrip(" $")
        is_sign = before.endswith("$") or bare[-1:] in ("=", "(", "{", "[") or bool(_SAYS.search(bare))
        if operand or (spaced and not is_sign):
            return start if spaced or len(found) == 1 else begin + 1  # a hyphen or a dash
    return begin


def _read(text: str, start: int) -> Expression:
    """The expression that begins with the number or \\frac at `start`."""
    reading = _Reading(text, start)
    try:
        number = reading.read()
        return Expression(start, reading.position, number)
    except _NotANumberError:
        return _rest(text, start, max(reading.position, start + 1))


def _rest(text: str, start: int, position: int) -> Expression:
    """An expression that is no number: as far from `position` as operators, numbers and groups go on."""
    while position < len(text):
        if text[position] in "({[":
            position += len(group_at(text, position))
        elif match := _REST.match(text, position):
            position = max(match.end(), position + 1)
        else:
            break
    return Expression(start, position, None)


class _Reading:
    """Reads one number as far as it goes. Raises `_NotANumberError` where it is part of something else."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start, self.position = text, start, start
        self.kind = ""  # "integer", "decimal", "fraction", "power", "scaled" or "percent"
        self.negative = False

    def read(self) -> Number:
        value = self._term()
        self._check_before()
        while (continued := self._continued(value)) is not None:
            value = continued
        decimal_goes_on = self.kind == "decimal" and _GOES_ON.match(self.text, self.position)
        if decimal_goes_on or _BREAKS.match(self.text, self.position) or self._is_variable():
            raise _NotANumberError
        if self.text[self.start - 1 : self.start] == "|" and self.text[self.position : self.position + 1] == "|":
            raise _NotANumberError  # |-3|; in a table there are spaces
        if match := _NEGATIVE_BEFORE.search(self.text[max(0, self.start - 12) : self.start]):
            if match["minus"]:
                self._check_is_sign(self.start - len(match[0]))
            value = -value
        return Number(value, percent=self.kind == "percent")

    def _check_before(self) -> None:
        """An operator before it takes what follows as its second operand."""
        before = self.text[max(0, self.start - 9) : self.start].rstrip(" \t$")
        operator = before.rstrip(" \t({[$")[-1:]
        if operator and (operator in "×/^" or (operator in "-+" and before[-1:] in ("(", "{", "["))):
            raise _NotANumberError
        if self.text[self.start] in "-+" and self.text[max(0, self.start - 1) : self.start] in (")", "]", "}"):
            raise _NotANumberError

    def _check_is_sign(self, minus: int) -> None:
        """The word "minus" at this place takes something from what stands before, unless nothing does."""
        before = self.text[max(0, minus - 12) : minus].rstrip()
        if before and (before[-1].isalnum() or before[-1] in ")]}%") and not _SAYS.search(before):
            raise _NotANumberError

    def _continued(self, value: Fraction) -> Fraction | None:
        """The value with what follows taken in, or None where nothing follows that belongs to a number."""
        text, here = self.text, self.position
        if self.kind in ("integer", "decimal"):
            if match := _POWER.match(text, here):
                self.kind, self.position = "power", match.end()
                return _power(value, match["braced"] or match["bare"])
            if match := _TIMES.match(text, here):
                return value * self._power_of_ten(match.end())
            if match := _OVER.match(text, here):
                self.position = match.end()
                below = self._term()
                self.kind = "fraction"
                if not below:
                    raise _NotANumberError
                return value / below
        if self.kind == "integer" and (match := _MIXED.match(text, here)):
            self.kind, self.position = "fraction", match.end()
            return _mixed(value, _whole(match["top"]), _whole(match["bottom"]), self.negative)
        if self.kind == "integer" and (match := _MIXED_LATEX.match(text, here)):
            negative, self.position = self.negative, match.end()
            part = self._term()
            return _mixed(value, part.numerator, part.denominator, negative)
        if match := _MAGNITUDE.match(text, here):
            self.kind, self.position = "scaled", match.end()
            if abs(value.numerator).bit_length() > 4 * LONGEST:
                raise _NotANumberError
            return value * _MAGNITUDES[match[1].lower()]
        if self.kind != "percent" and (match := _PERCENT.match(text, here)):
            self.kind, self.position = "percent", match.end()
            return value
        return None

    def _power_of_ten(self, position: int) -> Fraction:
        """The one at `position`: of all products, only those with a power of ten are numbers."""
        ten = _TEN.match(self.text, position)
        power = ten and _POWER.match(self.text, ten.end())
        if not power:
            self.position = position
            raise _NotANumberError
        self.kind, self.position = "power", power.end()
        return _power(Fraction(10), power["braced"] or power["bare"])

    def _term(self) -> Fraction:
        """The number or \\frac at the position, which moves behind it."""
        if match := _FRACTION.match(self.text, self.position):
            self.negative = (match["sign"] or "").startswith("-")
            self.kind, self.position = "fraction", match.end()
            top, bottom = self._argument(), self._argument()
            if not bottom:
                raise _NotANumberError
            return -top / bottom if self.negative else top / bottom
        match = _NUMBER.match(self.text, self.position)
        if match is None:
            raise _NotANumberError
        self.position = match.end()
        self.negative = (match["sign"] or match["inner"] or "").startswith("-")
        digits, exponent = match["digits"].replace(",", ""), match["exponent"]
        self.kind = "integer" if digits.isdigit() and exponent is None else "decimal"
        power = _whole(exponent or "0")
        if len(digits) > LONGEST or abs(power) > LONGEST:
            raise _NotANumberError
        value = Fraction(digits) * Fraction(10) ** power
        return -value if self.negative else value

    def _argument(self) -> Fraction:
        """One argument of \\frac: a group that is one number, or a single digit."""
        while self.text[self.position : self.position + 1] in (" ", "\t"):
            self.position += 1
        opening = self.text[self.position : self.position + 1]
        if opening and opening in "0123456789":
            self.position += 1
            return Fraction(opening)
        if opening != "{":
            raise _NotANumberError
        group = group_at(self.text, self.position)
        self.position += len(group)
        inside = group[1:-1]
        found = list(expressions(inside))
        if len(found) != 1 or found[0].number is None or found[0].number.percent:
            raise _NotANumberError
        if (inside[: found[0].start] + inside[found[0].end :]).strip(" \t{}$"):
            raise _NotANumberError
        return found[0].number.value

    def _is_variable(self) -> bool:
        """Whether letters right behind the number are not a unit: 2x, 3i."""
        match = _GLUED.match(self.text, self.position)
        if match is None:
            return False
        return match["letters"].lower() not in UNITS and match["letters"] not in UNITS_OF_ONE_LETTER


def _power(base: Fraction, digits: str) -> Fraction:
    """-2^2 is -4: a sign does not belong to the base."""
    exponent = _whole(digits)
    length = len(str(abs(base.numerator))) + len(str(base.denominator))
    if abs(exponent) * (length - 1) > LONGEST or (not base and exponent < 0):
        raise _NotANumberError
    return -((-base) ** exponent) if base < 0 else base**exponent


def _mixed(whole: Fraction, top: int, bottom: int, negative: bool) -> Fraction:
    """2 1/2. An improper fraction behind a whole number is something else."""
    if not 0 < top < bottom:
        raise _NotANumberError
    part = Fraction(top, bottom)
    return whole - part if negative else whole + part


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise _NotANumberError
    return int(digits)
