"""Numbers in responses and answers: every way of writing one, and what only looks like one."""

# ruff: noqa: RUF001 (signs of multiplication)

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.expressions import Number
from limbeck.tasks.graders import Numeric
from limbeck.tasks.numbers import UnreadableAnswer, last_number, read_answer


def prompt(answer: str) -> Prompt:
    return Prompt(id="p-1", token_ids=(1,), answer=answer)


# As answers they are one number, and as responses they end in it.
NUMBERS = [
    *[("72", "72"), ("-72", "-72"), ("+7", "7"), ("\u22127", "-7")],
    *[("007", "7"), ("3.", "3"), (".5", ".5"), ("-.5", "-.5")],
    *[("1,234.5", "1234.5"), ("1,234,567", "1234567")],
    *[("1{,}234", "1234"), (r"10,\!080", "10080"), (r"1\,234", "1234")],
    *[("1.5e-3", "0.0015"), ("2E3", "2000"), ("1e-05", "0.00001")],
    *[("$1,234.50", "1234.5"), ("-$5", "-5"), ("$-5", "-5")],
    *[(r"\$5", "5"), ("5€", "5"), ("£5", "5"), (r"$\$5$", "5")],
    *[("3/4", "3/4"), ("-3/4", "-3/4"), ("3 / 4", "3/4"), ("3/-4", "-3/4"), ("6/2", "3")],
    *[(r"\frac{3}{4}", "3/4"), (r"\dfrac{3}{4}", "3/4")],
    *[(r"\tfrac{3}{4}", "3/4"), (r"\frac34", "3/4"), (r"\frac3{4}", "3/4")],
    *[(r"-\frac{3}{4}", "-3/4"), (r"\frac{-3}{4}", "-3/4"), (r"\frac{3}{-4}", "-3/4")],
    *[(r"$\frac{3}{4}$", "3/4"), (r"\(\frac{3}{4}\)", "3/4")],
    *[(r"\boxed{\frac{3}{4}}", "3/4"), (r"\frac{1,000}{3}", "1000/3")],
    *[(r"\left(\frac{3}{4}\right)", "3/4"), (r"\frac {3} {4}", "3/4"), (r"\frac{0.5}{2}", "1/4")],
    *[("2 1/2", "5/2"), ("-2 1/2", "-5/2"), (r"2\frac{1}{2}", "5/2")],
    *[(r"-2\frac{1}{2}", "-5/2"), (r"2 \frac12", "5/2")],
    *[("½", "1/2"), ("2½", "5/2"), ("2 ½", "5/2"), ("-¾", "-3/4"), ("3⁄4", "3/4")],
    *[(r"3\times 10^{5}", "300000"), ("3×10^5", "300000")],
    *[("3 x 10^5", "300000"), ("3*10^5", "300000"), ("3 * 10^5", "300000")],
    *[(r"3 \cdot 10^{-2}", "0.03"), ("3·10⁵", "300000"), ("3×10⁻²", "0.03")],
    *[("3*10**5", "300000"), (r"-3.5\times10^2", "-350")],
    *[("10^3", "1000"), ("2^{10}", "1024"), ("10³", "1000"), ("10^{-2}", "0.01"), ("-2^2", "-4"), ("2**3", "8")],
    *[("1.5 million", "1500000"), ("2 hundred thousand", "200000")],
    *[("3 billion dollars", "3000000000"), ("1/2 million", "500000")],
    *[("72 apples", "72"), ("42 cm^2", "42"), ("42 m2", "42")],
    *[("7 km/h", "7"), ("5cm", "5"), ("42 cm²", "42"), ("90°", "90")],
    *[(r"90^\circ", "90"), (r"90^{\circ}", "90"), (r"72\text{ apples}", "72")],
    *[(r"5\,\mathrm{kg}", "5"), (r"18\,\text{cm}^2", "18"), ("72个", "72")],
    *[(r"\text{72}", "72"), ("**72**", "72"), ("*72*", "72"), ("(5)", "5")],
    *[("$72$", "72"), ("$$72$$", "72"), (r"\[72\]", "72")],
    *[(r"$- \frac{3}{4}$", "-3/4"), (r"x = -\$5", "-5")],
    *[("x = 5", "5"), ("x=-5", "-5"), ("x = - 5", "-5")],
    *[(r"$x = \frac{1}{2}$", "1/2"), ("48/2 = 24", "24")],
    *[("1,000 + 1 = 1,001", "1001")],
    *[(r"\pi \approx 3.14", "3.14"), ("2x = 10", "10"), ("f(2) = 5", "5")],
    *[("#### 72", "72"), ("48/2 = <<48/2=24>>24\n#### 72", "72")],
    *[("first 3, then 4\n#### -1,234", "-1234"), ("#### $5", "5")],
    *[("The answer is 72.", "72"), ("Final answer: 3/4", "3/4")],
    *[(r"First 3, so \boxed{72}", "72"), ("the answer is: $5", "5")],
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_an_answer_is_read_as_what_it_says_and_so_is_a_response(text, value):
    assert read_answer(text) == Number(Fraction(value))
    for response in (text, f"First 3, then 4. So {text}" if not text.startswith("=") else text, f"{text}\n"):
        assert last_number(response) == Number(Fraction(value)), response
        assert Numeric()(prompt(text), response) == 1.0


UNREADABLE = [
    *[r"\sqrt{2}", r"2\sqrt{2}", r"\sqrt2", "√2", "sqrt(2)"],
    *[r"\frac{\sqrt{2}}{2}", r"\frac{2}{\sqrt{3}}", r"\sqrt[3]{2}"],
    *[r"2\pi", "2π", r"\pi/2", r"\frac{\pi}{2}", r"\frac{2}{3}\pi", r"3\theta", "2pi"],
    *["1/2/3", "3/4^2", "2^3^2", "(-2)^2", r"\frac12^2", "2^{1/2}", "2^x"],
    *["-(5)", "(3)/4", "3:2", "12:30", "2024-01-05"],
    *["(1, 2)", "[1, 2)", "(1,2)", "1, 2", "1,2,3", r"\{1, 2\}", "1 and 2"],
    *["1 or 2", "1; 2", "3,14", "1\n2", "1 2", "5 to 7"],
    *["2x", "3i", "2x+1", "x+1", "x-7", "3 + 4i", "10-7", "5-7", "5 - 7"],
    *["3+4", "3\\times 4", "3 x 4", "3*4", "2(3)", "2k", "5!"],
    *["2 3/2", r"2\frac{3}{2}", r"1.5\frac12", r"\frac12\frac13"],
    *[r"\frac{1}{0}", r"\frac{1+2}{3}", r"\frac{1}{2}{3}"],
    *["x = 2, y = 3", "x = 2 or x = 3", r"x = \pm 5", r"\pm 5", "x > 5"],
    *["x >= 5", r"x \geq 5", "y = 2x + 5", "x != 5"],
    *["3 dozen", "3 halves", "twice 5", "minus 5", "half of 5", "about 72"],
    *["He has 72 apples", "5 or more", "5 squared"],
    *["0.333...", r"0.\overline{3}", "1.2.3", "log 5", r"\log 5", r"\ln{5}"],
    *[r"\binom{5}{2}", "5 mod 3", "f(5)", "x_2", "5 x"],
    *["", "none", "nan", "inf", "-inf", "Infinity", r"\infty", "\u0663"],
    *["two", r"\frac{a}{b}", r"\boxed{1} or \boxed{2}"],
    *["1e999", "1/0", "0/0", "9" * 5000, "1e" + "9" * 5000],
    *["1/" + "9" * 5000, "10^{999}", "10^" + "9" * 5000, "0^{-1}"],
    *["5_{10}", "|-3|", r"\left|-3\right|", "5 000", "1 234 567", "5 x 6", "5(x)", "/5", "C$5", "4!"],
    *["- 5", "5 M", "1.5 k", "18'000", "18_000", "5'10"],
]  # fmt: skip


@pytest.mark.parametrize("answer", UNREADABLE)
def test_an_answer_that_is_not_one_number_is_refused_with_the_remedy(answer):
    with pytest.raises(UnreadableAnswer):
        read_answer(answer)
    with pytest.raises(DataError, match=r"task\.grader\.kind = \"math_verify\"") as caught:
        Numeric().check(prompt(answer))
    assert "'p-1'" in str(caught.value)


@pytest.mark.parametrize(
    "response",
    [
        *[r"so \sqrt{2}", r"it is $2\pi$.", "2π", r"\frac{\pi}{2}"],
        *[r"\frac{2}{\sqrt{3}}", "1/2/3", "3:2", "at 12:30", "2x", "x^2"],
        *["2x + 2", "x-2", "(a)-2", "1-2", "1 - 2", "1 + 2", r"1 \times 2"],
        *["2 * 2", "2(2)", "(1, 2)", "[2, 2)", r"\pm 2", "-(2)"],
        *["2/x", "2^x", "2^{1/2}", "(x+2)^2", r"\log 2", "sqrt(2)", "f(2)"],
        *["2i", r"2\frac{3}{2}", "2024-02-02", "1.2.2", "2 x"],
    ],
)  # fmt: skip
def test_a_response_whose_last_expression_is_no_number_is_not_its_last_digit(response):
    assert last_number(response) is None
    assert Numeric()(prompt("2"), response) == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("first 3, then 72.", "72"), ("so it is **72**.", "72"), ("it costs $1,234.50!", "1234.5"), ("(-7)", "-7")],
        *[("so...5", "5"), ("1,2,3", "3"), ("12,34", "34")],
        *[("1,2345", "2345"), ("1234,567", "567"), ("x2 and 5", "5")],
        *[
            ("1/3 of it", "1/3"),
            ("答案是42", "42"),
            ("covid-19", "19"),
            ("the 72-year-old", "72"),
            ("Answer - 72", "72"),
        ],
        *[
            ("- 72", "72"),
            ("The answer is - 72.", "-72"),
            ("it equals - 1/2", "-1/2"),
            ("minus 5", "-5"),
            ("**Answer:** minus $5", "-5"),
            ("it is minus 5", "-5"),
            ("8 minus 3 is 5", "5"),
            ("I have 5 - that is all", "5"),
            ("negative 5", "-5"),
            ("72 (apples)", "72"),
            ("a day: 72", "72"),
        ],
        *[
            ("A) 72", "72"),
            ("x > 5", "5"),
            ("5 or more", "5"),
            ("He has 72 apples and that is it.", "72"),
            ("2 is x", "2"),
        ],
        *[
            ("3 dozen", "3"),
            ("5 quarters", "5"),
            ("{5}", "5"),
            ("| 5 |", "5"),
            ("72 \\quad \\blacksquare", "72"),
            ("72\\end{align}", "72"),
        ],
    ],
)
def test_a_response_may_say_more_than_an_answer(text, number):
    assert last_number(text) == Number(Fraction(number))


def test_percent_is_a_unit_or_a_hundredth_whichever_the_other_side_means():
    assert (
        read_answer("50%")
        == read_answer(r"50\%")
        == last_number("it is 50 percent.")
        == Number(Fraction(50), percent=True)
    )
    for answer in ("50%", r"$50\%$"):
        assert [Numeric()(prompt(answer), r) for r in ("50%", "50", "0.5", "1/2")] == [1.0] * 4
        assert [Numeric()(prompt(answer), r) for r in ("0.5%", "5000", "5")] == [0.0] * 3
    assert [Numeric()(prompt("0.5"), r) for r in ("50%", "0.5", "50", "5%")] == [1.0, 1.0, 0.0, 0.0]


@given(st.text() | st.text("0123456789.,+-eE/$^ \n\u2212()[]{}\\×%x½²") | st.text("1,.e^(", min_size=60))
def test_no_text_crashes_the_parser(text):
    number = last_number(text)
    assert number is None or isinstance(number, Number)


@given(
    st.lists(st.sampled_from([t for t, _ in NUMBERS] + UNREADABLE[:90] + [" ", "=", "\\frac", "{", "}"]), max_size=4)
)
def test_an_answer_that_is_accepted_is_right_as_a_response(parts):
    answer = "".join(parts)
    try:
        expected = read_answer(answer)
    except UnreadableAnswer:
        return
    if "####" not in answer and "boxed" not in answer and "answer" not in answer:
        assert last_number(answer) == expected
    assert last_number(f"{expected.value}") == Number(expected.value)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=4),
    st.sampled_from(["{}", "{:f}", "{:,}", "{:e}", "{:+}", "{:+,.6f}"]),
    st.sampled_from(["{}", "it is {}.", "1 + 2 = 3, so {}", "${}$", r"\boxed{{{}}}", "{} apples", "\n{}\n"]),
)
def test_a_number_is_read_exactly_in_every_notation(value, notation, sentence):
    assert last_number(sentence.format(notation.format(value))) == Number(Fraction(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back_from_its_repr(value):
    number = last_number(f"about {value!r}")
    assert number is not None
    assert float(number.value) == value


@pytest.mark.parametrize(
    "piece", ["\\frac{", "(", "1,", "1 ", "2^", "x-", "\\sqrt{", "1/", "{", "((1,", "1 million ", "9", "-", "a("]
)
def test_long_text_is_read_in_linear_time(piece):
    start = time.monotonic()
    last_number(piece * (60_000 // len(piece)))
    assert time.monotonic() - start < 10, "seconds; quadratic would be minutes"


@pytest.mark.parametrize("text", ["8 minus 3", "x minus 3", "(8) minus 3", "50% minus 3", "the cost minus 3"])
def test_what_is_left_after_minus_is_not_what_is_taken_away(text: str) -> None:
    assert last_number(text) is None
