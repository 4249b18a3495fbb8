"""Integrators: how a flow is carried from one time to the next."""

from __future__ import annotations

from .adaptive import AdaptiveRungeKutta, adaptive_heun, bosh3, dopri5, dopri8
from .runge_kutta import ButcherTableau, RungeKutta, euler, midpoint, rk4

__all__ = [
    "AdaptiveRungeKutta",
    "ButcherTableau",
    "RungeKutta",
    "adaptive_heun",
    "bosh3",
    "dopri5",
    "dopri8",
    "euler",
    "midpoint",
    "rk4",
]
