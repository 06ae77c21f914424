"""The name that :mod:`tlsc.eval.run.distributed` had in 0.1."""

import sys

from tlsc.eval.run import distributed

sys.modules[__name__] = distributed
