"""The tab Samples in a browser: groups, word differences, and what evaluations won and lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest

from limbeck.training.recording import write_rollouts
from limbeck.view.report import write_report
from tests.view import made

from .looking import Served
from .page import Page


def _module(page: Page, name: str, expression: str, *arguments: Any) -> Any:
    """The value of a JavaScript expression over a module `m` and the arguments `a`."""
    script = (
        f"const done = [...arguments].at(-1), a = arguments; import('/assets/{name}').then((m) => done({expression}))"
    )
    return page.driver.execute_async_script(script, *arguments)


# Words

TEXTS = [
    "", "a", "the answer is 4", "the answer is 5", "So the answer: 4.", "  two  blanks ", "a\nb\nc", "a\nx\nc\n",
    "四二", "四三二",
    "one two three four", "one 2 3 four", "é e\u0301", "<b>&amp;</b>",
]  # fmt: skip


def test_words_that_differ_and_the_exact_test(page: Page, tmp_path: Path, served: Served) -> None:
    made.write_metrics(tmp_path / "run", 2)
    page.open(served(tmp_path / "run"))
    _check_words(page)
    _check_pairs(page)


def _check_words(page: Page) -> None:
    pairs = [[before, after] for before in TEXTS for after in TEXTS]
    for (before, after), parts in zip(
        pairs, _module(page, "words.js", "a[0].map((p) => m.diffWords(...p))", pairs), strict=True
    ):
        assert "".join(text for kind, text in parts if kind != "new") == before
        assert "".join(text for kind, text in parts if kind != "gone") == after
        if before == after:
            assert all(kind == "same" for kind, _ in parts)
    assert _module(page, "words.js", "m.diffWords(...a)", "the answer is 4", "the answer is 15") == [
        ["same", "the answer is "], ["gone", "4"], ["new", "15"],
    ]  # fmt: skip
    assert _module(page, "words.js", "m.diffWords(...a)", "one two three four", "one 2 3 four") == [
        ["same", "one "], ["gone", "two three"], ["new", "2 3"], ["same", " four"],
    ]  # fmt: skip
    assert _module(page, "words.js", "m.diffWords(...a)", "四二", "四三二") == [
        ["same", "四"],
        ["new", "三"],
        ["same", "二"],
    ]
    long = "\n".join(f"line {n} is {n * n}" for n in range(3000))
    parts = _module(
        page,
        "words.js",
        "m.diffWords(...a)",
        long,
        long.replace("line 1500 is", "line 1500 was").replace("\n", "\n\n", 1),
    )
    assert [part for part in parts if part[0] != "same"] == [["new", "\n"], ["gone", "is"], ["new", "was"]]


# Pairs


def _p(won: int, lost: int) -> float:
    tail = sum(comb(won + lost, k) for k in range(min(won, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2 ** (won + lost))))


def _check_pairs(page: Page) -> None:
    cases = [(0, 0), (1, 0), (5, 0), (0, 6), (7, 3), (15, 2), (70, 3), (500, 450), (900, 100)]
    found = _module(page, "paired.js", "a[0].map(([w, l]) => m.signTest(w, l))", cases)
    for (won, lost), p in zip(cases, found, strict=True):
        assert p == pytest.approx(_p(won, lost), rel=1e-9, abs=1e-250), (won, lost)
    points = _module(page, "student.js", "[1, 5, 6, 10, 30, 1000].map(m.studentPoint)")
    assert points == pytest.approx([12.7062, 2.5706, 2.4469, 2.2281, 2.0423, 1.9623], abs=1e-4)
    assert _module(page, "student.js", "[m.studentP(2.5, 7), m.studentP(-0.5, 4), m.studentP(0, 3)]") == pytest.approx(
        [0.0410, 0.6433, 1.0], abs=1e-4
    )
    rows = [[{"reward": was, "was": was, "now": now, "outcome": name} for was, now, name in group] for group in (
        [(0, 1, "won")] * 15 + [(1, 0, "lost")] * 2 + [(0, 0, "wrong")] * 47,
        [(0.5, 0.75, "won"), (0.5, 0.5, "even"), (1.0, 0.25, "lost"), (0.0, 1.0, "won")],
        [(-1.0, 3.0, "won")] * 2,
        [(0.9, 0.91, "won")] * 24 + [(1.0, 0.0, "lost")] * 6,
        [(0.0, 1.0, "won")] * 5 + [(0.0, 0.0, "wrong")] * 25,
    )]  # fmt: skip
    sums = _module(page, "paired.js", "a[0].map((pairs) => m.summarisePairs(pairs))", rows)
    one, graded, few, mostly_won, five = sums
    assert mostly_won["high"] < 0, "worse, though most were won"
    assert mostly_won["p"] == pytest.approx(0.016, abs=1e-3)
    assert five["low"] < 0 < five["p"] - 0.05, "the interval and McNemar's test agree: p is 1/16"
    _check_sides(page)
    # Bonett and Price: (16/66 - 3/66) -+ 1.96 * sqrt((16/66 + 3/66 - (13/66)^2) / 66)
    # and below that, where 15 of 17 is at least 63.6% by Clopper and Pearson: (2 * 0.636 - 1) * 17 / 64
    assert (one["low"], one["high"]) == pytest.approx((0.0720, 0.3174), abs=1e-3)
    assert (one["exact"], graded["exact"], few["shares"]) == (True, False, False)
    assert (graded["low"], graded["high"]) == pytest.approx(
        (0.125 - 3.182 * 0.36084, 0.125 + 3.182 * 0.36084), abs=2e-3
    )
    assert few["low"] is None


def _check_sides(page: Page) -> None:
    """Episodes that failed count as 0; ids that stand for other questions are no pairs."""
    expression = """(() => {
        const row = (i, reward, asked) => ({
          set: "", prompt_id: `p${i}`, sample: 0, segment: 0,
          question: `q${i}${asked}`, reward: reward ? 1 : 0, same: "x",
        });
        const rows = (count, right, asked = "") => Array.from({length: count}, (_, i) => row(i, i < right, asked));
        const pairsOf = (before, after, ...failed) => (
          m.pairAnswers(m.sideOf(before, "", failed[0]), m.sideOf(after, "", failed[1])));
        const all = rows(100, 40), some = rows(60, 45), other = rows(100, 100, "?");
        return [
          pairsOf(all, some, 0, 40), pairsOf(all, some, 0, 0), pairsOf(some, some, 40, 40), pairsOf(all, other, 0, 0),
        ].map((found) => [found.pairs.length, found.alone, found.others, found.bothFailed,
          m.summarisePairs(found.pairs, found.bothFailed).now]);
    })()"""
    assert _module(page, "paired.js", expression) == [
        [100, 0, 0, 0, 0.45], [60, 40, 0, 0, 0.75], [60, 0, 0, 40, 0.45], [0, 0, 100, 0, None],
    ]  # fmt: skip


def _run(folder: Path, name: str, evaluations: dict[int, list[dict[str, Any]]]) -> None:
    made.write_metrics(folder / name, 6, every=3)
    for step, answers in evaluations.items():
        made.write_answers(folder / name, step, answers)


def _graded(rewards: Sequence[float | None], **more: Any) -> list[dict[str, Any]]:
    return [
        made.answer(f"q{n}", reward=reward, response=f"It is {n} or {reward}.", prompt=f"Long question {n}?", **more)
        for n, reward in enumerate(rewards)
    ]


def _outcomes(page: Page) -> dict[str, int]:
    buttons = "[...document.querySelectorAll('.outcome')]"
    return dict(page.run(f"return {buttons}.map(b => [b.firstChild.data, Number(b.lastChild.textContent)])"))


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    before, after = [0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0]
    hot = [made.answer("h", set="hot", sample=k, reward=r) for k, r in enumerate([0.0, 1.0])]
    turns = [{"role": role, "text": text} for role, text in (("student", "add(2)"), ("tool", "4"), ("student", "4"))]
    ungraded = [made.answer("u", set="chat", reward=None, turns=turns), made.answer("v", set="chat", reward=None)]
    _run(folder, "a", {
        0: [*_graded(before), *hot, *ungraded],
        3: _graded([0.0] * 5),
        6: [*_graded(after), *hot[:1], made.answer("new"), ungraded[0], ungraded[1] | {"response": "?"}],
    })  # fmt: skip
    _run(folder, "b", {6: _graded([1.0, 1.0, 1.0, 1.0, 1.0])})
    _run(folder, "c", {})
    return folder


def test_wins_and_losses_between_two_steps(page: Page, evaluated: Path, served: Served, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    write_report(evaluated, report, 5)
    for place in (served(evaluated), report.as_uri()):
        page.open(f"{place}#samples?run=a&view=evaluations")
        page.until("document.querySelectorAll('.answer-row').length === 5")
        assert _outcomes(page) == {"All": 5, "Won": 2, "Lost": 1, "Both right": 1, "Both wrong": 1}
        verdict = page.texts(".verdict")[0]
        assert "40.0% → 60.0%" in verdict
        assert "p = 1.00, McNemar's exact test" in verdict
        assert "1 prompt has an answer in one of the two only" in verdict
        page.press(".outcome.lost")
        page.until("document.querySelectorAll('.answer-row').length === 1")
        page.press(".answer-row")
        page.until("document.querySelectorAll('.opened .half .words').length === 2")
        assert page.texts(".opened-prompt pre") == ["Long question 2?"]
        assert page.texts(".half.before .words") == ["It is 2 or 1.0."]
        assert (page.texts(".half.before del"), page.texts(".half.after ins")) == (["1"], ["0"])
        assert "outcome=lost" in page.run("return location.hash")
        page.open(f"{place}{page.run('return location.hash')}")
        page.until("document.querySelectorAll('.opened .half .words').length === 2")
    assert page.errors() == []


def test_sets_samples_and_answers_without_a_grade(page: Page, evaluated: Path, served: Served) -> None:
    address = served(evaluated)
    page.open(f"{address}#samples?run=a&view=evaluations&set=hot")
    page.until("document.querySelectorAll('.answer-row').length === 1")
    assert _outcomes(page) == {"All": 1, "Lost": 1}, "of two samples one was right, of the one left none"
    assert "Too few prompts" in page.texts(".verdict")[0]
    assert page.texts(".answer-row .of") == ["1 of 2"]
    page.press(".answer-row")
    page.press(".opened .segments button", "2")
    page.until("/No such sample/.test(document.querySelector('.opened').textContent)")
    page.open(f"{address}#samples?run=a&view=evaluations&set=chat")
    page.until("document.querySelectorAll('.answer-row').length === 2")
    assert _outcomes(page) == {"All": 2, "Changed": 1, "Same text": 1}
    assert "1 of 2 answers changed" in page.texts(".verdict")[0]
    page.press(".answer-row")
    page.until("document.querySelectorAll('.opened .turn').length === 6")
    assert page.texts(".half.after .role") == ["student", "tool", "student"]
    page.open(f"{address}#samples?run=a&view=evaluations&before=none")
    page.until("document.querySelectorAll('.answer-row').length === 6")
    assert _outcomes(page) == {"All": 6, "Right": 4, "Wrong": 2}
    page.run("document.querySelector('.outcomes input').value = 'QUESTION 3'")
    page.run("document.querySelector('.outcomes input').dispatchEvent(new Event('input'))")
    page.until("document.querySelectorAll('.answer-row').length === 1")


def test_two_runs_are_compared_and_one_without_evaluations_says_so(page: Page, evaluated: Path, served: Served) -> None:
    address = served(evaluated)
    page.open(f"{address}#samples?run=b&with=a&view=evaluations")
    page.until("document.querySelectorAll('.answer-row').length === 5")
    assert _outcomes(page) == {"All": 5, "Won": 2, "Both right": 3}
    assert page.texts(".answer-head span")[2:] == ["Before: a, step 6", "After: b, step 6"]
    page.open(f"{address}#samples?run=c&view=evaluations")
    page.until("/no answers of evaluations/.test(document.querySelector('.answers').textContent)")
    (evaluated / "a" / "evaluations" / "step-000006.jsonl").write_text("{broken\n")
    page.open(f"{address}#samples?run=a&view=evaluations")
    page.until("/skipped line 1/.test(document.querySelector('.answers').textContent)")


# Rollouts


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    chat = "system: Be brief.\nuser: Where does the Rhine rise?"
    for name, end, temperature in (("a", " in Graubünden.", 0.7), ("b", " near Chur.", 1.3), ("c", " in a lake.", 0.7)):
        folder = tmp_path / "runs" / name
        made.write_metrics(folder, 3)
        (folder / "rollouts").mkdir()
        for step in (1, 3):
            text = f"It rises{end}" if step == 3 else "I do not know."
            asked = {
                "prompt_id": "rhine",
                "source": "train",
                "prompt_text": chat,
                "question": None,
                "response_text": text,
                "temperature": temperature,
            }
            rows = [made.rollout(step, 3 + k, 6, sample=k, reward=float(k), **asked) for k in range(2)]
            rows.append(made.rollout(step, 9, 6, question="What else?"))
            write_rollouts(rows, folder / "rollouts" / f"step-{step:06d}.parquet")
    return tmp_path / "runs"


def test_rows_are_called_by_their_question_and_grouped_by_prompt(page: Page, sampled: Path, served: Served) -> None:
    page.open(f"{served(sampled)}#samples?run=a&sort=old")
    page.until("document.querySelectorAll('.row').length === 6")
    assert page.texts(".row .line:first-child .text")[:3] == ["Where does the Rhine rise?"] * 2 + ["What else?"]
    page.press(".count-line .check input")
    page.until("document.querySelectorAll('.row').length === 3")
    assert page.texts(".row .line:first-child .text")[0] == "Where does the Rhine rise?"
    assert page.texts(".row .line:first-child .kl")[0] == "2 of 4 right"
    assert page.texts(".row .line.dim .text")[0] == "4 rollouts, steps 1 to 3"
    assert page.texts(".count") == ["6 rollouts of 3 prompts"]
    assert [text[:3] for text in page.texts(".sibling")] == ["1·1", "1·2", "3·1", "3·2"]
    page.run("document.querySelectorAll('.sibling')[2].click()")
    page.until("document.querySelector('.detail').dataset.id === 'step-000003.parquet:0'")
    assert page.run("return document.querySelector('.row.on').id") == "row-0", "the group stays chosen"
    address = page.run("return location.hash")
    assert "grouped=1" in address
    page.open(served(sampled) + address)
    page.until("document.querySelectorAll('.row').length === 3")


def test_the_same_prompt_in_another_run_differs_in_words(page: Page, sampled: Path, served: Served) -> None:
    page.open(f"{served(sampled)}#samples?run=a&runs=a,b&rollout=step-000003.parquet:0")
    page.press(".strip button", "Compare runs")
    page.until("document.querySelectorAll('.version').length === 2")
    assert page.texts(".version h3 b") == ["a", "b"]
    assert re.findall(r"KL \S+ at (T [.\d]+)", " ".join(page.texts(".version h3 span"))) == ["T 0.7", "T 1.3"]
    assert page.texts(".version .words")[0] == "It rises in Graubünden."
    assert (page.texts(".version del"), page.texts(".version ins")) == (["in Graubünden"], ["near Chur"])
    page.press(".measures button", "Tokens")
    page.until("document.querySelectorAll('.version .flow').length === 2")
    page.open(f"{served(sampled)}{page.run('return location.hash')}")
    page.until("document.querySelectorAll('.version .flow').length === 2")
    page.run("location.hash = location.hash.replace('runs=a,b', 'runs=a')")
    page.until("document.querySelectorAll('.version .flow').length === 3")
    assert page.texts(".version h3 b") == ["a", "b", "c"], "where no other one is shown, all"
