"""The name that :mod:`tlsc.eval.train.ffdnet` had in 0.1."""

import sys

from tlsc.eval.train import ffdnet

sys.modules[__name__] = ffdnet
