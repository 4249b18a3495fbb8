"""Figures, made with matplotlib's object API: no display, no global state."""

from .accuracy import AccuracyCurve, accuracy_curves
from .boundaries import decision_boundaries
from .convergence import ConvergenceCurve, convergence_curves
from .embedding import feature_embedding
from .figures import save_figure
from .layer_curves import layer_curves
from .phase import phase_portrait
from .training import training_curves
from .violation import violation_map

__all__ = [
    "AccuracyCurve",
    "ConvergenceCurve",
    "accuracy_curves",
    "convergence_curves",
    "decision_boundaries",
    "feature_embedding",
    "layer_curves",
    "phase_portrait",
    "save_figure",
    "training_curves",
    "violation_map",
]
