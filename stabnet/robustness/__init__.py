"""Robustness: what attacks do to a model, counted and reported honestly.

The service knows no attack by its class; it asks for attacks by name.
"""

from ..checks import seeded
from ._batches import checked_batches
from ._checks import AttackError, check_images, check_logits, check_perturbation, perturbation
from ._chosen import attack_report
from ._evaluate import attack_model
from ._isolation import eval_mode
from ._masking import masking_warnings
from ._protocol import PAPER_EPS, paper_protocol
from ._report import RobustnessReport
from ._results import AttackResult, CleanResult

__all__ = [
    "PAPER_EPS",
    "AttackError",
    "AttackResult",
    "CleanResult",
    "RobustnessReport",
    "attack_model",
    "attack_report",
    "check_images",
    "check_logits",
    "check_perturbation",
    "checked_batches",
    "eval_mode",
    "masking_warnings",
    "paper_protocol",
    "perturbation",
    "seeded",
]
