"""The name of 0.1 for the home of :func:`tlsc.keep_memory`."""

from tlsc import keep_memory

__all__ = ["keep_memory"]
