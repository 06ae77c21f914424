"""The name that :mod:`tlsc.eval.show.report` had in 0.1."""

import sys

from tlsc.eval.show import report

sys.modules[__name__] = report
