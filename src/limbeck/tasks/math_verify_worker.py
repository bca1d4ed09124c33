r"""What runs in the process of `limbeck.tasks.math_verify`. It imports nothing of Limbeck.

    {"answer": "\\frac{1}{2}", "response": "$0.5$"}    {"score": 1.0}
    {"answer": "", "response": "$0.5$"}                {"unreadable_answer": true}

The package's documented failures (nothing found, not parsable, too slow) are a score of 0. Whatever
it raises beyond those is a bug, and goes back as {"error": ...}.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from decimal import Decimal
from typing import Any


def main() -> None:
    # Only replies may go to the pipe: what a package prints goes to the error output instead.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the end of input ends this
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each response it gives up
    import math_verify  # noqa: F401

    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_reply(**json.loads(line))), file=replies, flush=True)


def _reply(answer: str, response: str) -> dict[str, Any]:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    try:
        expected = parse(_as_latex(answer))
        if not expected:
            return {"unreadable_answer": True}
        readings = dict.fromkeys((response, _EXPONENT.sub(_spelled_out, response)))
        return {"score": float(any(verify(expected, parse(reading)) for reading in readings))}
    except TimeoutException:  # a BaseException: an alarm that rang outside of the package's own guard
        return {"score": 0.0}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


# As a number with an exponent, 1e-05 would be read as e minus 5. A response may also mean that: 2e-3 is tried as both.
_EXPONENT = re.compile(r"(?<![\w.\\])[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]{1,3}(?![\w^])")


def _spelled_out(match: re.Match[str]) -> str:
    return f"{Decimal(match[0]):f}"


def _as_latex(answer: str) -> str:
    if match := _EXPONENT.fullmatch(answer.strip()):
        return rf"\boxed{{{_spelled_out(match)}}}"
    # Outside of a LaTeX environment the package looks for numbers only: of a bare "2x+1" or "2\sqrt{3}"
    # it would read the 2, and take every other 2 for right.
    if any(opening in answer for opening in ("$", r"\boxed", r"\(", r"\[")):
        return answer
    return rf"\boxed{{{answer}}}"


if __name__ == "__main__":
    main()
