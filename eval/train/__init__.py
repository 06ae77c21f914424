"""The trainings behind the weights that come along."""
