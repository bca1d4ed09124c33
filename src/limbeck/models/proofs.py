"""Whether a model does what Limbeck takes it to do.

Its weights are finite, its rows causal and apart, its head understood, and with a cache it decodes what it scores.

    prove_model(lm)       whoever loads a model
    prove_decoding(lm)    whoever samples from it in this process too

Nothing is guessed from a model's name: a few tokens are run.
"""

from __future__ import annotations

import torch

from limbeck.errors import LimbeckError, ModelError
from limbeck.models.causal_lm import CausalLM, first_line, text_config
from limbeck.models.decode import TransformersRows
from limbeck.models.equivalence import distance, tolerance
from limbeck.models.prefill import MASK_PLACES, prefill
from limbeck.models.reach import evaluating
from limbeck.models.shards import inside, largest, local

SUPPORTED = "Supported: attention-only causal language models."
SERVED = "Sample from a server that holds it (engine.kind = 'sglang' or 'vllm'), or choose another student."
PROBE_TOKENS = 12
FAULT = 10  # times what rounding may do: a model is refused for a mistake, not for a kernel that rounds more


def prove_model(lm: CausalLM) -> None:
    """Prove that weights are finite, rows causal and apart, and the head understood. Raises `ModelError`."""
    _check_finite(lm)
    _prove_rows(lm)
    prove_head(lm)


def _check_finite(lm: CausalLM) -> None:
    tensors = lm.model.state_dict()  # buffers that are not kept in files may hold -inf
    bad = largest(lm.model, torch.tensor([not torch.isfinite(local(t)).all() for t in tensors.values()]).int())
    for name, is_bad in zip(tensors, bad.tolist(), strict=True):
        if is_bad:
            raise ModelError(f"{lm.name}: weight {name!r} has NaN or infinite values. Use another checkpoint.")


def _prove_rows(lm: CausalLM) -> None:
    """Compare the logits of the same tokens before two different continuations, and beside another row and alone.

    Raises `ModelError`. An encoder such as BERT is a causal model to transformers, and attends to what follows unless
    `is_decoder` is set; experts of a fixed capacity would make a row depend on its neighbours.
    """
    half, family = max(1, min(PROBE_TOKENS, lm.context or PROBE_TOKENS) // 2), type(lm.model).__name__
    parts = torch.split(torch.arange(1, 3 * half + 1, device=lm.device) * 7919 % lm.vocabulary, half)
    rows_2L = torch.stack([torch.cat([parts[0], after]) for after in parts[1:]])
    try:
        with torch.no_grad():
            (one_LV, other_LV), (alone_LV,) = (
                lm.model(input_ids=rows_BL, use_cache=False).logits[:, :, : lm.vocabulary].float().log_softmax(-1)
                for rows_BL in (rows_2L, rows_2L[:1])
            )
        with_next = (one_LV - other_LV)[:half].abs().max().item()
        with_row = (one_LV - alone_LV).abs().max().item()
    except Exception as error:  # whatever the architecture's own code raises
        raise ModelError(
            f"{lm.name}: {family} cannot be run on tokens alone: {first_line(error)}. {SUPPORTED}"
        ) from error
    limit = FAULT * tolerance(lm)
    for what, worst, cause in (
        ("is not causal", with_next, "the tokens that follow"),
        ("does not keep rows apart", with_row, "another row beside it"),
    ):
        if not worst <= limit:
            raise ModelError(
                f"{lm.name}: {family} {what}: log-probs change by {worst:.3g} nats with {cause} (expected at most "
                f"{limit:g}). {SUPPORTED}"
            )


def prove_head(lm: CausalLM) -> None:
    """Compare our head on our hidden states with the model's own logits. Raises `ModelError`."""
    count = min(8, lm.context or 8)
    tokens_BL = torch.arange(count, device=lm.device)[None] * 7919 % lm.vocabulary
    lm.head()  # refused before anything is run
    try:
        with evaluating(lm), torch.no_grad():
            theirs_LV = lm.model(input_ids=tokens_BL, use_cache=False).logits[0].float()
            ours_LV = inside(lm.model, lambda: lm.head().logits(lm.hidden(tokens_BL)[0])).float()
    except Exception as error:  # whatever the architecture's own code raises
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} cannot be run as a body and a head: {first_line(error)}. {SUPPORTED}"
        ) from error
    theirs_LV = theirs_LV[:, : lm.vocabulary]
    worst = (theirs_LV.log_softmax(-1) - ours_LV.log_softmax(-1)).abs().max().item()
    if not worst <= (limit := tolerance(lm)):
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} turns hidden states into logits in a way Limbeck does not "
            f"know (log-probs differ by {worst:.3g} nats; expected at most {limit:g}). Supported: a "
            "linear head with bias, multiplier and soft cap."
        )


def prove_decoding(lm: CausalLM) -> None:
    """Compare tokens decoded by transformers, after prompts of different lengths, with the same sequences at once.

    For whoever samples from the model in this process. Raises `ModelError`: some models keep no cache, or count the
    places of a padded row for positions.
    """
    family = type(lm.model).__name__
    if getattr(text_config(lm.model), "attn_temperature_tuning", False):  # far beyond what a probe reaches
        raise ModelError(
            f"{lm.name}: {family} scales its queries by places in the row, not by positions (attn_temperature_tuning), "
            f"so that a prompt beside a longer one is computed wrongly. {SERVED}"
        )
    tokens = (torch.arange(1, 15) * 7919 % lm.vocabulary).tolist()
    if lm.context is not None and lm.context < 8:
        raise ModelError(f"{lm.name}: a context of {lm.context} tokens, expected at least 8.")
    rows = [tokens[:7], tokens[7:11]]  # prompts of five and two tokens, and two more of each
    training = lm.model.training
    lm.model.eval()
    try:
        with torch.inference_mode():
            alone_Nd = torch.cat([lm.hidden(torch.tensor([row], device=lm.device))[0, -3:] for row in rows])
            worst = 0.0
            for mask_places in (MASK_PLACES, 0):  # together, and as prompts are computed that are long
                start = prefill(lm, [row[:-2] for row in rows], mask_places=mask_places)
                decoder = TransformersRows(lm, start, torch.tensor([0, 1], device=lm.device), 2)
                states = [start.hidden_Pd]
                states += [
                    decoder.forward(torch.tensor([row[place] for row in rows], device=lm.device)) for place in (-2, -1)
                ]
                worst = max(worst, distance(lm, torch.stack(states, dim=1).flatten(0, 1), alone_Nd))
    except LimbeckError:
        raise
    except Exception as error:  # whatever the architecture's own code raises
        why = first_line(error)
        if "update_indexer" in str(error):
            why = "it attends to tokens that an indexer chooses, whose own cache Limbeck does not keep"
        raise ModelError(f"{lm.name}: {family} cannot be decoded with a key-value cache: {why}. {SERVED}") from error
    finally:
        lm.model.train(training)
    if not worst <= (limit := FAULT * tolerance(lm)):
        raise ModelError(
            f"{lm.name}: {family} does not sample what it scores: decoded with a cache, beside a prompt of another "
            f"length, log-probs are {worst:.3g} nats off (expected at most {limit:g}). {SERVED}"
        )
