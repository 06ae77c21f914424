"""The name of 0.1 for the home of :func:`tlsc.eval.run.patches.in_tiles`."""

from tlsc.eval.run.patches import in_tiles

__all__ = ["in_tiles"]
