"""The name that :mod:`tlsc.eval.data.synthesis` had in 0.1."""

import sys

from tlsc.eval.data import synthesis

sys.modules[__name__] = synthesis
