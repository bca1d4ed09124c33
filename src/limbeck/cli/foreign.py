"""What other packages warn of does not break into the display; how much there was is said at the end.

`PYTHONWARNINGS=default limbeck ...` shows all of it where it comes. Errors of other packages are always shown.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OURS = ("limbeck", "uvicorn", "asyncio")  # a server's warnings are about its clients
VERBOSITY = ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY")  # loggers with handlers of their own


class _Aside(logging.Handler):
    """Prints what Limbeck logs, and errors; counts the texts of all other warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in OURS or record.levelno >= logging.ERROR:
            print(self.format(record), file=sys.stderr, flush=True)  # a server that waits shows it at once
        else:
            self.texts.add(record.getMessage())


@contextmanager
def foreign_warnings_aside() -> Iterator[set[str]]:
    """While a command runs; gives the texts so far. Nothing is changed where Python was asked to show warnings."""
    handler, root = _Aside(), logging.getLogger()
    if sys.warnoptions:
        yield handler.texts
        return
    for name in VERBOSITY:
        os.environ.setdefault(name, "error")
    logging.captureWarnings(True)
    root.addHandler(handler)
    try:
        yield handler.texts
    finally:
        root.removeHandler(handler)
        logging.captureWarnings(False)
