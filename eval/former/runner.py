"""The name that :mod:`tlsc.eval.run.runner` had in 0.1."""

import sys

from tlsc.eval.run import runner

sys.modules[__name__] = runner
