"""Local statistics as numbers: knows tensors, and no module."""
