"""The ledger: what every epoch came to, and the weights of the best one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

from torch import nn

from .state import copied

__all__ = ["Ledger"]


@final
class Ledger:
    """Keeps the history and the weights of the best validation epoch.

    Args:
        metric: the highest accuracy is best, and of equals the lowest loss; or the lowest loss. Of
            epochs equal in that, the last.
    """

    def __init__(self, metric: Literal["accuracy", "loss"]) -> None:
        self.metric = metric
        self.history: list[Mapping[str, float]] = []
        self.best_epoch = 0
        self.best_value = math.nan
        self._best_weights: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Wall time of all epochs in the history."""
        return math.fsum(record["seconds"] for record in self.history)

    @property
    def epochs(self) -> int:
        """How many epochs were run to their end."""
        return sum(bool(record["complete"]) for record in self.history)

    def add(self, record: Mapping[str, float], model: nn.Module) -> bool:
        """Add an epoch; return whether it is the best so far.

        Of epochs with equal accuracy, of which a small validation set sees many, the one with the
        lowest validation loss is best. Of epochs equal in both it is the last: a loss with a hinge
        soon is exactly zero on the validation set, and training goes on.
        """
        better = not self.best_epoch or self._improves(record)
        self.history.append(record)
        if not better:
            return False
        self.best_epoch = int(record["epoch"])
        self.best_value = record[f"validation_{self.metric}"]
        self._best_weights = copied(model.state_dict())
        return True

    def _improves(self, record: Mapping[str, float]) -> bool:
        """Return whether an epoch is better than the best so far."""
        best = next(r for r in reversed(self.history) if r["epoch"] == self.best_epoch)
        if self.metric == "accuracy":
            gain = record["validation_accuracy"] - best["validation_accuracy"]
            # Accuracies are counts over a count, up to rounding in their accumulation.
            if abs(gain) > 1e-6:
                return gain > 0
        return record["validation_loss"] <= best["validation_loss"]

    def restore_best(self, model: nn.Module) -> None:
        """Put the best weights into the model."""
        model.load_state_dict(self._best_weights)

    def state(self) -> dict[str, Any]:
        """Return the ledger as plain data and tensors."""
        return {
            "history": [dict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "best_weights": self._best_weights,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        self.history = list(state["history"])
        self.best_epoch, self.best_value = state["best_epoch"], state["best_value"]
        self._best_weights = state["best_weights"]
