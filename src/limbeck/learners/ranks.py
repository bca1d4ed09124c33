"""One rank of a learner that several processes are, built from plain arguments."""

from __future__ import annotations

import logging

import torch

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ObjectiveConfig
from limbeck.learners.batch import Heads
from limbeck.learners.local import LocalLearner
from limbeck.learners.process_group import Ranks, join
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folder import stored_dtype
from limbeck.models.loading import load_model, read_model, resolve
from limbeck.objectives import Loss

logger = logging.getLogger("limbeck")


def open_rank(
    config: LocalLearnerConfig,
    objective: ObjectiveConfig | Loss,
    steps: int,
    seed: int,
    source: ModelConfig,
    rank: int,
    count: int,
    init_method: str = "",
    device: str = "cpu",
    heads: Heads | None = None,
    vocabulary: int | None = None,
) -> LocalLearner:
    """Rank `rank` of `count`: the learner of its process, which trains the model of `source` with the others.

    `init_method` is where they meet, see `process_group.join`; one rank alone meets nobody. `vocabulary` is what
    student, teachers and reference share; None: the student's own. Raises `LimbeckError`.
    """
    place = torch.device(device)
    if count == 1:
        return LocalLearner(_shared(load_model(source, place), vocabulary), config, objective, steps, seed, heads)
    ranks: Ranks = join(rank, count, init_method, place, getattr(torch, source.dtype))
    return LocalLearner(_shared(read_stored(source), vocabulary), config, objective, steps, seed, heads, ranks)


def _shared(lm: CausalLM, vocabulary: int | None) -> CausalLM:
    lm.vocabulary = lm.vocabulary if vocabulary is None else vocabulary
    return lm


def read_stored(source: ModelConfig) -> CausalLM:
    """The model in the dtype of its files, which takes no memory until a rank has taken its rows of it."""
    wanted: torch.dtype = getattr(torch, source.dtype)
    stored = stored_dtype(resolve(source.model))
    if stored is None:
        logger.warning(
            "%s: its weights are not in safetensors files of one dtype, so each rank holds all of them while it loads. "
            "Save it once with save_pretrained(folder) where memory does not suffice.",
            source.model,
        )
    return read_model(source, stored or wanted)
