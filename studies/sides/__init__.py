"""Trainers as worker processes that take turns, Limbeck's and TRL's, on the workers of `benchmarks/steps`."""

import sys
from pathlib import Path

STUDIES = Path(__file__).resolve().parents[1]
BENCHMARKS = STUDIES.parent / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))
