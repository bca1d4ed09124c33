"""Units: the batches that are decoded together, fixed by rule from the requests alone.

Not by the size of a fleet, by free memory or by timing: whoever decodes a unit decodes the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.records import SampleRequest


def plan_units(requests: Sequence[SampleRequest], max_rows: int | None) -> list[list[int]]:
    """Indices of `requests` in units of at most `max_rows`; like lengths together, one prefix's requests too.

    Every index occurs once. A prefix with more requests than a unit has rows is split; with fewer, never.
    """
    if max_rows is None:
        return [list(range(len(requests)))] if requests else []
    families: list[list[int]] = []
    for index, request in enumerate(requests):
        before = requests[families[-1][0]] if families else None
        if before is not None and _same_prefix(before, request):
            families[-1].append(index)
        else:
            families.append([index])
    units: list[list[int]] = []
    unit: list[int] = []
    for family in sorted(families, key=lambda members: len(requests[members[0]].token_ids)):
        left = family
        while left:
            free = max_rows - len(unit)
            if free == 0 or (unit and len(left) > free and len(family) <= max_rows):
                units.append(unit)
                unit, free = [], max_rows
            unit = unit + left[:free]
            left = left[free:]
    return [*units, unit] if unit else units


def _same_prefix(one: SampleRequest, other: SampleRequest) -> bool:
    """Requests of one key but for the sample: what an environment asks for one prompt's samples at once."""
    return (
        one.key.prompt_id == other.key.prompt_id
        and one.key.occurrence == other.key.occurrence
        and one.key.turn == other.key.turn
        and one.token_ids.tobytes() == other.token_ids.tobytes()
    )
