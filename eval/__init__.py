"""Measuring what local statistics buy: degradations, patches and tiles, the demo, the command line."""

import os

__path__ += [os.path.join(folder, "former") for folder in __path__]  # names of 0.1
