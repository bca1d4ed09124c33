"""Numbers of a step that come from its rollouts and its clock, beside those of the learner."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from limbeck.records import Failure, Floats, Ints, Mask, Rollout, Scored, View
from limbeck.training.peaks import Work

REPEATED_GRAM = 4
BY_TASK = ("reward", "responses", "response_length/mean", "truncated")
LOOPING_SHARE = 0.5  # of a response's 4-grams seen before: text repeats itself far less


def describe(rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> dict[str, float]:
    """Lengths, truncation, repetition and reward of what the student sampled in a step."""
    responses = float(len(rollouts))
    own = [i for i, rollout in enumerate(rollouts) if rollout.source == "student"]
    rollouts, rewards = [rollouts[i] for i in own], [rewards[i] for i in own]
    if not rollouts:
        return {"responses": responses, "tokens/sampled": 0.0}
    lengths = [len(rollout.response_ids) for rollout in rollouts]
    graded = [reward for reward in rewards if reward is not None]
    numbers = {
        "response_length/mean": statistics.fmean(lengths),
        "response_length/max": float(max(lengths)),
        "truncated": statistics.fmean(rollout.finish == "length" for rollout in rollouts),
        "repetition": statistics.fmean(repeated_share(rollout.response_ids) > LOOPING_SHARE for rollout in rollouts),
        "responses": responses,
        "tokens/sampled": float(sum(lengths)),
    }
    return {**numbers, "reward": statistics.fmean(graded)} if graded else numbers


def describe_episodes(
    rollouts: Sequence[Rollout], episodes: Sequence[int], failures: Sequence[Failure], counts: Mapping[str, float]
) -> dict[str, float]:
    """Turns of the student and segments of an episode, and how many failed of what. `episodes`: whose each rollout is.

    `spliced` is the share of turns that went on after the exact tokens of an earlier one. Other turns began a segment,
    for the reason that it has, or branched off: another answer to the same. `counts` are the environment's own. Else
    empty where every episode was one turn and none failed.
    """
    numbers: dict[str, float] = {name: float(count) for name, count in sorted(counts.items())}
    turns: set[tuple[int, int]] = set()
    going_on: set[tuple[int, int]] = set()
    for episode, rollout in zip(episodes, rollouts, strict=True):
        said = [(episode, turn.key.turn) for turn in rollout.turns if turn.key]
        turns |= set(said)
        going_on |= set(said[1:])
    count = len(set(episodes))
    if len(turns) > count or (failures and count):
        numbers["env/turns"] = len(turns) / count
        numbers["env/spliced"] = len(going_on) / len(turns)
        numbers["env/segments"] = len(rollouts) / count
        reasons = Counter(_why_it_began(rollout) for rollout in rollouts if rollout.segment)
        numbers |= {f"env/segments/{reason.replace(' ', '_')}": n / count for reason, n in sorted(reasons.items())}
        numbers["env/context_tokens"] = sum(len(r.token_ids) - len(r.response_ids) for r in rollouts) / count
    if failures:
        numbers["env/failed"] = float(len(failures))
    for kind in sorted({failure.kind for failure in failures}):
        numbers[f"env/failed/{kind}"] = float(sum(failure.kind == kind for failure in failures))
    return numbers


def _why_it_began(rollout: Rollout) -> str:
    """A segment whose first turn is trained in another one shares it: it branched off."""
    first = next(turn for turn in rollout.turns if turn.key)
    return (rollout.reason if rollout.trained[first.start] else "") or "branched"


def describe_sources(rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> dict[str, float]:
    """`source/NAME/...`: how many sequences and tokens each source gave. Empty where the student sampled everything."""
    numbers: dict[str, float] = {}
    names = [rollout.source_name for rollout in rollouts]
    if all(rollout.source == "student" for rollout in rollouts):
        return numbers
    for name in sorted(set(names)):
        lengths = [len(r.response_ids) for r, mine in zip(rollouts, names, strict=True) if mine == name]
        graded = [r for r, mine in zip(rewards, names, strict=True) if mine == name and r is not None]
        numbers[f"source/{name}/responses"] = float(len(lengths))
        numbers[f"source/{name}/tokens"] = float(sum(lengths))
        numbers |= {f"source/{name}/reward": statistics.fmean(graded)} if graded else {}
    return numbers


def describe_tasks(rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> dict[str, float]:
    """`task/NAME/...`: of what the student answered of each task, where there were prompts of several."""
    names = [rollout.prompt.task if rollout.source == "student" else "" for rollout in rollouts]
    several = sorted(set(names) - {""})
    numbers: dict[str, float] = {}
    for name in several if len(several) > 1 else ():
        mine = [place for place, one in enumerate(names) if one == name]
        found = describe([rollouts[place] for place in mine], [rewards[place] for place in mine])
        numbers |= {f"task/{name}/{key}": found[key] for key in BY_TASK if key in found}
    return numbers


def describe_scores(samples: Sequence[Scored], asked: int) -> dict[str, float]:
    """What of the teachers' answers could be used, and how certain it is. `asked` counts the rollouts.

    Empty for an exact teacher that answered everything: then there is nothing to report.
    """
    numbers: dict[str, float] = {}
    if len(samples) < asked:
        numbers["teacher/samples_lost"] = float(asked - len(samples))
    certified = [s for s in samples if s.scores.errors is not None]
    if certified:
        errors, valid = _certificates(certified)
        numbers["teacher/tokens_left_out"] = float((~valid).sum())
        numbers["teacher/error_bound/mean"] = float(errors[valid].mean()) if valid.any() else 0.0
        numbers["teacher/error_bound/max"] = float(errors[valid].max()) if valid.any() else 0.0
    names = [sample.scores.scorer for sample in samples]
    for name in sorted(set(names)) if len(set(names)) > 1 else ():
        numbers[f"teacher/{name}/samples"] = float(names.count(name))
        if mine := [s for s in certified if s.scores.scorer == name]:
            numbers[f"teacher/{name}/left_out"] = float((~_certificates(mine)[1]).mean())
    return numbers


def describe_views(seen: Sequence[tuple[Rollout, View]], unseen: Sequence[Failure] = ()) -> dict[str, float]:
    """What teachers saw otherwise than the student, of rollouts and their views. Empty where they saw the same.

    `view/failed/<kind>`: rollouts that they could not be shown;
    `view/mapped`: tokens that another one of the teacher's stands for; `view/masked/<why>`: those left out of the loss.
    Of a teacher with other tokens `view/bytes_aligned`, the share of the text that is compared, and
    `view/tokens_per_group`, how many of the student's tokens are compared at a time.
    """
    mapped = sum(
        int((view.request.scored_ids != rollout.response_ids).sum()) for rollout, view in seen if view.groups is None
    )
    masked: Counter[str] = sum((Counter(view.left_out) for _, view in seen), Counter())
    counts = {f"view/masked/{why}": float(count) for why, count in sorted(masked.items())}
    failed = Counter(failure.kind for failure in unseen)
    counts |= {f"view/failed/{kind}": float(count) for kind, count in sorted(failed.items())}
    if groups := [view.groups for _, view in seen if view.groups is not None]:
        sizes, tokens = np.concatenate([g.sizes for g in groups]), np.concatenate([g.student for g in groups])
        counts["view/bytes_aligned"] = float(sizes.sum()) / max(1, sum(g.text_bytes for g in groups))
        counts["view/tokens_per_group"] = float((tokens >= 0).sum()) / max(1, len(sizes))
    return {**({"view/mapped": float(mapped)} if mapped else {}), **counts}


def _certificates(samples: Sequence[Scored]) -> tuple[Floats, Mask]:
    """Bounds in nats, and whether each position is certain enough, of samples end to end."""
    errors, valid = [], []
    for sample in samples:
        scores = sample.scores
        assert scores.errors is not None
        errors.append(scores.errors)
        valid.append(np.ones(len(scores.errors), bool) if scores.valid_mask is None else scores.valid_mask)
    return np.concatenate(errors), np.concatenate(valid)


def repeated_share(tokens: Ints) -> float:
    """Share of 4-grams that occurred earlier in the response; 0 where there are too few to tell."""
    grams = list(zip(*(tokens[i:].tolist() for i in range(REPEATED_GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 2 * REPEATED_GRAM else 0.0


def describe_lag(rollouts: Sequence[Rollout], step: int, lag: int) -> dict[str, float]:
    """How many updates the weights that sampled each token were behind those of before `step`'s update, on average.

    Empty where nothing is behind and nothing was to be.
    """
    versions = [rollout.versions for rollout in rollouts if rollout.source == "student"]
    if not versions:
        return {}
    behind = step - 1 - np.concatenate(versions)
    return {"lag": float(behind.mean())} if lag or behind.any() else {}


def speeds(seconds: Mapping[str, float], rollouts: Sequence[Rollout], lag: int = 0) -> dict[str, float]:
    """Tokens a second by phase (whole sequences where the phase computes them) and the teacher's share.

    With lag phases overlap, and none has a share of the step.
    """
    sampled, total = tokens_of(rollouts)
    responses = sum(len(rollout.response_ids) for rollout in rollouts)
    numbers = {
        "tokens_per_second/sample": sampled / seconds["sample"],
        "tokens_per_second/score": total / seconds["score"],
        "tokens_per_second/update": total / seconds["update"],
        "tokens_per_second/step": responses / seconds["step"],
    }
    return numbers if lag else {**numbers, "teacher_share": seconds["score"] / seconds["step"]}


def utilisation(
    work: Mapping[str, Work], seconds: Mapping[str, float], rollouts: Sequence[Rollout]
) -> dict[str, float]:
    """Model FLOPs utilisation of each role whose device's peak is known (Chowdhery et al. 2022, appendix B)."""
    sampled, total = tokens_of(rollouts)
    tokens = {"sample": sampled, "score": total, "update": total}
    return {f"mfu/{role}": mine.flops(tokens[role]) / mine.peak / seconds[role] for role, mine in work.items()}


def tokens_of(rollouts: Sequence[Rollout]) -> tuple[int, int]:
    """Tokens that were sampled, and those of the whole sequences."""
    sampled = sum(len(rollout.response_ids) for rollout in rollouts if rollout.source != "dataset")
    return sampled, sum(len(rollout.token_ids) for rollout in rollouts)
