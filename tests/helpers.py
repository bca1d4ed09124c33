"""Small real things that tests share: models of a few thousand weights, rollouts, scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ObjectiveConfig, ReverseKLConfig
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.models.states import LocalStates
from limbeck.records import HiddenScores, Key, Prompt, Rollout, Sampled, Sampling, Scored, single_turn
from tests import tiny

ALPHABET = ["<pad>", "<eos>", "<unk>", *"0123456789+=; abcdefghij"]


def character_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(ALPHABET)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_llama(seed: int, hidden: int = 16, dropout: float = 0.0, spread: float = 4.0) -> LlamaForCausalLM:
    """A random Llama whose distributions are not flat."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ALPHABET),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            attention_dropout=dropout,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(spread / model.lm_head.weight.std() / hidden**0.5)
    model.generation_config.eos_token_id = 1
    return model


def tiny_lm(seed: int, dtype: torch.dtype = torch.float32, **kwargs: float) -> CausalLM:
    lm = CausalLM(f"tiny-{seed}", tiny_llama(seed, **kwargs), character_tokenizer(), len(ALPHABET))  # type: ignore[arg-type]
    return tiny.in_float64(lm) if dtype == torch.float64 else lm


def save_tiny(folder, seed: int, **kwargs: float) -> str:
    """A tiny model folder with its tokenizer."""
    tiny_llama(seed, **kwargs).save_pretrained(folder)  # type: ignore[arg-type]
    character_tokenizer().save_pretrained(folder)
    return str(folder)


def random_rollout(
    rng: np.random.Generator,
    index: int,
    length: int,
    prompt_length: int = 3,
    temperature: float = 0.7,
    sample: int = 0,
) -> Rollout:
    ids = rng.integers(3, len(ALPHABET), size=prompt_length + length).astype(np.int64)
    prompt = Prompt(f"p{index}", tuple(int(i) for i in ids[:prompt_length]))
    logprobs = rng.normal(-2.0, 0.3, size=length).astype(np.float32)
    sampled = Sampled(ids[prompt_length:], logprobs, "stop", version=0)
    return single_turn(prompt, Key(prompt.id, sample=sample), sampled, Sampling(temperature, max_tokens=32))


def heads_of(*lms: CausalLM) -> dict[str, Head]:
    """What a learner is given to understand the hidden states of these models."""
    heads = [lm.head().detach() for lm in lms]
    return {head.fingerprint(): head for head in heads}


def dense_scores(teacher: CausalLM, rollout: Rollout, head: str | None = None) -> HiddenScores:
    """What an in-process teacher answers, computed one rollout at a time; `head` is its fingerprint."""
    with torch.no_grad():
        hidden_Ld = teacher.hidden(torch.from_numpy(rollout.token_ids)[None])[0]
    predict = np.flatnonzero(rollout.trained) - 1
    return HiddenScores("teacher", LocalStates(hidden_Ld[predict]), head or teacher.head().fingerprint())


def random_samples(teacher: CausalLM, lengths: list[int], seed: int = 0, advantages: bool = False) -> list[Scored]:
    rng = np.random.default_rng(seed)
    samples, head = [], teacher.head().fingerprint()
    for index, length in enumerate(lengths):
        rollout = random_rollout(rng, index, length, prompt_length=int(rng.integers(1, 6)))
        advantage = float(rng.normal()) if advantages else 0.0
        samples.append(Scored(rollout, dense_scores(teacher, rollout, head), None, advantage))
    return samples


def learner_of(
    lm: CausalLM,
    *scorers: CausalLM,
    objective: ObjectiveConfig | None = None,
    steps: int = 10,
    seed: int = 0,
    **config: Any,
) -> LocalLearner:
    """A learner of `lm` that understands the hidden states of `scorers`; `config` is of the recipe's table."""
    chosen = ReverseKLConfig() if objective is None else objective
    return LocalLearner(lm, LocalLearnerConfig(**config), chosen, steps, seed, heads_of(*scorers))
