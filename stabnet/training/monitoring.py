"""What a monitor sees of a model while it trains, and the record of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, final

import torch
from torch import nn

from ..checks import modes_restored
from ..errors import InvalidOptionError
from ..values import whole
from .state import random_state_restored

__all__ = ["Monitor", "MonitorLog"]

Monitor: TypeAlias = Callable[[nn.Module], Mapping[str, Any]]


@final
class MonitorLog:
    """Calls a monitor when it is due, and keeps what it returned.

    Args:
        monitor: what is called; ``None`` for nothing.
        every: steps between two calls; ``None`` for an epoch's.
        model: what it is called with.
        device: where training runs, whose random numbers a monitor may draw.

    Raises:
        InvalidOptionError: for a monitor that cannot be called, and ``every`` out of range or
            without a monitor.
    """

    def __init__(
        self, monitor: Monitor | None, every: int | None, model: nn.Module, device: torch.device
    ) -> None:
        if monitor is not None and not callable(monitor):
            raise InvalidOptionError(
                f"monitor={monitor!r} must be a function that takes the model and returns a dict"
            )
        if monitor is None and every is not None:
            raise InvalidOptionError(f"monitor_every={every} has no use without a monitor")
        self._every = None if every is None else whole("monitor_every", every, 1)
        self._monitor, self._model, self._device = monitor, model, device
        self.records: list[dict[str, Any]] = []

    def due(self, step: int, steps: int, last: int) -> bool:
        """Return whether the monitor is to be called.

        Args:
            step: how many optimizer steps were done, from 1.
            steps: how many an epoch has.
            last: how many there are in all.
        """
        return step == last or step % (self._every or steps) == 0

    def record(self, step: int) -> bool:
        """Call the monitor and keep what it returns; return whether there is anything new.

        It sees the model in eval mode and leaves no trace in modes and random numbers.

        Args:
            step: how many optimizer steps were done; the last one recorded is not done again.

        Raises:
            InvalidOptionError: if it returns something that cannot be kept as JSON.
        """
        if self._monitor is None or (self.records and self.records[-1]["step"] == step):
            return False
        with modes_restored(self._model), random_state_restored(self._device):
            self._model.eval()
            values = self._monitor(self._model)
        self.records.append({"step": step, **_plain(values)})
        return True


def _plain(values: Any) -> dict[str, Any]:
    """Return what a monitor returned as a file will hold it.

    Raises:
        InvalidOptionError: if that cannot be.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise InvalidOptionError(
            f"the monitor returned {_shortened(values)}; expected a dict of names and values"
        )
    if "step" in values:
        raise InvalidOptionError(
            "the monitor returned a value named 'step', under which the number of optimizer steps "
            "is kept; choose another name"
        )
    plain = {}
    for name, value in values.items():
        try:
            plain[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise InvalidOptionError(
                f"the monitor returned {name}={_shortened(value)}, which cannot be kept as JSON "
                f"({error}); return numbers, texts, and lists and dicts of them, such as "
                "tensor.tolist()"
            ) from error
    return plain


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
