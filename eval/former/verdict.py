"""The name that :mod:`tlsc.eval.judge.verdict` had in 0.1."""

import sys

from tlsc.eval.judge import verdict

sys.modules[__name__] = verdict
