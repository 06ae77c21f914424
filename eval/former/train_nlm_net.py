"""The name that :mod:`tlsc.eval.train.nlm_net` had in 0.1."""

import sys

from tlsc.eval.train import nlm_net

sys.modules[__name__] = nlm_net
