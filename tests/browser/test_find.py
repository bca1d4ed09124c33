"""Finding runs by what is typed: words, comparisons, units and dates as the table prints them."""

from __future__ import annotations

from pathlib import Path

from .looking import Served, listed, type_into
from .page import Page

MISSING = "\u2013"


FOUND = {
    "s1": 3,
    "-s1": 9,
    "t0.7 s0": 1,
    "failed": 1,
    "lr=0.01": 1,
    "lr<0.01 temperature>=1": 7,
    "rollout.temperature=1.3": 3,
    "state!=finished": 3,
    "accuracy>75%": 3,
    "student.model=demo:student": 12,
    "alarms>0": 1,
    "alarms=kl_rising": 1,
    "kl_rising": 1,
    "commit=4f1c2": 12,
    "constructor=1": 12,
    "host=gpu-01": 4,
    "eval:prompts=128": 11,
    '"t0.7-s0"': 1,
    "reverse_kl<0.12": 2,
    "Reverse KL<0.12": 2,
    "best accuracy > 0.8 s0": 1,
    'state="not finished"': 0,
    "started>2025-11-30": 12,
    "started<2025-11-30": 0,
    "started>2024": 12,
    "started>2999": 0,
    "started<2024": 0,
    "started=2024": 0,
    "started>=2024-13-45": 12,
    "started<13:77": 12,
    "accuracy>high": 12,
    "accuracy>high s1": 3,
    "started>last week": 12,
    "alarms=none": 11,
    "alarms!=none": 1,
    "T=1.3": 3,
    "t<1.3 s1": 2,
    "accuracy>": 12,
    "lr > s1": 12,
    ">3": 12,
    "elapsed>35s": 10,
    "elapsed>0.5 min": 10,
    "elapsed>30 s s1": 3,
    "elapsed<9s": 0,
    "elapsed=1 min 00 s": 9,
    "elapsed=1 min": 9,
    "Last line<1 h ago": 11,
    "Left=10 s": 1,
    "state=finished s1": 3,
    'step="25 / 60"': 1,
    "step=60 / 60": 9,
    f"best accuracy={MISSING}": 1,
    "s1 or s2": 0,
    "t0.7*": 0,
    "nothing": 0,
    "": 12,
}


def test_what_is_typed_finds_runs(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    found = {}
    for text in FOUND:
        type_into(page, "#find-runs", text)
        page.until("(new URLSearchParams(location.hash.split('?')[1]).get('find') ?? '') === arguments[0]", text)
        found[text] = len(listed(page))
    assert found == FOUND


def test_what_the_table_shows_is_found(page: Page, runs: Path, served: Served) -> None:
    """Every cell of these columns, typed as it is printed, finds its run; < and > of it do not."""
    page.open(served(runs))
    page.run("""
      window.finding = Promise.all(['columns', 'find', 'store'].map((name) => import(`/assets/${name}.js`)))
        .then(([columns, find, {store}]) => {
          const lost = [];
          const ids = ['step', 'accuracy', 'best', 'gain', 'kl', 'alarms', 'started', 'speed', 'host', 'commit',
            'state', 'recipe:learner.lr', 'eval:prompts', 'train:reward'];
          for (const run of store.runs) for (const column of ids.map(columns.columnOf)) {
            const value = column.of(run);
            if (value === undefined) continue;
            const found = (sign) => find.finder(`${column.id}${sign}${column.show(value, run)}`);
            const as = ['=', '!=', '>=', '<='].map((sign) => found(sign).test(run));
            if (found('=').problem || as.join() !== 'true,false,true,true') lost.push([run.id, column.id, as]);
            if (column.texts) continue;
            if (found('<').test(run) || found('>').test(run)) lost.push([run.id, column.id, '<>']);
          }
          return lost;
        });
    """)
    assert page.run("return window.finding") == []


# What is typed after `started` at 14:00 of 30 November 2026, and what it begins and ends with on the browser's clock.
TIMES = {
    "13:56": ("2026-11-30 13:56:00", "2026-11-30 13:57:00"),
    "Nov 30": ("2026-11-30 00:00:00", "2026-12-01 00:00:00"),
    "nov 30, 13:52": ("2026-11-30 13:52:00", "2026-11-30 13:53:00"),
    "30. November 2026 13:52": ("2026-11-30 13:52:00", "2026-11-30 13:53:00"),
    "2026-11-30 13:52": ("2026-11-30 13:52:00", "2026-11-30 13:53:00"),
    "2026-11-30T13:52:05": ("2026-11-30 13:52:05", "2026-11-30 13:52:06"),
    "2026-12": ("2026-12-01 00:00:00", "2027-01-01 00:00:00"),
    "Dec 1": ("2026-12-01 00:00:00", "2026-12-02 00:00:00"),
    "Jan 3": ("2026-01-03 00:00:00", "2026-01-04 00:00:00"),
    "Dec 31 2025": ("2025-12-31 00:00:00", "2026-01-01 00:00:00"),
    "Feb 29, 2026": None,
    "25:00": None,
    "2026-02-30": None,
    "noon": None,
}


def test_times_are_read_as_the_table_prints_them(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    script = """
      return import('/assets/typed.js').then(({typedTime}) => arguments[0].map((text) => {
        const now = new Date(2026, 10, 30, 14);
        return typedTime(text, now)?.map((at) => new Date(at * 1000).toLocaleString('sv')) ?? null;
      }))
    """
    found = dict(zip(TIMES, page.run(script, list(TIMES)), strict=True))
    assert found == {text: span and list(span) for text, span in TIMES.items()}
    in_february = (
        "return import('/assets/typed.js').then(({typedTime}) => typedTime('Nov 30', new Date(2027, 1, 3))[0])"
    )
    year = page.run(f"return (async () => {{ {in_february} }})().then((at) => new Date(at * 1000).getFullYear())")
    assert year == 2026, "not one that is far ahead"


def test_a_column_that_is_none_is_named(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs) + "#runs?find=nonsense%3E3+s1")
    assert len(listed(page)) == 3
    assert "no column nonsense" in page.texts(".shown-bar")[0]
    for text, said in (
        ("elapsed>soon", "Elapsed is a number of seconds, or a time such as 2 min or 1 h 05 min, and soon is not"),
        ("started>last week", "and last week is not"),
        ("lr>", "lr> is not finished: a value is missing"),
        (">3", ">3 is not finished: a column is missing"),
        ("s1 or s2", "or is looked for as text"),
        ("t0.7*", "t0.7* is looked for as text"),
    ):
        type_into(page, "#find-runs", text)
        page.until("document.querySelector('.shown-bar').textContent.includes(arguments[0])", said)
    type_into(page, "#find-runs", "started>yesterday")
    page.until("/Started is a date .*yesterday is not/.test(document.querySelector('.shown-bar').textContent)")
    page.open(served(runs) + "#runs?find=s1&group=all-but-seed")
    assert sorted(page.texts(".run-table .count.warn")) == ["1 of 3 runs", "1 of 4 runs", "1 of 4 runs"]
