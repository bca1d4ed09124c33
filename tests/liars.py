"""Servers that lie about what they score, each with an honest twin: the same server without the lie.

    server = liar(TEACHERS["flat"](), "adds a BOS", knows_temperature=True)

A lie changes what the model is given (`sees`), which of its positions is read (`row`), what the logits become
(`logprobs`), or what is sent of them (`sampled`, `listed`). Where it changes nothing that is sent, it is
none: `differs`.

Shape legend: L sequence, n scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from limbeck.config.base import ModelConfig
from limbeck.models.loading import load_model
from tests import tiny
from tests.fake_server import FakeServer, log_softmax


class Model:
    """Logits of a causal model, remembered by text."""

    def __init__(self, net: PreTrainedModel, vocabulary: int, tokenizer: Any = None) -> None:
        self.net, self.vocabulary, self.tokenizer = net.eval(), vocabulary, tokenizer
        self.logits = lru_cache(400)(self._logits)
        self._last: dict[tuple[int, ...], np.ndarray] = {}

    def _logits(self, ids: tuple[int, ...]) -> np.ndarray:
        with torch.inference_mode():
            return self.net(torch.tensor([ids])).logits[0, :, : self.vocabulary].double().numpy()

    def last(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """[n, V] logits after each text; those of one length in one pass."""
        missing: dict[int, list[tuple[int, ...]]] = {}
        for text in dict.fromkeys(texts):
            if text not in self._last:
                missing.setdefault(len(text), []).append(text)
        for group in missing.values():
            with torch.inference_mode():
                rows = self.net(torch.tensor(group), logits_to_keep=1).logits[:, -1, : self.vocabulary].float().numpy()
            self._last.update(zip(group, rows, strict=True))
        found = np.array([self._last[text] for text in texts], dtype=np.float64)
        if len(self._last) > 4000:
            self._last.clear()
        return found


@cache
def demo(dtype: str = "float32") -> Model:
    lm = load_model(ModelConfig(model="demo:teacher", dtype=dtype), torch.device("cpu"))  # type: ignore[arg-type]
    return Model(lm.model, lm.vocabulary, lm.tokenizer)


@cache
def of_2048(spread: float, dtype: str = "float32", seed: int = 0) -> Model:
    """A random Llama whose logits have about this standard deviation."""
    config = tiny.config_of("llama", vocab_size=2048)
    config.max_position_embeddings = 2048
    net = tiny.build(config, seed)
    with torch.no_grad():
        logits = net(torch.arange(64)[None]).logits
        net.lm_head.weight.mul_(spread / logits.std())
    return Model(net.to(getattr(torch, dtype)), 2048)


TEACHERS: dict[str, Callable[..., Model]] = {
    "demo": demo,
    "flat": lambda dtype="float32": of_2048(0.5, dtype),
    "peaked": lambda dtype="float32": of_2048(4.0, dtype),
}

Ids = Sequence[int]


@dataclass(frozen=True)
class Lie:
    """`probe`: what must catch it. `hot`: it is one at temperatures other than 1 alone."""

    probe: str
    sees: Callable[[tuple[int, ...], int], tuple[int, ...]] | None = None  # (ids[:t], t) -> what predicts ids[t]
    text: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None  # what is scored in place of the whole text
    row: int = 0  # positions too late
    rows_of: str = "both"  # "sampled" or "listed": which of them `row` and `logprobs` are about
    logprobs: Callable[[np.ndarray, float], np.ndarray] | None = None  # logits [n, V], T -> what is sent
    hot: bool = False
    rows: Callable[[np.ndarray, int, int], np.ndarray] | None = None  # logits [L - 1, V], L, K -> those that it reads
    heat: Callable[[int, int, int], Any] | None = None  # (position [L - 1], L, K) -> whether T is known there
    hole: tuple[float, float] | None = None  # share of a long text that what follows it does not see
    support: int = 5  # tokens of a position that training asks for
    after: int = 0  # requests that are answered honestly
    served: float = 1.0  # share of the requests that it is told to


def _late(logits: np.ndarray, place: int, by: int) -> np.ndarray:
    out = logits.copy()
    out[place:] = np.roll(logits, by, axis=0)[place:]
    return out


def _ahead(logits: np.ndarray, by: int) -> np.ndarray:
    """What is read there leaks into what is scored here."""
    out = logits.copy()
    out[: max(0, len(out) - by)] += 0.3 * logits[by:]
    return out


def _natural(logits: np.ndarray, t: float) -> np.ndarray:
    return log_softmax(logits, t)


def _nucleus(p: float, floor: float, renormalise: bool = True) -> Callable[[np.ndarray, float], np.ndarray]:
    def cut(logits: np.ndarray, t: float) -> np.ndarray:
        logp = log_softmax(logits, t)
        order = np.argsort(-logp, axis=1)
        before = np.cumsum(np.exp(np.take_along_axis(logp, order, axis=1)), axis=1)
        kept = np.zeros(logp.shape, bool)
        np.put_along_axis(kept, order, before - np.exp(np.take_along_axis(logp, order, axis=1)) < p, axis=1)
        out = np.where(kept, logp, -np.inf)
        out = log_softmax(out) if renormalise else out
        return np.where(kept, out, floor)

    return cut


def _top_k(k: int, floor: float) -> Callable[[np.ndarray, float], np.ndarray]:
    def cut(logits: np.ndarray, t: float) -> np.ndarray:
        least = np.sort(logits, axis=1)[:, -k][:, None]
        return np.where(logits >= least, log_softmax(np.where(logits >= least, logits, -np.inf), t), floor)

    return cut


def _merged(ids: tuple[int, ...]) -> list[int]:
    """As a tokenizer would: some pairs of tokens are one token, from left to right."""
    out: list[int] = []
    for token in ids:
        if out and (out[-1] * 31 + token) % 5 == 0:
            out[-1] = (out[-1] * 7 + token) % 90
        else:
            out.append(token)
    return out


def _again(sent: tuple[int, ...], end: bool) -> tuple[int, ...]:
    """Other tokens of the text, as many as were sent: what is missing is filled up."""
    ids = _merged(sent)
    missing = [ids[0]] * (len(sent) - len(ids))
    return tuple([*missing, *ids] if end else [*ids, *missing])


def _hot(logprobs: Callable[[np.ndarray, float], np.ndarray], rows_of: str = "both") -> Lie:
    return Lie("native", logprobs=logprobs, rows_of=rows_of, hot=True)


def _plus(amount: float) -> Callable[[np.ndarray, float], np.ndarray]:
    return lambda logits, t: np.log(np.exp(log_softmax(logits, t)) + amount)


def _mixed(logits: np.ndarray, t: float) -> np.ndarray:
    return np.log(0.9 * np.exp(log_softmax(logits, t)) + 0.1 / logits.shape[1])


def _half(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return (logits * 20000).astype(np.float16).astype(np.float64)


LIES: dict[str, Lie] = {
    # of temperature
    "divides the log-probs by T, and does not normalise": _hot(lambda z, t: log_softmax(z) / t),
    "multiplies the log-probs by T": _hot(lambda z, t: log_softmax(z) * t),
    "ignores T": _hot(lambda z, t: log_softmax(z)),
    "divides twice": _hot(lambda z, t: log_softmax(z, t * t)),
    "rounds T to halves": _hot(lambda z, t: log_softmax(z, max(0.5, round(t * 2) / 2))),
    "rounds T to a whole number": _hot(lambda z, t: log_softmax(z, max(1, round(t)))),
    "stays at 0.9": _hot(lambda z, t: log_softmax(z, 0.9)),
    "divides the list alone": _hot(lambda z, t: log_softmax(z), rows_of="sampled"),
    "divides the sampled token alone": _hot(lambda z, t: log_softmax(z), rows_of="listed"),
    # of positions
    "reads the logits after the token": Lie("alignment", row=1),
    "reads the logits after the next token": Lie("alignment", row=2),
    "reads the logits of the token before": Lie("alignment", row=-1),
    "reads the logits two tokens before": Lie("alignment", row=-2),
    "scores after the token, lists before it": Lie("alignment|normalisation", row=1, rows_of="sampled"),
    "lists after the token, scores before it": Lie("alignment|normalisation", row=1, rows_of="listed"),
    # of the text
    "cuts the context to 32 tokens": Lie("length", sees=lambda h, t: h[-32:]),
    "cuts the context to 4 tokens": Lie("length", sees=lambda h, t: h[-4:]),
    "reads the first 8 and the last 16": Lie("length", sees=lambda h, t: h if t < 25 else h[:8] + h[-16:]),
    "cuts the text at 40 tokens": Lie("alignment|length", sees=lambda h, t: h[:40]),
    "adds a BOS": Lie("start", sees=lambda h, t: (1, *h)),
    "adds a BOS where there is none": Lie("start", sees=lambda h, t: h if h[0] == 1 else (1, *h)),
    "puts a template before": Lie("start", sees=lambda h, t: (3, 9, 14, *h)),
    "drops the first token": Lie("start|alignment", sees=lambda h, t: h[1:] or h),
    "replaces the first token": Lie("start", sees=lambda h, t: (1, *h[1:])),
    "tokenizes again, and cuts what is too long": Lie("alignment", text=partial(_again, end=False)),
    "tokenizes again, and answers for the end": Lie("alignment", text=partial(_again, end=True)),
    # of the distribution
    "uses base 2": Lie("normalisation", logprobs=lambda z, t: log_softmax(z, t) / np.log(2)),
    "uses base 10": Lie("normalisation", logprobs=lambda z, t: log_softmax(z, t) / np.log(10)),
    "sends probabilities": Lie("normalisation", logprobs=lambda z, t: np.exp(log_softmax(z, t))),
    "sends logits": Lie("normalisation", logprobs=lambda z, t: (z - z.max(axis=1, keepdims=True)) / t),
    "floors a nucleus at 1e-30": Lie("normalisation", logprobs=_nucleus(0.9, np.log(1e-30))),
    "floors a nucleus at 1e-10, not renormalised": Lie("normalisation", logprobs=_nucleus(0.95, np.log(1e-10), False)),
    "gives -9999 outside of a nucleus": Lie("normalisation", logprobs=_nucleus(0.9, -9999.0)),
    "gives -inf outside of a nucleus": Lie("normalisation", logprobs=_nucleus(0.9, -np.inf)),
    "keeps the top 50": Lie("normalisation", logprobs=_top_k(50, np.log(1e-30))),
    "adds 1e-4 to each probability": Lie("normalisation|alignment", logprobs=_plus(1e-4)),
    "clamps at -8": Lie("normalisation", logprobs=lambda z, t: np.maximum(log_softmax(z, t), -8.0)),
    "rounds to a tenth": Lie("normalisation", logprobs=lambda z, t: np.round(log_softmax(z, t), 1)),
    "overflows in float16": Lie("normalisation", logprobs=lambda z, t: log_softmax(_half(z), t)),
    "is off by a constant": Lie("normalisation", logprobs=lambda z, t: log_softmax(z, t) - 0.5),
    "mixes with a uniform distribution after dividing": _hot(_mixed),
    # of the place in a long text
    "is shifted by one after 64 tokens": Lie("alignment|length", rows=lambda z, n, k: _late(z, 64, 1)),
    "is shifted back by one after 128 tokens": Lie("alignment|length", rows=lambda z, n, k: _late(z, 128, -1)),
    "is shifted in the last chunk of 64 alone": Lie(
        "alignment|length", rows=lambda z, n, k: _late(z, n // 64 * 64 - 32, 1)
    ),
    "divides by T in the first 64 positions alone": Lie("native", hot=True, heat=lambda i, n, k: i < 64),
    "divides by T in the last chunk of 64 alone": Lie("native", hot=True, heat=lambda i, n, k: i >= (n - 1) // 64 * 64),
    "divides by T in texts up to 128 alone": Lie("native", hot=True, heat=lambda i, n, k: (i >= 0) & (n <= 128)),
    "answers at 1 above 20 tokens a position": Lie(
        "native", hot=True, heat=lambda i, n, k: (i >= 0) & (k <= 20), support=40
    ),
    "scales long texts": Lie("length", rows=lambda z, n, k: z * (0.8 if n > 100 else 1)),
    "looks 70 tokens ahead": Lie("alignment|length", rows=lambda z, n, k: _ahead(z, 70)),
    "keeps 4 and the last 70%": Lie("length", hole=(0.02, 0.3)),
    "drops a fifth in the middle": Lie("length", hole=(0.33, 0.53)),
    # of which model
    "is another model one time in four": Lie(
        "noise|alignment|start|native", sees=lambda h, t: tuple((i + 1) % 90 for i in h), served=0.25
    ),
}


class Liar(FakeServer):
    """A fake server of `model`. `lie` None: the honest twin."""

    def __init__(self, model: Model, lie: Lie | None, **options: Any) -> None:
        super().__init__(vocabulary=model.vocabulary, **options)
        self.of, self.lie, self.scored = model, lie, 0

    def set_weights(self, seed: int) -> None:
        """There is a model instead of a table."""

    def truth(self, ids: Any, start: int, temperature: float) -> np.ndarray:
        return log_softmax(self.of.logits(tuple(map(int, ids)))[start - 1 : -1], temperature)

    def _rows(self, ids: tuple[int, ...], start: int, lie: Lie, top: int) -> np.ndarray:
        """[n, V] logits that the lie reads for each token from `start` on."""
        if lie.text is not None:
            return self.of.logits(lie.text(ids))[start - 1 : -1]
        if lie.rows is not None:
            return lie.rows(self.of.logits(ids)[:-1], len(ids), top)[start - 1 :]
        if lie.hole is not None:
            begin, end = (int(share * len(ids)) for share in lie.hole)
            out = self.of.logits(ids).copy()
            if len(ids) > 100:
                out[end:] = self.of.logits((*ids[:begin], *ids[end:]))[begin:]
            return out[start - 1 : -1]
        if lie.sees is None:
            logits = self.of.logits(ids)
            places = np.clip(np.arange(start, len(ids)) - 1 + lie.row, 0, len(ids) - 1)
            return logits[places]
        whole = lie.sees(ids, len(ids))
        seen = [lie.sees(ids[:t], t) for t in range(start, len(ids))]
        of_whole = self.of.logits(whole)  # where the lie is a text of its own, in one pass
        others = [one for one in seen if whole[: len(one)] != one]
        rest = iter(self.of.last(others) if others else [])
        return np.array([of_whole[len(one) - 1] if whole[: len(one)] == one else next(rest) for one in seen])

    def _scores(self, ids: list[int], start: int, top: int, asked: float | None) -> tuple[list[Any], list[Any]]:
        text = tuple(map(int, ids))
        used = asked if asked is not None and self.knows_temperature else self.temperature
        honest = self.truth(text, start, used)
        sampled_nV = listed_nV = honest
        lie = self.lie
        self.scored += 1
        begun = lie is not None and self.scored > lie.after
        if lie is not None and begun and not (lie.hot and used == 1) and self.rng.random() < lie.served:
            false = (lie.logprobs or _natural)(self._rows(text, start, lie, top), used)
            if lie.heat is not None:
                knows = np.broadcast_to(lie.heat(np.arange(start - 1, len(text) - 1), len(text), top), len(false))
                false = np.where(knows[:, None], false, self.truth(text, start, 1.0))
            sampled_nV = honest if lie.rows_of == "listed" else false
            listed_nV = honest if lie.rows_of == "sampled" else false
        own = np.array(text[start:])
        scored = own if lie is None or lie.text is None else np.array(lie.text(text)[start:])
        values = sampled_nV[np.arange(len(own)), scored].astype(np.float32)
        single = [[float(v), int(i)] for v, i in zip(values, own, strict=True)]
        order = np.argpartition(-listed_nV, max(0, top - 1), axis=1)[:, :top]
        order = np.take_along_axis(order, np.argsort(-np.take_along_axis(listed_nV, order, axis=1), axis=1), axis=1)
        tops = np.take_along_axis(listed_nV, order, axis=1).astype(np.float32)
        lists = [[[float(v), int(i)] for v, i in zip(a, b, strict=True)] for a, b in zip(tops, order, strict=True)]
        return single, lists

    def differs(self, temperature: float) -> float:
        """Nats by which the lie changes what is sent of a text like those of training, at most."""
        ids = np.random.default_rng(5).integers(0, min(90, self.vocabulary), 160).tolist()
        lie, found = self.lie, []
        if lie is not None and lie.sees is not None:  # text by text: shorter ones show it too
            ids = ids[:64]
        for each in (None, lie):
            self.lie = each
            found.append(self._scores(ids, 1, 5 if lie is None else lie.support, temperature))
        self.scored = 0
        self.lie = lie
        (ours, our_lists), (theirs, their_lists) = found
        moved = [abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)]
        for a, b in zip(our_lists, their_lists, strict=True):
            moved += [abs(x[0] - y[0]) for x, y in zip(a, b, strict=True)]
        return float(np.nan_to_num(np.max(moved), nan=np.inf))
