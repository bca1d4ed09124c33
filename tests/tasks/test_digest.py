"""Digests of prompts: whatever training sees of them counts, and the first that changed is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from limbeck.records import Prompt
from limbeck.tasks import digest_of_prompts, digests_of_prompts, first_changed_prompt

PROMPTS = [Prompt(id=f"p{n}", token_ids=(1, 2, n), answer=str(n), text=f"{n}") for n in range(5)]


def test_the_same_prompts_have_the_same_digest_in_another_process():
    assert digest_of_prompts(PROMPTS) == "b264660783fdadd4cac84b9750e2e6bb"
    assert (
        digest_of_prompts([replace(p, text="shown otherwise", metadata={"level": 1}) for p in PROMPTS])
        == "b264660783fdadd4cac84b9750e2e6bb"
    )
    assert first_changed_prompt(digests_of_prompts(PROMPTS), PROMPTS) is None


@pytest.mark.parametrize(
    "change",
    [
        {"id": "p9"},
        {"token_ids": (1, 2, 3, 0)},
        {"token_ids": (12, 3)},
        {"answer": None},
        {"answer": ""},
        {"teacher": "t"},
    ],
    ids=str,
)
def test_a_change_is_seen_and_its_prompt_is_named(change):
    changed = [*PROMPTS[:3], replace(PROMPTS[3], **change), *PROMPTS[4:]]
    assert digest_of_prompts(changed) != digest_of_prompts(PROMPTS)
    said = first_changed_prompt(digests_of_prompts(PROMPTS), changed)
    assert said is not None
    assert said.startswith(f"prompt 3 ({changed[3].id!r})")


def test_order_and_number_count():
    assert digest_of_prompts(PROMPTS[::-1]) != digest_of_prompts(PROMPTS)
    kept = digests_of_prompts(PROMPTS)
    assert (
        first_changed_prompt(kept, PROMPTS[:3]) == "there are 3 prompts, and there were 5; those in common are the same"
    )
    assert first_changed_prompt(kept, [*PROMPTS, PROMPTS[0]]).startswith("there are 6 prompts, and there were 5")
    assert first_changed_prompt(kept, PROMPTS[1:]).startswith("prompt 0 ('p1')")


def test_no_two_prompts_run_into_each_other():
    one = [Prompt(id="a", token_ids=(1,), answer="b3:c")]
    other = [Prompt(id="a", token_ids=(1,), answer="b", teacher="c")]
    assert digest_of_prompts(one) != digest_of_prompts(other)
