"""From results to figures and verdicts."""
