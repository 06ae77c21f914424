"""The name that :mod:`tlsc.eval.show.plots` had in 0.1."""

import sys

from tlsc.eval.show import plots

sys.modules[__name__] = plots
