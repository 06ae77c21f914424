"""The name that :mod:`tlsc.eval.train.demo` had in 0.1."""

import sys

from tlsc.eval.train import demo

sys.modules[__name__] = demo
