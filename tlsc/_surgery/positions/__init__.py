"""Which operations of a run take positions of a map together, by rules for each operation of PyTorch."""
