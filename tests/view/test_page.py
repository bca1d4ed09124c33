"""The page's files: what lets them stand in one file for a report."""

from __future__ import annotations

import re
from collections import Counter

from limbeck.view import page

TOP_LEVEL = re.compile(r"^(?:export )?(?:async )?(?:const|let|class|function\*?) (\w+)", re.MULTILINE)


def test_no_two_modules_define_the_same_name() -> None:
    names = Counter(name for module in page.MODULES for name in TOP_LEVEL.findall(page.asset(module)))
    assert len(names) > 100
    assert [name for name, count in names.items() if count > 1] == []


def test_each_module_comes_after_those_it_imports() -> None:
    for place, module in enumerate(page.MODULES):
        needed = re.findall(r'from "\./([^"]+)"', page.asset(module))
        assert set(needed) <= set(page.MODULES[:place]), module


def test_files_of_the_page_stay_short() -> None:
    long = {name: page.asset(name).count("\n") for name in page.MODULES if page.asset(name).count("\n") > 350}
    assert long == {}
