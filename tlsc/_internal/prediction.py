"""Mismatch energies, for tuning."""

from __future__ import annotations

from .._calibration.regions import step_of
from .._prediction.energies import Crops, crops_of
from .._prediction.predict import doubt

__all__ = ["Crops", "crops_of", "doubt", "step_of"]
