"""The contract with a teacher, proven before the first step from nothing but its answers.

    tokenizer     the same text gives the same tokens on both sides
    alignment     the score of a token does not see what follows it, and does see the token and the
                  one before it
    temperature   log q_T(a) - log q_T(b) = (log q_1(a) - log q_1(b)) / T; the normaliser cancels, so
                  no weights are needed to catch a teacher that ignores T
    same weights  where the teacher is the student's own model, their KL is 0: catches everything else

A probe that fails raises `ContractError` with what was measured, what was expected and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from limbeck.errors import ContractError
from limbeck.protocols import Policy, Teacher
from limbeck.records import (
    Failure,
    Floats,
    HiddenScores,
    ProbeResult,
    Prompt,
    Rollout,
    Sampling,
    TeacherScores,
    TopKScores,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.causal_lm import CausalLM

RATIO_TOLERANCE = 1e-3  # nats, beside 1% of the ratio itself
IDENTICAL = 0.01  # nats a token between a model and itself
SMALLEST_RATIO = 0.05  # nats; below it two tokens say nothing about a temperature
PROBE_TEXTS = (
    "Hello, world! 12+34=46",
    "  leading spaces,\ttabs\nand lines",
    "naïve café — 東京 🙂",
    "<|im_end|></s>",
)


def check_tokenizers(student: CausalLM, teacher: CausalLM, same_chat_template: bool = True) -> ProbeResult:
    """Compare tokenizers and narrow both heads to the vocabulary they share.

    Embedding tables padded to different sizes over one tokenizer are fine: both distributions are
    taken over the smaller table. Raises `ContractError` for anything else.
    """
    ours_map = student.tokenizer.get_vocab()
    check_same_tokenizer(student.name, student.tokenizer, teacher.name, teacher.tokenizer, same_chat_template)
    shared = min(student.vocabulary, teacher.vocabulary)
    needed = max(ours_map.values()) + 1
    if shared < needed:
        raise ContractError(
            f"the tokenizer has ids up to {needed - 1}, but an output head has only {shared} rows. Resize it "
            "with model.resize_token_embeddings(len(tokenizer))."
        )
    sizes = f"{student.vocabulary} and {teacher.vocabulary} rows"
    student.vocabulary = teacher.vocabulary = shared
    return ProbeResult("tokenizer", f"{len(ours_map)} tokens, {sizes}", f"one map; compared over {shared}")


def check_same_tokenizer(
    student: str,
    ours: PreTrainedTokenizerBase,
    teacher: str,
    theirs: PreTrainedTokenizerBase,
    same_chat_template: bool = True,
) -> None:
    """Map, splitting, end and chat template must agree. Raises `ContractError`."""
    ours_map, theirs_map = ours.get_vocab(), theirs.get_vocab()
    if ours_map != theirs_map:
        differing = sorted(t for t in {*ours_map, *theirs_map} if ours_map.get(t) != theirs_map.get(t))
        token = differing[0]
        raise ContractError(
            f"student {student} and teacher {teacher} have different vocabularies: {len(differing)} "
            f"tokens differ, such as {token!r} (id {ours_map.get(token)} against {theirs_map.get(token)}). "
            "On-policy distillation compares them token by token: choose models of one tokenizer family."
        )
    for text in PROBE_TEXTS:
        if ours(text).input_ids != theirs(text).input_ids:
            raise ContractError(
                f"student {student} and teacher {teacher} share a vocabulary but split {text!r} "
                f"differently: {ours(text).input_ids[:12]} against {theirs(text).input_ids[:12]}."
            )
    if ours.eos_token_id != theirs.eos_token_id:
        raise ContractError(
            f"the student ends with token {ours.eos_token!r} ({ours.eos_token_id}), the teacher with "
            f"{theirs.eos_token!r} ({theirs.eos_token_id}): the teacher would mark every ending as wrong. Give "
            "both the same eos_token in tokenizer_config.json."
        )
    if same_chat_template and ours.chat_template and theirs.chat_template:
        _check_templates(student, teacher, ours, theirs)


def _check_templates(
    student: str, teacher: str, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    texts = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (ours, theirs)]
    if texts[0] != texts[1]:
        raise ContractError(
            f"student {student} and teacher {teacher} have different chat templates: {texts[0]!r} against "
            f"{texts[1]!r}. The teacher would mark answers to prompts it was not made for. Give both one "
            "template, or accept it with teacher.same_chat_template = false."
        )


async def prove(teacher: Teacher, prompts: Sequence[Prompt], temperature: float, vocabulary: int) -> list[ProbeResult]:
    """Run the probes that need only scores. Raises `ContractError` for the first that fails."""
    prefix = max(prompts[:16], key=lambda prompt: len(prompt.token_ids)).token_ids
    ids = continuations(prefix, vocabulary)
    return [
        await alignment(teacher, prefix, ids, temperature),
        await ratio(teacher, prefix, ids, temperature),
    ]


async def alignment(teacher: Teacher, prefix: tuple[int, ...], ids: list[int], temperature: float) -> ProbeResult:
    a, b, c = ids[:3]
    answers = await _ask(teacher, prefix, [[a, b], [a, c], [b, c], *([i, a] for i in ids)], temperature)
    rows = _rows(answers)
    moved = abs(rows[0, 0] - rows[1, 0])
    rollout_ab, (_, scores_bc) = answers[0][0], answers[2]
    if isinstance(scores_bc, HiddenScores):  # a state before `b` in place of `a` says the same of `a`
        moved = max(moved, abs(rows[0, 0] - logprobs_of_sampled(scores_bc, rollout_ab)[0]))
    if not moved <= RATIO_TOLERANCE:
        raise ContractError(
            f"teacher {teacher.name}: the score of a token moved by {moved:.3g} nats though nothing before it "
            f"changed (expected at most {RATIO_TOLERANCE}). Its answer is shifted by one: check which positions "
            "the server returns."
        )
    of_itself, of_the_one_before = np.ptp(rows[3:], axis=0)
    if not of_itself > RATIO_TOLERANCE:
        raise ContractError(
            f"teacher {teacher.name}: the score of a token did not change with the token itself "
            f"({of_itself:.3g} nats). Its answer is shifted by one, or it scores something else than what was sent."
        )
    if not of_the_one_before > RATIO_TOLERANCE:
        raise ContractError(
            f"teacher {teacher.name}: the score of a token did not change with the token before it "
            f"({of_the_one_before:.3g} nats). Its answer is shifted by one, or it does not see the text it was sent."
        )
    return ProbeResult("alignment", f"moved {moved:.1e} nats", f"at most {RATIO_TOLERANCE}")


async def ratio(teacher: Teacher, prefix: tuple[int, ...], ids: list[int], temperature: float) -> ProbeResult:
    at_one = _rows(await _ask(teacher, prefix, [[i] for i in ids], 1.0))[:, 0]
    at_t = _rows(await _ask(teacher, prefix, [[i] for i in ids], temperature))[:, 0]
    high, low = int(at_one.argmax()), int(at_one.argmin())
    ratio_one, ratio_t = at_one[high] - at_one[low], at_t[high] - at_t[low]
    if not ratio_one > SMALLEST_RATIO:
        raise ContractError(
            f"teacher {teacher.name}: {len(ids)} tokens have the same score to {ratio_one:.3g} nats, so nothing "
            "can be said about its temperature. Is it an untrained model?"
        )
    expected = ratio_one / temperature
    if not abs(ratio_t - expected) <= RATIO_TOLERANCE + 0.01 * expected:
        raise ContractError(
            f"teacher {teacher.name} does not score at temperature {temperature}: two tokens are "
            f"{ratio_t:.4f} nats apart, expected {ratio_one:.4f} / {temperature} = {expected:.4f}. Training would "
            "aim at logits that are wrong by this factor. Use a teacher that scores at the rollout "
            "temperature, or rollout.temperature = 1."
        )
    return ProbeResult("temperature", f"ratio {ratio_t:.4f} nats at T = {temperature}", f"{expected:.4f}")


async def same_weights(teacher: Teacher, student: Policy, prompts: Sequence[Prompt], temperature: float) -> ProbeResult:
    """Compare a teacher with the student that it is, on the tokens of the prompts. Raises `ContractError`.

    Half the mean square of the log-ratio is their KL to second order, and does not average away what is wrong.
    """
    texts = [prompt.token_ids for prompt in prompts if len(prompt.token_ids) > 1]
    rollouts = [probe_rollout(ids[:1], ids[1:], temperature, number) for number, ids in enumerate(texts)]
    theirs = await _logprobs(teacher, rollouts)
    ours = np.concatenate([*student.logprobs(rollouts), np.zeros(0)])
    ratios = (ours - theirs)[np.isfinite(theirs)]  # `rescale` does not know every position
    kl = float((ratios**2).mean() / 2) if len(ratios) else 0.0
    if not kl <= IDENTICAL:
        raise ContractError(
            f"teacher {teacher.name} is the student's own model, but the two are {kl:.3g} nats a token apart on the "
            f"task's prompts at temperature {temperature} (expected below {IDENTICAL}): they are not scored alike. "
            "Compare dtype and adapters on both sides. If only the names are the same, give student.model by another "
            "path."
        )
    return ProbeResult("same weights", f"{kl:.1e} nats a token over {len(ratios)}", f"below {IDENTICAL}")


async def _logprobs(teacher: Teacher, rollouts: Sequence[Rollout]) -> npt.NDArray[np.float64]:
    """Of all the rollouts' tokens, one after the other."""
    found: list[float] = []
    for rollout, scores in zip(rollouts, await teacher.score(rollouts), strict=True):
        if isinstance(scores, Failure):
            raise ContractError(f"teacher {teacher.name} could not score a probe: {scores.message}")
        found += logprobs_of_sampled(scores, rollout)
    return np.array(found, dtype=np.float64)


async def _ask(
    teacher: Teacher, prefix: tuple[int, ...], continuations: list[list[int]], temperature: float
) -> list[tuple[Rollout, TeacherScores]]:
    """The score of each continuation's tokens after `prefix`. Raises `ContractError` for one that is none."""
    rollouts = [probe_rollout(prefix, c, temperature, number) for number, c in enumerate(continuations)]
    answers = await teacher.score(rollouts)
    if len(answers) != len(rollouts):
        raise ContractError(f"teacher {teacher.name} gave {len(answers)} answers to {len(rollouts)} texts")
    checked = []
    for rollout, scores in zip(rollouts, answers, strict=True):
        if isinstance(scores, Failure):
            said = scores.message.removeprefix(f"teacher {teacher.name}: ")
            raise ContractError(f"teacher {teacher.name} could not score a probe: {said}")
        _check_answer(teacher, rollout, scores)
        checked.append((rollout, scores))
    return checked


def _rows(answers: Sequence[tuple[Rollout, TeacherScores]]) -> npt.NDArray[np.float64]:
    """[texts, S] log-probs of the tokens that were asked for."""
    return np.array([logprobs_of_sampled(scores, rollout) for rollout, scores in answers])


def _check_answer(teacher: Teacher, rollout: Rollout, scores: TeacherScores) -> None:
    """One finite number a sampled token, at the temperature it was sampled at."""
    asked, count = int(rollout.trained.sum()), len(_of_each_token(scores))
    if count != asked:
        raise ContractError(
            f"teacher {teacher.name} gave {count} scores for {asked} tokens. It must score the sampled tokens, all "
            "of them and nothing else."
        )
    if scores.temperature != rollout.sampling.temperature:
        raise ContractError(
            f"teacher {teacher.name} scored at temperature {scores.temperature}, asked for "
            f"{rollout.sampling.temperature}. Use a teacher that scores at the rollout temperature, or "
            "rollout.temperature = 1."
        )
    values = logprobs_of_sampled(scores, rollout)
    if not np.isfinite(values).all():
        raise ContractError(
            f"teacher {teacher.name} gave a token of the vocabulary a log-prob of "
            f"{next(value for value in values if not np.isfinite(value))}, expected a finite one. Its weights or its "
            "log-probs are not whole: check the checkpoint, and that the server does not truncate what it returns."
        )


def _of_each_token(scores: TeacherScores) -> torch.Tensor | Floats:
    """What a score holds one of for each sampled token."""
    if isinstance(scores, HiddenScores):
        hidden: torch.Tensor = scores.hidden
        return hidden
    return scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs


def probe_rollout(prefix: Sequence[int], continuation: Sequence[int], temperature: float, number: int = 0) -> Rollout:
    """`continuation` after `prefix`, as if a student had sampled it."""
    return Rollout(
        prompt=Prompt(f"probe-{number}", tuple(prefix)),
        sample=0,
        token_ids=np.array([*prefix, *continuation]),
        trained=np.arange(len(prefix) + len(continuation)) >= len(prefix),
        behaviour_logprobs=np.zeros(len(continuation), dtype=np.float32),
        policy_version=0,
        finish="length",
        sampling=Sampling(temperature, max_tokens=len(continuation)),
    )


def logprobs_of_sampled(scores: TeacherScores, rollout: Rollout) -> list[float]:
    """[S] log q of the sampled tokens, whatever the kind of score."""
    if isinstance(scores, HiddenScores):
        import torch  # a remote teacher is proven without it

        with torch.no_grad():
            logits_SV = scores.head.logits(scores.hidden) / scores.temperature
            ids_S1 = torch.from_numpy(rollout.response_ids).to(logits_SV.device)[:, None]
            values: list[float] = logits_SV.log_softmax(dim=-1).gather(1, ids_S1)[:, 0].tolist()
            return values
    return [float(value) for value in _of_each_token(scores)]


def continuations(prefix: tuple[int, ...], vocabulary: int) -> list[int]:
    """Some different tokens: those of the prefix, then others spread over the vocabulary."""
    spread = [int(i) for i in np.linspace(0, vocabulary - 1, 8)]
    return list(dict.fromkeys([*prefix[-8:], *spread]))
