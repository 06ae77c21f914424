"""The name that :mod:`tlsc.eval.data.datasets` had in 0.1."""

from tlsc.eval.data.datasets import BadPairsError, Dataset, find_pairs
from tlsc.eval.data.matching import Bad, ImagePair

__all__ = ["Bad", "BadPairsError", "Dataset", "ImagePair", "find_pairs"]
