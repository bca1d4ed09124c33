r"""Numbers as people and models write them, read exactly; what is not one number is not read at all.

    last_number("so 3 + 4 = 7.")            Number(7)
    last_number(r"\boxed{-\frac{3}{4}}")    Number(-3/4)
    last_number("2 1/2 million")            Number(2500000)
    last_number(r"it is 2\sqrt{3}")         None: not 2, and not 3
    read_answer("... #### 1,234")           Number(1234)
    read_answer("(1, 2)")                   UnreadableAnswer

A response is read by its last expression, whatever is before it. An answer of a data set must be one number as a
whole, a unit aside. Both are read by the same rules, so an answer that is accepted is right as a response.
"""

from __future__ import annotations

import re
from collections import deque

from limbeck.tasks.expressions import UNITS_OF_ONE_LETTER, Number, expressions, group_at
from limbeck.tasks.spellings import plain

LONGEST_ANSWER = 10_000  # characters, of what follows the last `####` where there is one


class UnreadableAnswer(ValueError):  # noqa: N818 (what it is, not what went wrong)
    """An answer that is not one number. The message says what was read."""


def last_number(text: str) -> Number | None:
    r"""What the last expression of a text says; None where there is none or it is not one finite number.

    Reads 7, -7, .5, 1,234.5, 1{,}234, $5, 1.5e-3, 3/4, 2 1/2, 2½, \frac{3}{4}, 3\times 10^{5}, 10^3, 50% and
    1.5 million. Sums, products, roots, dates, ratios and variables are not read. A decimal comma is not either: "3,14"
    ends in 14. A number of more than 400 digits, or over zero, counts as not finite.
    """
    last = deque(expressions(plain(text)), maxlen=1)
    return last[0].number if last else None


def read_answer(answer: str) -> Number:
    r"""The number that an answer is: after the last `####`, in its `\boxed{}`, after "answer is", or all of it.

    A left-hand side (x = 5) and a unit (72 apples) may stand beside it. Raises `UnreadableAnswer` for anything else.
    """
    conclusion = _conclusion(answer)
    if len(conclusion) > LONGEST_ANSWER:
        raise UnreadableAnswer(f"it has {len(conclusion):,} characters, expected at most {LONGEST_ANSWER:,}")
    text = plain(conclusion)
    left, equals, _ = text.rpartition("=")
    right = len(left + equals)
    if equals and (_SEVERAL.search(_THOUSANDS.sub("", left)) or left.endswith(("<", ">", "!"))):
        raise UnreadableAnswer("it says several things")
    found = [expression for expression in expressions(text) if expression.end > right]
    if len(found) != 1:
        raise UnreadableAnswer(f"it has {len(found) or 'no'} numbers")
    [expression] = found
    if expression.number is None or expression.start < right:
        raise UnreadableAnswer(f"{text[expression.start : expression.end].strip()!r} is not one finite number")
    before, after = text[right : expression.start].strip(_AROUND), text[expression.end :].strip(_AROUND)
    if before or not all(_is_unit(word) for word in _WORDS.findall(after)):
        raise UnreadableAnswer(f"{(before or after)!r} is beside the number")
    return expression.number


def _conclusion(answer: str) -> str:
    if "####" in answer:
        return answer.rpartition("####")[2]
    boxed = {group_at(answer, match.end()) for match in re.finditer(r"\\(?:boxed|fbox)\s*(?=\{)", answer)}
    if len(boxed) > 1:
        raise UnreadableAnswer(r"it has several different \boxed{}")
    if boxed:
        return boxed.pop()[1:-1]
    return re.split(r"\banswer(?:\s+is\b\s*:?|\s*:)", answer, flags=re.IGNORECASE)[-1]


_AROUND = " \t\n\r$€£¥₹(){}[]*_\"'`."
_THOUSANDS = re.compile(r",(?=[0-9]{3}(?![0-9]))")
_SEVERAL = re.compile(r"[,;<>≤≥≠±]|\b(?:and|or)\b|\\(?:leq?|geq?|neq?|lt|gt|in|pm|mp)(?![A-Za-z])")
_WORDS = re.compile(r"[^\W\d_]+(?:\}?\^\{?-?[0-9]+\}?|[23](?![0-9]))?|\S")
# Words that say another number, or that something else follows.
_OTHER_NUMBERS = """
    dozen dozens half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths
    eighth eighths ninth ninths tenth tenths twelfth twelfths hundredth hundredths thousandth thousandths tens hundreds
    thousands millions billions score gross pair pairs couple lakh lakhs crore crores bn mn mil mio k squared cubed
    factorial root roots times plus minus over divided mod modulo pi sqrt log ln sin cos tan exp and or to not less
    more than between either if except negative infinity nan choose
"""
_NOT_UNITS = frozenset(_OTHER_NUMBERS.split())


def _is_unit(word: str) -> bool:
    if len(word) == 1 and word.isascii():
        return word in UNITS_OF_ONE_LETTER or word in "/°%$(){}[].*-"
    return (
        word.lower() not in _NOT_UNITS
        and (word[0].isalpha() or word in "°€£¥₹")
        and not "\u0370" <= word[0] <= "\u03ff"
    )
