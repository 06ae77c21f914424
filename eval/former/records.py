"""The name that :mod:`tlsc.eval.run.records` had in 0.1."""

import sys

from tlsc.eval.run import records

sys.modules[__name__] = records
