"""Training: one :func:`fit` for classification and regression, and the honest record it leaves."""

from .accelerator import usable_device
from .evaluation import evaluate
from .fit import fit
from .metrics import NonFiniteLossError
from .protocol import DatasetInfo, TrainingData
from .result import FitResult

__all__ = [
    "DatasetInfo",
    "FitResult",
    "NonFiniteLossError",
    "TrainingData",
    "evaluate",
    "fit",
    "usable_device",
]
