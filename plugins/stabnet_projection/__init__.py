"""Kolter–Manek projection: fields that descend a Lyapunov function, and LyaDEQ."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "ICNN": ".potentials.icnn",
    "PointProjection": ".block",
    "ProjectedField": ".fields.projected",
    "ProjectionFlow": ".flow",
    "StableStep": ".stable_step",
    "lyadeq": ".models.lyadeq",
    "project": ".fields.projected",
    "projection": ".block",
    "smooth_relu": ".potentials.icnn",
}

__all__ = [
    "ICNN",
    "PointProjection",
    "ProjectedField",
    "ProjectionFlow",
    "StableStep",
    "lyadeq",
    "project",
    "projection",
    "smooth_relu",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the potential, the projection as field and as block, and LyaDEQ."""
    registrar.potential(
        "icnn",
        "stabnet_projection.potentials.icnn:ICNN",
        summary="input-convex network made positive definite around a center, closed gradient",
        reference=(references.MANEK_KOLTER, references.ICNN),
        example={"state_shape": (4,), "hidden": (5, 3)},
    )
    registrar.vector_field(
        "projected",
        "stabnet_projection.fields.projected:ProjectedField",
        summary="any field, projected so that it descends a Lyapunov function",
        reference=references.MANEK_KOLTER,
        example={"state_shape": (4,), "feature_shape": (3,)},
    )
    registrar.integrator(
        "stable_step",
        "stabnet_projection.stable_step:StableStep",
        summary="steps along a descending field, cut back so that they never raise its potential",
        reference=references.LAWRENCE,
        example={"step_size": 0.1},
    )
    registrar.block(
        "projection",
        "stabnet_projection.block:projection",
        summary="the projection behind an equilibrium, in three readings",
        reference=(references.LYADEQ, references.MANEK_KOLTER, references.LAWRENCE),
        example={"state_shape": (4,)},
    )
    registrar.model(
        "lyadeq",
        "stabnet_projection.models.lyadeq:lyadeq",
        summary="deep equilibrium classifier with a Lyapunov projection and an orthogonal head",
        reference=references.LYADEQ,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 6},
            "solver": {"name": "anderson", "tolerance": 1e-11, "max_evaluations": 200},
        },
    )
