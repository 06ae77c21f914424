"""Measuring what local statistics buy: degradations, patches and tiles, the demo, the command line."""
