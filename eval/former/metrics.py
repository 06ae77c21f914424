"""The name that :mod:`tlsc.eval.judge.metrics` had in 0.1."""

import sys

from tlsc.eval.judge import metrics

sys.modules[__name__] = metrics
