"""The words for what is wrong with one side: its likely cause, and what to do."""

from __future__ import annotations

from limbeck.audit.fit import Candidate, Stretch
from limbeck.audit.report import Finding

NAMES = {
    "next": "each value is that of the token after",
    "previous": "each value is that of the token before",
    "own": "each token was scored with the logits after the token itself",
    "early": "each token was scored with the logits one position too early",
}
MOVED = "the weights moved with every update, and the model given is of another step than these rows"
OFFSETS = {"next": 1, "previous": -1, "own": 1, "early": -1}


def temperature_finding(
    name: str, stretch: Stretch, temperature: float, share: str, start: dict[str, int | None]
) -> Finding:
    at_one = abs(stretch.temperature - 1) < 0.03
    cause = {
        "teacher": "the server scores given text at its own temperature, 1, whatever it is asked"
        if at_one
        else "teacher and rollout were given different temperatures",
        "student": "the trainer does not divide its logits by the rollout temperature"
        if at_one
        else "trainer and sampler were given different temperatures",
        "sampler": "the sampler reports raw log-probs at temperature 1, not those it sampled from"
        if at_one
        else "the sampler was given another temperature than the trainer",
    }[name]
    remedy = {
        "teacher": "limbeck serve, limbeck bake --temperature, or log-probs rescaled within certified bounds: "
        "see the guide *A teacher behind a URL*",
        "student": f"divide the student's logits by {temperature:g} before the log-softmax, in the loss too",
        "sampler": "ask for log-probs after temperature (vLLM: logprobs_mode=processed_logprobs), or recompute them",
    }[name]
    return Finding(
        f"{name}_temperature",
        stretch.temperature,
        temperature,
        f"{share}the {name}'s log-probs are those of temperature {stretch.temperature:.4f} ± {stretch.error:.4f}, not "
        f"{temperature:g}.",
        cause,
        remedy,
        **start,
    )


def shift_finding(name: str, best: Candidate, share: str, start: dict[str, int | None]) -> Finding:
    return Finding(
        f"{name}_shift",
        OFFSETS[best.shift],
        0,
        f"{share}the {name}'s log-probs are off by one: {NAMES[best.shift]}.",
        "a slice of the scored sequence that begins one place early or late, or a leading token that is counted twice",
        "take the log-prob of token i from the logits at position i - 1, and align the list with the response's ids",
        **start,
    )


def form_finding(name: str, best: Candidate, share: str, start: dict[str, int | None]) -> Finding:
    if best.form == "divided":
        return Finding(
            f"{name}_not_normalised",
            "log q_1 / T",
            "log q_T",
            f"{share}the {name}'s values are its log-probs at temperature 1 times {best.beta:.4f}: no distribution.",
            "log-probs at temperature 1 were divided by T without normalising again",
            "divide the logits by T, then take the log-softmax",
            **start,
        )
    return Finding(
        f"{name}_not_nats",
        best.form,
        "base e",
        f"{share}the {name}'s values are logarithms to {best.form}.",
        "the server reports logarithms to another base",
        "multiply by the logarithm of that base",
        **start,
    )


def context_finding(name: str, stretch: Stretch, start: dict[str, int | None]) -> Finding:
    kind, _, text = stretch.context.partition("|")
    return Finding(
        f"{name}_{kind}",
        text,
        "the tokens of the rollout",
        f"the {name}'s log-probs are explained by {text}: {stretch.residual:.3f} nats a token are left.",
        "the prompt was put through a template, or split, again before it was scored"
        if kind == "template"
        else "the scorer was sent only a part of the sequence",
        "send the sampler's own token ids, prompt and response together, and let nobody template or cut them",
        **start,
    )


def unexplained_finding(name: str, left: float, limit: float, share: str, start: dict[str, int | None]) -> Finding:
    return Finding(
        f"{name}_tokenizer_or_weights",
        left,
        limit,
        f"{share}the {name}'s log-probs are {left:.3f} nats a token from what this model gives, at any "
        f"temperature from 0.125 to 8, shift or prompt that was tried (at most {limit:.3f} is noise).",
        {
            "student": f"{MOVED}; else another checkpoint than the one given, or ids of another tokenizer",
            "teacher": "ids of another tokenizer, or another model than the one given",
            "sampler": f"{MOVED}; else the sampler's weights were not the trainer's",
        }[name],
        "compare both tokenizers (limbeck check) and give the very checkpoint that scored these steps"
        if name == "teacher"
        else "give as --student the checkpoint that sampled these steps, or audit the rows of one step with its "
        "weights; if the finding stays, compare both tokenizers (limbeck check)",
        **start,
    )
