"""The name that :mod:`tlsc.eval.data.degradations` had in 0.1."""

import sys

from tlsc.eval.data import degradations

sys.modules[__name__] = degradations
