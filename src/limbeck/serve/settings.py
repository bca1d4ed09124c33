"""The options of `limbeck serve`, and what a request may ask. No HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.serve.scorer import Asked
from limbeck.wire.score import WireError, top_k


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits and defaults of the server.

    `temperature` is what clients get that do not know a scoring-temperature field, such as slime's and
    miles's reward functions.
    """

    name: str = "teacher"
    temperature: float | None = None
    token_env: str | None = None
    queue: int = 256  # sequences
    batch: int = 64  # sequences scored at a time
    body_mb: int = 64
    max_top_k: int = 1024
    max_length: int | None = None  # tokens; None: the model's context

    def pick_temperature(self, scoring: float | None, sampling: float | None) -> float:
        """The scoring field; else the operator's choice; else the request's own, or 1 where it has none.

        Stock servers never looked at the sampling temperature of a scoring request, so clients put 0 or 1 there
        and mean nothing by it (slime, miles: 0). Any other number is a wish. Raises `WireError` (kind refused) for
        what is not a temperature, for two that contradict each other, and where there is only a 0 to go by:
        answered at 1, it would be a bias that no metric shows.
        """
        if scoring is not None:
            if not 0 < scoring < float("inf"):
                raise WireError("refused", f"the scoring temperature is {scoring}, expected a number above 0")
            return scoring
        if sampling is not None and not 0 <= sampling < float("inf"):
            raise WireError("refused", f"the sampling temperature is {sampling}, expected a number of at least 0")
        if self.temperature is not None:
            if sampling not in (None, 0, 1, self.temperature):
                raise WireError(
                    "refused",
                    f"the request's temperature is {sampling:g}, but this server was started with --temperature "
                    f"{self.temperature:g}: start it with the rollout temperature, or send a scoring temperature",
                )
            return self.temperature
        if sampling == 0:
            raise WireError(
                "refused",
                "the request's temperature is 0, at which nothing has a probability: start this server with "
                "--temperature T, the rollout temperature, or send a scoring temperature",
            )
        return 1.0 if sampling is None else sampling

    def check(self, asked: Asked, vocabulary: int, context: int | None) -> None:
        """Raises `WireError` (kind refused) for a request beyond the limits."""
        ids, longest = asked.request.token_ids, self.max_length or context
        if len(ids) < 1:
            raise WireError("refused", "a sequence has no tokens")
        if longest is not None and len(ids) > longest:
            raise WireError("refused", f"{len(ids)} tokens, more than the {longest} this server takes")
        lowest, highest = min(int(ids.min()), *asked.listed, 0), max(int(ids.max()), *asked.listed, 0)
        if not (lowest >= 0 and highest < vocabulary):
            raise WireError(
                "refused",
                f"token ids are {lowest} to {highest}, but the vocabulary has {vocabulary}: another tokenizer?",
            )
        k, most = top_k(asked.request), min(vocabulary, self.max_top_k)
        if not 0 <= k <= most:
            raise WireError("refused", f"top {k} asked for, this server gives up to {most}")
