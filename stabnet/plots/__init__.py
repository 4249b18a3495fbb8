"""Figures, made with matplotlib's object API: no display, no global state."""

from .accuracy import AccuracyCurve, accuracy_curves
from .figures import save_figure
from .training import training_curves

__all__ = ["AccuracyCurve", "accuracy_curves", "save_figure", "training_curves"]
