"""The name that :mod:`tlsc.eval.show.outputs` had in 0.1."""

import sys

from tlsc.eval.show import outputs

sys.modules[__name__] = outputs
