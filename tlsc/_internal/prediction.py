"""Mismatch energies and calibration, for networks that are called in ways of their own."""

from __future__ import annotations

from .._calibration.calibrate import calibrated
from .._calibration.regions import step_of
from .._plan import smallest_window
from .._prediction.energies import Crops, crops_of
from .._prediction.predict import doubt
from .._surgery.swapping import reverted

__all__ = ["Crops", "calibrated", "crops_of", "doubt", "reverted", "smallest_window", "step_of"]
