"""The name that :mod:`tlsc.eval.run.cells` had in 0.1."""

import sys

from tlsc.eval.run import cells

sys.modules[__name__] = cells
