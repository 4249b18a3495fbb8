"""Training: one :func:`fit` for classification and regression, and the honest record it leaves."""

from .accelerator import usable_device
from .evaluation import evaluate
from .fit import fit
from .metrics import NonFiniteLossError
from .protocol import DatasetInfo, TrainingData
from .result import FitResult
from .step_size import StepSizeSensitivity, step_size_sensitivity

__all__ = [
    "DatasetInfo",
    "FitResult",
    "NonFiniteLossError",
    "StepSizeSensitivity",
    "TrainingData",
    "evaluate",
    "fit",
    "step_size_sensitivity",
    "usable_device",
]
