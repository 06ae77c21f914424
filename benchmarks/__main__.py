"""``uv run python -m benchmarks local_statistics`` prints one benchmark's tables."""

from __future__ import annotations

import argparse

from . import attention, coverage, local_statistics

BENCHMARKS = {"attention": attention.main, "coverage": coverage.main, "local_statistics": local_statistics.main}

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
parser.add_argument("name", choices=BENCHMARKS)
BENCHMARKS[parser.parse_args().name]()
