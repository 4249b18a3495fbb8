"""Objectives: what training minimizes when nothing special is asked for."""

from __future__ import annotations

from .cross_entropy import CrossEntropy
from .mse import MeanSquaredError

__all__ = ["CrossEntropy", "MeanSquaredError"]
