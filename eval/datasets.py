"""The name under which scripts have found :mod:`tlsc.eval.data.datasets`."""

from tlsc.eval.data.datasets import BadPairsError, Dataset, find_pairs

__all__ = ["BadPairsError", "Dataset", "find_pairs"]
