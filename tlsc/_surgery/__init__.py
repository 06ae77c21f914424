"""From a model to a plan, and from a plan to a converted model."""
