"""Vector fields: plain networks as right-hand sides of an ODE."""

from __future__ import annotations

from .conv import ConvField
from .mlp import MLPField

__all__ = ["ConvField", "MLPField"]
