"""The options of a training, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final, get_args

from ..errors import InvalidOptionError
from .accelerator import Precision
from .optimization import Schedule

__all__ = ["Options"]

_SEEDS = 2**62
"""Generators take 64 bits; each process adds its number."""


@final
@dataclass(frozen=True)
class Options:
    """What decides the result of a training, besides model, objective and data.

    Attributes are those of :func:`stabnet.training.fit`.

    Raises:
        InvalidOptionError: for a value out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str | Mapping[str, Any]
    schedule: Schedule
    gradient_clip: float | None
    seed: int
    mixed_precision: Precision

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidOptionError(f"{name}={value!r} must be an integer of at least {least}")
        if self.seed >= _SEEDS:
            raise InvalidOptionError(f"seed={self.seed} is too large; it must be below {_SEEDS}")
        try:
            json.dumps(self.optimizer)
        except TypeError as error:
            raise InvalidOptionError(
                f"optimizer={self.optimizer!r} cannot be kept in config.json ({error}); give a "
                "name, or a dict of a name and options that are numbers, texts and lists of them"
            ) from error
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is None and name == "gradient_clip":
                continue
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InvalidOptionError(f"{name}={value!r} must be a positive number")
        for name, allowed in (("schedule", Schedule), ("mixed_precision", Precision)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise InvalidOptionError(
                    f"{name}={value!r} is unknown; it is one of {', '.join(get_args(allowed))}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data for JSON."""
        return asdict(self)
