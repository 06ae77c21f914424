"""The name that :mod:`tlsc.eval.run.patches` had in 0.1."""

import sys

from tlsc.eval.run import patches

sys.modules[__name__] = patches
