"""Graders: every form of a right answer, near misses, and hostile text."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from limbeck.config.task import RegexGraderConfig
from limbeck.errors import DataError, RecipeError
from limbeck.records import Prompt
from limbeck.tasks.graders import Exact, Numeric, PythonFunction, Regex
from limbeck.tasks.math_verify import MathVerify
from limbeck.tasks.math_verify_worker import _reply


def prompt(answer: str | None) -> Prompt:
    return Prompt(id="p-1", token_ids=(1,), answer=answer)


# Exact


def test_exact_ignores_white_space_around_and_case_where_asked():
    assert Exact()(prompt("Paris"), "  Paris\n") == 1.0
    assert Exact()(prompt(" Paris"), "Paris") == 1.0
    assert Exact()(prompt("Paris"), "paris") == 0.0
    assert Exact()(prompt("Paris"), "It is Paris") == 0.0
    assert Exact(ignore_case=True)(prompt("Straße"), "STRASSE") == 1.0


# Numeric; how numbers are read is in test_numbers.py


def test_numbers_are_compared_within_a_tolerance_relative_to_the_answer_or_one():
    assert Numeric(tolerance=1e-6)(prompt("1/3"), "0.3333333") == 1.0
    assert Numeric(tolerance=1e-6)(prompt("1/3"), "0.333") == 0.0
    assert Numeric()(prompt("1234567"), "1234568") == 0.0
    assert Numeric(tolerance=0.01)(prompt("1000"), "1010") == 1.0
    assert Numeric(tolerance=0.01)(prompt("1000"), "1011") == 0.0
    assert Numeric(tolerance=0.01)(prompt("-1000"), "-990") == 1.0
    assert Numeric(tolerance=0.01)(prompt("-1000"), "1000") == 0.0
    assert Numeric(tolerance=0.01)(prompt("0"), "0.01") == 1.0
    assert Numeric(tolerance=0.01)(prompt("0"), "0.01" + "0" * 30 + "1") == 0.0


def test_tolerance_zero_is_exact_beyond_the_precision_of_floats():
    assert Numeric(tolerance=0)(prompt("9007199254740993"), "9007199254740993") == 1.0
    assert Numeric(tolerance=0)(prompt("9007199254740993"), "9007199254740992") == 0.0
    assert Numeric(tolerance=0)(prompt("0.3"), "3/10") == 1.0


def test_a_worked_answer_counts_by_its_last_number():
    assert Numeric()(prompt("48/2 = <<48/2=24>>24\n#### 72"), "The answer is 72.") == 1.0


# Regex


def test_regex_takes_the_first_group_of_the_last_match():
    grade = Regex(r"answer is (\w+)")
    assert grade(prompt("B"), "the answer is A. No, the answer is B!") == 1.0
    assert grade(prompt("A"), "the answer is A. No, the answer is B!") == 0.0
    assert grade(prompt("B"), "B") == 0.0
    assert grade(prompt("b"), "the answer is B") == 0.0
    assert Regex(r"answer is ([a-d])", ignore_case=True)(prompt("b"), "THE ANSWER IS B") == 1.0


def test_a_group_that_took_no_part_in_the_match_is_wrong():
    pattern = RegexGraderConfig(pattern=r"(?:answer (\d)|nothing)").pattern
    assert Regex(pattern)(prompt("1"), "answer 1, or nothing") == 0.0


@pytest.mark.parametrize("grade", [Exact(), Numeric(), Regex("(.)")])
def test_without_an_answer_nothing_is_graded_and_the_check_says_so(grade):
    assert grade(prompt(None), "1") is None
    with pytest.raises(DataError, match=r"there is no answer.*task\.columns\.answer"):
        grade.check(prompt(None))


# Python functions


@pytest.fixture
def my_graders(tmp_path, monkeypatch):
    (tmp_path / "my_graders.py").write_text(
        """
constant = 1.0
def length(prompt, response): return len(response) / 10
def same(prompt, response): return response == prompt.answer
def nothing(prompt, response): return None
def text(prompt, response): return "1.0"
def nan(prompt, response): return float("nan")
def leave(prompt, response): exit()
def interrupt(prompt, response): raise KeyboardInterrupt
def crash(prompt, response): return {}["key"]
async def later(prompt, response): return 1.0
"""
    )
    (tmp_path / "broken_graders.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_graders", None)


def test_a_function_of_ones_own(my_graders):
    assert PythonFunction("my_graders:length")(prompt(None), "four") == 0.4
    assert PythonFunction("my_graders:nothing")(prompt("a"), "a") is None
    right, wrong = (PythonFunction("my_graders:same")(prompt("a"), response) for response in "ab")
    assert (right, wrong) == (1.0, 0.0)
    assert type(right) is float


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(("name", "said"), [("text", r"'1\.0' \(str\)"), ("nan", "nan"), ("later", "coroutine")])
def test_what_is_not_a_reward_is_an_error(name, said, my_graders):
    with pytest.raises(DataError, match=rf"my_graders:{name} returned .*{said}.* on prompt 'p-1'"):
        PythonFunction(f"my_graders:{name}")(prompt("a"), "a")


def test_an_exception_names_function_prompt_and_cause(my_graders):
    with pytest.raises(DataError, match=r"my_graders:crash raised KeyError on prompt 'p-1'") as caught:
        PythonFunction("my_graders:crash")(prompt("a"), "a")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_grader_that_exits_does_not_end_the_run_but_an_interrupt_does(my_graders):
    with pytest.raises(DataError, match=r"my_graders:leave raised SystemExit on prompt 'p-1'"):
        PythonFunction("my_graders:leave")(prompt("a"), "a")
    with pytest.raises(KeyboardInterrupt):
        PythonFunction("my_graders:interrupt")(prompt("a"), "a")


def test_a_function_that_cannot_be_found_names_the_recipes_key(my_graders):
    with pytest.raises(RecipeError, match=r"task\.grader\.function = 'my_graders:missing'.* has no 'missing'"):
        PythonFunction("my_graders:missing")


# math-verify


@pytest.fixture(scope="module")
def math_verify():
    return MathVerify()


@pytest.mark.parametrize(
    ("answer", "response", "score"),
    [
        (r"\frac{1}{2}", r"so it is $\boxed{0.5}$", 1.0),
        ("1/2", r"$\frac{2}{4}$", 1.0),
        ("72", "The answer is 72.", 1.0),
        ("72", "The answer is 73.", 0.0),
        ("1e-05", "it is 1e-05.", 1.0),
        ("0.00001", "$1e-5$", 1.0),
        ("1e-05", r"\boxed{1e-06}", 0.0),
        ("-3+2e", "$2e-3$", 1.0),
        (r"$2\sqrt{3}$", r"\boxed{\sqrt{12}}", 1.0),
        (r"2\sqrt{3}", r"\boxed{2}", 0.0),
        ("2x+1", "it is 2", 0.0),
        ("2x+1", r"\boxed{1+2x}", 1.0),
        ("1e-05", "$0.00001$", 1.0),
        ("2.5E+3", "it is 2500", 1.0),
        ("72", "no idea", 0.0),
        ("72", "", 0.0),
        ("72", "\ud800 72", 1.0),
        ("72", r"\frac{" * 50, 0.0),
    ],
)
def test_math_verify(answer, response, score, math_verify):
    assert math_verify(prompt(answer), response) == score


def test_math_verify_works_outside_of_the_main_thread_and_leaves_alarms_alone(math_verify):
    before = signal.getsignal(signal.SIGALRM)
    assert asyncio.run(asyncio.to_thread(math_verify, prompt("1/2"), "$0.5$")) == 1.0
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_answer_that_math_verify_cannot_read_is_an_error(math_verify):
    with pytest.raises(DataError, match=r"'p-1': math-verify cannot read the answer ''"):
        math_verify(prompt(""), "1")
    assert math_verify(prompt("1"), "1") == 1.0, "the process lives on"
    assert math_verify(prompt(None), "1") is None


def test_what_cannot_be_compared_in_time_is_wrong_and_the_next_is_graded(math_verify, monkeypatch):
    assert math_verify(prompt("1"), "1") == 1.0  # the limit does not count the start of the process
    monkeypatch.setattr(math_verify, "hard_limit", 0.5)
    start = time.monotonic()
    assert math_verify(prompt("5"), "$9^{9^{9^{9}}}$") == 0.0
    assert time.monotonic() - start < 4, "the package's own limit is 5 seconds"
    monkeypatch.undo()
    assert math_verify(prompt("1"), "1") == 1.0


def test_a_process_that_dies_is_an_error_and_is_replaced(math_verify, monkeypatch):
    assert math_verify(prompt("1"), "1") == 1.0
    worker = math_verify._worker
    ask = worker.ask

    def die_first(question, limit):
        worker._process.kill()
        return ask(question, limit)

    monkeypatch.setattr(worker, "ask", die_first)
    with pytest.raises(DataError, match=r"'p-1': math-verify broke down.*exit code -9"):
        math_verify(prompt("1"), "1")
    assert math_verify(prompt("1"), "1") == 1.0
    assert math_verify._worker is not worker


def test_missing_math_verify_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(DataError, match=r"pip install 'limbeck\[math\]'"):
        MathVerify()


class Timeout(BaseException):
    """As in `math_verify.errors`."""


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [(True, {"score": 1.0}), (Timeout(), {"score": 0.0}), (KeyError("x"), {"error": "KeyError: 'x'"})],
)
def test_the_packages_timeouts_are_distinguished_from_its_bugs(outcome, reply, monkeypatch):
    def verify(expected, found):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    package = SimpleNamespace(parse=lambda text: [text], verify=verify)
    monkeypatch.setitem(sys.modules, "math_verify", package)
    monkeypatch.setitem(sys.modules, "math_verify.errors", SimpleNamespace(TimeoutException=Timeout))
    assert _reply("1", "1") == reply


def test_a_bug_of_the_package_is_an_error(math_verify, monkeypatch):
    assert math_verify(prompt("1"), "1") == 1.0
    monkeypatch.setattr(math_verify._worker, "ask", lambda question, limit: {"error": "KeyError: 'x'"})
    with pytest.raises(DataError, match=r"'p-1': math-verify broke down on a response \(KeyError: 'x'\)"):
        math_verify(prompt("1"), "1")
