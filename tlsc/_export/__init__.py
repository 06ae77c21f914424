"""Models as files that run without Python."""
