"""The contract: honest teachers pass, and each lie is refused with the reason.

Shape legend: S sampled tokens, V vocabulary, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import tokenizers
import torch

from limbeck.contract.probes import check_tokenizers, logprobs_of_sampled, prove
from limbeck.errors import ContractError
from limbeck.models.causal_lm import CausalLM
from limbeck.records import Failure, HiddenScores, Rollout, TeacherScores, TokenScores, TopKScores
from limbeck.teachers.local import LocalTeacher
from tests import tiny

TEMPERATURES = (0.5, 0.7, 1.0, 1.5)
PROMPTS = tiny.prompts(4, 9, 6)

# Tokenizers


def pair(**teacher: Any) -> tuple[CausalLM, CausalLM]:
    """A student and a teacher of one tokenizer, but for what is given."""
    student, other = tiny.fresh(), tiny.fresh("qwen2")
    other.tokenizer = tiny.character_tokenizer(**teacher)
    return student, other


def refusal(student: CausalLM, teacher: CausalLM, **options: bool) -> str:
    with pytest.raises(ContractError) as caught:
        check_tokenizers(student, teacher, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert (student.vocabulary, teacher.vocabulary) == (tiny.VOCABULARY, tiny.VOCABULARY)
    return message


def test_one_tokenizer_is_fine() -> None:
    student, teacher = pair()
    verdict = check_tokenizers(student, teacher)
    assert verdict.probe == "tokenizer"
    assert "100 tokens" in verdict.measured
    assert (student.vocabulary, teacher.vocabulary) == (100, 100)


@pytest.mark.parametrize("rows", [(128, 100), (100, 128), (112, 128), (128, 128)])
def test_tables_padded_to_other_sizes_are_compared_over_the_smaller(rows: tuple[int, int]) -> None:
    student, teacher = pair()
    for lm, count in zip((student, teacher), rows, strict=True):
        lm.model.resize_token_embeddings(count)
        lm.vocabulary = count
    verdict = check_tokenizers(student, teacher)
    assert (student.vocabulary, teacher.vocabulary) == (min(rows), min(rows))
    assert student.head().vocabulary == teacher.head().vocabulary == min(rows)
    assert verdict.measured.endswith(f"{rows[0]} and {rows[1]} rows")


def test_other_ids_for_the_same_tokens_are_refused() -> None:
    alphabet = list(tiny.ALPHABET)
    alphabet[10], alphabet[11] = alphabet[11], alphabet[10]
    message = refusal(*pair(alphabet=tuple(alphabet)))
    assert "2 tokens differ" in message
    assert f"{tiny.ALPHABET[10]!r} (id 10 against 11)" in message


def test_a_token_more_is_refused_on_either_side() -> None:
    """A token the other does not have: its id would mean nothing there."""
    message = refusal(*pair(alphabet=(*tiny.ALPHABET, "<extra>")))
    assert "'<extra>' (id None against 100)" in message
    student, teacher = pair()
    student.tokenizer.add_tokens(["<extra>"])
    assert "'<extra>' (id 100 against None)" in refusal(student, teacher)


def test_another_splitting_of_text_is_refused() -> None:
    """One map is not one tokenizer: this one lowers its letters first."""
    student, teacher = pair()
    teacher.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    assert "split 'Hello, world" in refusal(student, teacher)


def test_another_beginning_is_refused() -> None:
    student, teacher = pair()
    teacher.tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", 0)]
    )
    assert "split 'Hello, world" in refusal(student, teacher)


def test_another_end_token_is_refused() -> None:
    message = refusal(*pair(eos_token="<assistant>"))
    assert "'<eos>' (1)" in message
    assert "'<assistant>' (4)" in message


def test_another_chat_template_is_refused_unless_it_is_accepted() -> None:
    student, teacher = pair()
    teacher.tokenizer.chat_template = tiny.TEMPLATE.replace("<assistant>", "<assistant>\n")
    message = refusal(student, teacher)
    assert "'<user>Hi<assistant>'" in message
    assert "teacher.same_chat_template = false" in message
    check_tokenizers(student, teacher, same_chat_template=False)


def test_templates_that_write_the_same_are_the_same() -> None:
    student, teacher = pair()
    teacher.tokenizer.chat_template = "{# the same #}" + tiny.TEMPLATE
    check_tokenizers(student, teacher)


def test_a_head_smaller_than_the_tokenizer_is_refused() -> None:
    """Its last tokens could be sampled from prompts, and never scored."""
    student, teacher = pair()
    teacher.model.resize_token_embeddings(99)
    teacher.vocabulary = 99
    with pytest.raises(ContractError, match=r"ids up to 99.*only 99 rows.*resize_token_embeddings"):
        check_tokenizers(student, teacher)


# Teachers that answer as asked, and teachers that do not


class Twisted:
    """A teacher whose answers are an honest one's after `twist(honest, rollout)`."""

    name = "twisted"
    seconds: ClassVar[dict[str, float]] = {}

    def __init__(self, twist: Callable[[LocalTeacher, Rollout], Any]) -> None:
        self.honest, self.twist = LocalTeacher(self.name, tiny.fresh()), twist

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
        return [self.twist(self.honest, rollout) for rollout in rollouts]

    async def close(self) -> None:
        """Nothing to release."""


def hidden(honest: LocalTeacher, rollout: Rollout) -> HiddenScores:
    """The honest answer."""
    states_Ld = honest.lm.hidden(torch.from_numpy(rollout.token_ids)[None])[0].detach()
    predict_S = np.flatnonzero(rollout.trained) - 1
    return HiddenScores(honest.name, rollout.sampling.temperature, states_Ld[predict_S], honest.head)


def tokens(scores: HiddenScores, rollout: Rollout) -> TokenScores:
    values = np.array(logprobs_of_sampled(scores, rollout), dtype=np.float32)
    return TokenScores(scores.teacher, rollout.sampling.temperature, values)


def top_k(scores: HiddenScores, rollout: Rollout) -> TopKScores:
    top = (scores.head.logits(scores.hidden) / scores.temperature).log_softmax(-1).topk(3)
    of_sampled = tokens(scores, rollout).logprobs
    return TopKScores(scores.teacher, scores.temperature, top.indices.numpy(), top.values.detach().numpy(), of_sampled)


def scored_at(honest: LocalTeacher, rollout: Rollout, temperature: float) -> HiddenScores:
    """The states from which the head makes the distribution at another temperature."""
    scores = hidden(honest, rollout)
    return replace(scores, hidden=scores.hidden * scores.temperature / temperature)


def moved(honest: LocalTeacher, rollout: Rollout, by: int) -> HiddenScores:
    """States read `by` positions too late (or too early, below 0)."""
    ids = np.append(rollout.token_ids, [3] * 3)
    states_Ld = honest.lm.hidden(torch.from_numpy(ids)[None])[0].detach()
    return replace(hidden(honest, rollout), hidden=states_Ld[np.flatnonzero(rollout.trained) - 1 + by])


def neighbours(honest: LocalTeacher, rollout: Rollout, by: int) -> TokenScores:
    """Log-probs of the tokens `by` places further on in the text, as a slip in slicing gives them."""
    ids = np.append(rollout.token_ids, [3])
    mask = np.zeros(len(ids), dtype=bool)
    mask[np.flatnonzero(rollout.trained) + by] = True
    shifted = replace(tiny.rollout(ids.tolist(), mask.tolist()), sampling=rollout.sampling)
    return tokens(hidden(honest, shifted), shifted)


def another_text(honest: LocalTeacher, rollout: Rollout) -> HiddenScores:
    """A text of as many tokens, always the same."""
    return hidden(honest, twenties(rollout))


def twenties(rollout: Rollout) -> Rollout:
    return replace(rollout, token_ids=np.full_like(rollout.token_ids, 20))


HONEST: dict[str, Callable[[LocalTeacher, Rollout], TeacherScores]] = {
    "hidden": hidden,
    "tokens": lambda honest, rollout: tokens(hidden(honest, rollout), rollout),
    "top-k": lambda honest, rollout: top_k(hidden(honest, rollout), rollout),
    "a little noise": lambda honest, rollout: noisy(tokens(hidden(honest, rollout), rollout), rollout),
}


def noisy(scores: TokenScores, rollout: Rollout) -> TokenScores:
    noise = np.random.default_rng(rollout.token_ids).uniform(-2e-4, 2e-4, len(scores.logprobs))
    return replace(scores, logprobs=(scores.logprobs + noise).astype(np.float32))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", HONEST)
async def test_an_honest_teacher_passes(kind: str, temperature: float) -> None:
    verdicts = await prove(Twisted(HONEST[kind]), PROMPTS, temperature, tiny.VOCABULARY)
    assert [verdict.probe for verdict in verdicts] == ["alignment", "temperature"]
    assert f"T = {temperature}" in verdicts[1].measured


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
async def test_local_teachers_pass(family: str, temperature: float) -> None:
    """With a prompt of one token too, and with a budget that splits the probes."""
    await prove(LocalTeacher("t", tiny.fresh(family), budget=64), PROMPTS, temperature, tiny.VOCABULARY)
    await prove(LocalTeacher("t", tiny.fresh(family)), tiny.prompts(1), temperature, tiny.VOCABULARY)


LIES: dict[str, tuple[Callable[[LocalTeacher, Rollout], Any], str]] = {
    "ignores T": (lambda honest, rollout: scored_at(honest, rollout, 1.0), "does not score at temperature"),
    "ignores T, one number a token": (
        lambda honest, rollout: tokens(scored_at(honest, rollout, 1.0), rollout),
        "does not score at temperature",
    ),
    "scores at 1/T": (
        lambda honest, rollout: scored_at(honest, rollout, 1 / rollout.sampling.temperature),
        "does not score at temperature",
    ),
    "says it ignores T": (
        lambda honest, rollout: replace(hidden(honest, rollout), temperature=1.0),
        "temperature 1.0",
    ),
    "reads the next token's score": (lambda honest, rollout: neighbours(honest, rollout, 1), "shifted by one"),
    "reads the last token's score": (lambda honest, rollout: neighbours(honest, rollout, -1), "something else"),
    "reads the next state": (lambda honest, rollout: moved(honest, rollout, 1), "shifted by one"),
    "reads the last state": (lambda honest, rollout: moved(honest, rollout, -1), "the token before it"),
    "reads the last state, one number a token": (
        lambda honest, rollout: tokens(moved(honest, rollout, -1), rollout),
        "the token before it",
    ),
    "always the same number": (
        lambda honest, rollout: TokenScores("twisted", rollout.sampling.temperature, np.full(_count(rollout), -1.5)),
        "something else",
    ),
    "another text's scores": (
        lambda honest, rollout: tokens(another_text(honest, rollout), twenties(rollout)),
        "something else",
    ),
    "another text's states": (another_text, "the token before it"),
    "the same states everywhere": (
        lambda honest, rollout: replace(hidden(honest, rollout), hidden=torch.ones(_count(rollout), 32)),
        "the token before it",
    ),
    "a flat distribution": (
        lambda honest, rollout: replace(hidden(honest, rollout), hidden=torch.zeros(_count(rollout), 32)),
        "twisted",
    ),
    "NaN": (
        lambda honest, rollout: TokenScores("twisted", rollout.sampling.temperature, np.full(_count(rollout), np.nan)),
        "nan",
    ),
    "-inf": (
        lambda honest, rollout: TokenScores("twisted", rollout.sampling.temperature, np.full(_count(rollout), -np.inf)),
        "-inf",
    ),
    "a score too few": (
        lambda honest, rollout: replace(
            tokens(hidden(honest, rollout), rollout), logprobs=tokens(hidden(honest, rollout), rollout).logprobs[1:]
        ),
        "1 scores for 2 tokens",
    ),
    "scores of the prompt too": (
        lambda honest, rollout: TokenScores(
            "twisted", rollout.sampling.temperature, np.zeros(len(rollout.token_ids), dtype=np.float32)
        ),
        "11 scores for 2 tokens",
    ),
    "a state too few": (
        lambda honest, rollout: replace(hidden(honest, rollout), hidden=hidden(honest, rollout).hidden[1:]),
        "1 scores for 2 tokens",
    ),
    "a failure": (
        lambda honest, rollout: Failure(rollout.prompt.id, "score", "timeout", "no answer in 60 s"),
        "could not score a probe: no answer in 60 s",
    ),
}  # fmt: skip


def _count(rollout: Rollout) -> int:
    return int(rollout.trained.sum())


OF_TEMPERATURE = ("ignores T", "ignores T, one number a token", "scores at 1/T", "says it ignores T")


@pytest.mark.parametrize("lie", OF_TEMPERATURE)
async def test_what_ignores_the_temperature_is_no_lie_at_one(lie: str) -> None:
    await prove(Twisted(LIES[lie][0]), PROMPTS, 1.0, tiny.VOCABULARY)


@pytest.mark.parametrize(
    ("lie", "temperature"),
    [(lie, 0.7) for lie in LIES]
    + [(lie, 1.5) for lie in OF_TEMPERATURE]
    + [(lie, 1.0) for lie in LIES if lie not in OF_TEMPERATURE],
)
async def test_a_lying_teacher_is_refused(lie: str, temperature: float) -> None:
    twist, reason = LIES[lie]
    with pytest.raises(ContractError) as caught:
        await prove(Twisted(twist), PROMPTS, temperature, tiny.VOCABULARY)
    message = str(caught.value)
    assert reason in message
    assert "teacher twisted" in message
    assert "\n" not in message


async def test_the_temperature_that_was_measured_and_the_one_expected_are_told() -> None:
    teacher = Twisted(LIES["ignores T"][0])
    with pytest.raises(
        ContractError, match=r"(\d+\.\d+) nats apart, expected \1 / 0.5 = (\d+\.\d+)\..*temperature = 1"
    ):
        await prove(teacher, PROMPTS, 0.5, tiny.VOCABULARY)


async def test_fewer_answers_than_questions_are_refused() -> None:
    class Forgetful(Twisted):
        async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
            return (await super().score(rollouts))[:-1]

    with pytest.raises(ContractError, match=r"twisted.*answers"):
        await prove(Forgetful(hidden), PROMPTS, 0.7, tiny.VOCABULARY)


async def test_every_probe_is_a_text_the_model_could_see() -> None:
    """Tokens of the vocabulary, right after a real prompt, marked as the response."""
    asked: list[Rollout] = []

    def record(honest: LocalTeacher, rollout: Rollout) -> HiddenScores:
        asked.append(rollout)
        return hidden(honest, rollout)

    await prove(Twisted(record), PROMPTS, 0.7, tiny.VOCABULARY)
    prefix = PROMPTS[1].token_ids  # the longest
    for rollout in asked:
        assert tuple(rollout.token_ids[: len(prefix)]) == prefix
        assert not rollout.trained[: len(prefix)].any()
        assert rollout.trained[len(prefix) :].all()
        assert 0 <= rollout.token_ids.min() <= rollout.token_ids.max() < tiny.VOCABULARY
    assert {rollout.sampling.temperature for rollout in asked} == {0.7, 1.0}
