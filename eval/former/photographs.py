"""The name that :mod:`tlsc.eval.images.photographs` had in 0.1."""

import sys

from tlsc.eval.images import photographs

sys.modules[__name__] = photographs
