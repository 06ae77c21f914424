"""The name that :mod:`tlsc.eval.show.pictures` had in 0.1."""

import sys

from tlsc.eval.show import pictures

sys.modules[__name__] = pictures
