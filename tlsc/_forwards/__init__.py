"""Statistics inside a forward: traced, understood, rewritten."""
