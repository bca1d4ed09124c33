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
    miles's reward functions; `ignore_sampling_temperature`: whatever their sampling temperature is.
    """

    name: str = "teacher"
    temperature: float | None = None
    ignore_sampling_temperature: bool = False
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

        Stock servers never looked at the sampling temperature of a scoring request, so hooks put there what they
        liked: miles 0 whatever it samples at, slime 0, a 1 that meant nothing or the rollout's own, by its version. A
        0 cannot be meant, and gets the operator's. Any other number than the operator's may be meant, and is refused
        unless `ignore_sampling_temperature` says that it is not. Raises `WireError` (kind refused) for that, for what
        is no temperature, and where there is only a 0 to go by: answered at 1, it would be a bias that no metric shows.
        """
        if scoring is not None:
            return _in_range(scoring, "scoring temperature")
        if self.temperature is not None and (self.ignore_sampling_temperature or sampling in (None, 0)):
            return self.temperature
        if sampling is None:
            return 1.0
        if sampling == 0:
            raise WireError(
                "refused",
                "the request's temperature is 0, at which nothing has a probability: start this server with "
                "--temperature T, the rollout temperature, or send a scoring temperature",
            )
        sampling = _in_range(sampling, "sampling temperature")
        if self.temperature not in (None, sampling):
            raise WireError(
                "refused",
                f"the request's temperature is {sampling:g}, but this server was started with --temperature "
                f"{self.temperature:g}: start it with the rollout temperature; or, if the client means nothing by its "
                "field, with --ignore-sampling-temperature",
            )
        return sampling


def _in_range(value: float, what: str) -> float:
    if not COLDEST <= value <= HOTTEST:  # NaN too; an integer of any length is compared as it is
        raise WireError(
            "refused", f"the {what} must be a number from {COLDEST:g} to {HOTTEST:g}, got {str(value)[:40]}"
        )
    return float(value)
