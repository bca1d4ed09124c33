"""The options of `limbeck serve`, and the temperature that a request gets. No HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.wire.score import WireError

# Beyond these no teacher is of use, and below them float32 runs out: the same as `rollout.temperature`'s.
COLDEST, HOTTEST = 1e-3, 1e3


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits and defaults of the server.

    `temperature` is what clients get that do not know a scoring-temperature field, such as slime's and
    miles's reward functions.
    """

    name: str = "teacher"
    temperature: float | None = None
    token_env: str | None = None
    max_queue: int = 1024  # sequences
    batch_tokens: int = 8192  # scored at a time
    prefix_cache_mb: int = 512  # of prefixes that return; 0: none are kept
    body_mb: int = 16
    answer_mb: int = 64
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
            return _in_range(scoring, "scoring temperature")
        if sampling is not None and sampling != 0:
            sampling = _in_range(sampling, "sampling temperature")
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


def _in_range(value: float, what: str) -> float:
    if not COLDEST <= value <= HOTTEST:  # NaN too; an integer of any length is compared as it is
        raise WireError(
            "refused", f"the {what} must be a number from {COLDEST:g} to {HOTTEST:g}, got {str(value)[:40]}"
        )
    return float(value)
