"""Running networks over data sets: which runs, tiles, processes, what they recorded."""
