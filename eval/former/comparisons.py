"""The name that :mod:`tlsc.eval.show.comparisons` had in 0.1."""

import sys

from tlsc.eval.show import comparisons

sys.modules[__name__] = comparisons
