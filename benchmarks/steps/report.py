"""The table people read."""

from __future__ import annotations

from typing import Any

TITLES = {"own_shapes": "x own shapes", "peak": "x peak"}


def phase_table(result: dict[str, Any], phases: tuple[str, ...]) -> str:
    """Seconds of each phase on both sides, and Limbeck's over its floors."""
    ours, theirs = result["limbeck"]["phases"], result["trl"]["phases"]
    lines = [f"\n({result['config']}) {result['what']}: {result['trained_tokens']} trained tokens a step"]
    lines.append(f"{'':18}{'limbeck':>10}{'TRL':>10}{'ratio':>8}{TITLES['own_shapes']:>16}{TITLES['peak']:>10}")
    for phase in phases:
        ratio = ours[phase] / theirs[phase] if theirs[phase] > 0 else float("nan")
        over = "".join(
            f"{result['measured_over_floor'][kind].get(phase, float('nan')):>{width}.2f}"
            for kind, width in (("own_shapes", 16), ("peak", 10))
        )
        lines.append(f"{phase:18}{ours[phase]:>10.3f}{theirs[phase]:>10.3f}{ratio:>8.2f}{over}")
    return "\n".join(lines)


def summary_line(result: dict[str, Any]) -> str:
    ours, theirs, checked = result["limbeck"], result["trl"], result["check"]
    loss = " and ".join(f"{value:.5f}" for value in checked["loss"])
    return (
        f"{'step':18}{ours['seconds']:>10.3f}{theirs['seconds']:>10.3f}{result['ratio']:>8.2f}"
        f"   ({ours['tokens_per_second']:.0f} and {theirs['tokens_per_second']:.0f} tokens/s)\n"
        f"{'peak MB':18}{ours['peak_mb']:>10}{theirs['peak_mb']:>10}{result['peak_ratio']:>8.2f}\n"
        f"same work: {'yes' if checked['agree'] else 'NO'} (loss {loss}; "
        f"gradient norm {checked['grad_norm'][0]:.5f} and {checked['grad_norm'][1]:.5f})"
    )
