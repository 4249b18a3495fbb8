"""Monotone equilibrium cells: weights, activations with their proximal operators, and the cell."""

from __future__ import annotations

from .activations import ACTIVATIONS, ProximalActivation, hardtanh, leaky_relu, soft_threshold
from .cell import MonotoneCell
from .operator import BlockOperator
from .weights import CircularWeight, DenseWeight

__all__ = [
    "ACTIVATIONS",
    "BlockOperator",
    "CircularWeight",
    "DenseWeight",
    "MonotoneCell",
    "ProximalActivation",
    "hardtanh",
    "leaky_relu",
    "soft_threshold",
]
