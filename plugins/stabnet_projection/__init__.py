"""Kolter–Manek projection: fields that descend a Lyapunov function, and LyaDEQ."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "DerivativeMatching": ".objectives.derivative_matching",
    "Energy": ".potentials.energy",
    "HurwitzField": ".fields.hurwitz",
    "ICNN": ".potentials.icnn",
    "NegativeDefiniteField": ".fields.negative_definite",
    "NegativeGradientField": ".fields.negative_gradient",
    "PointProjection": ".block",
    "ProjectedField": ".fields.projected",
    "ProjectionFlow": ".flow",
    "Quadratic": ".potentials.quadratic",
    "SODEFLoss": ".objectives.sodef",
    "SODEFStability": ".stability",
    "SineField": ".fields.sine",
    "StableStep": ".stable_step",
    "TrajectoryMatching": ".objectives.trajectory_matching",
    "class_vectors": ".simplex",
    "field_jacobian": ".stability",
    "lyadeq": ".models.lyadeq",
    "project": ".fields.projected",
    "projection": ".block",
    "smooth_relu": ".potentials.icnn",
    "sodef": ".models.sodef",
    "sodef_stability": ".stability",
    "stable_dynamics": ".models.stable_dynamics",
}

__all__ = [
    "ICNN",
    "DerivativeMatching",
    "Energy",
    "HurwitzField",
    "NegativeDefiniteField",
    "NegativeGradientField",
    "PointProjection",
    "ProjectedField",
    "ProjectionFlow",
    "Quadratic",
    "SODEFLoss",
    "SODEFStability",
    "SineField",
    "StableStep",
    "TrajectoryMatching",
    "class_vectors",
    "field_jacobian",
    "lyadeq",
    "project",
    "projection",
    "smooth_relu",
    "sodef",
    "sodef_stability",
    "stable_dynamics",
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
    registrar.potential(
        "quadratic",
        "stabnet_projection.potentials.quadratic:Quadratic",
        summary="quadratic form with a learned positive definite matrix",
        reference=references.LYAPUNOV,
        example={"state_shape": (4,)},
    )
    registrar.potential(
        "energy",
        "stabnet_projection.potentials.energy:Energy",
        summary="an energy of your own, or a physical one by name, less its value at its minimum",
        example={"state_shape": (2,), "function": "pendulum"},
    )
    registrar.vector_field(
        "projected",
        "stabnet_projection.fields.projected:ProjectedField",
        summary="any field, projected so that it descends a Lyapunov function",
        reference=references.MANEK_KOLTER,
        example={"state_shape": (4,), "feature_shape": (3,)},
    )
    _register_stable_fields(registrar)
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
    _register_physical_systems(registrar)


def _register_physical_systems(registrar: stabnet.Registrar) -> None:
    registrar.model(
        "stable_dynamics",
        "stabnet_projection.models.stable_dynamics:stable_dynamics",
        summary="physical system learned from its states, with a field that is stable by itself",
        reference=references.MANEK_KOLTER,
        example={"in_shape": (4,), "num_outputs": 4},
    )
    registrar.objective(
        "derivative_matching",
        "stabnet_projection.objectives.derivative_matching:DerivativeMatching",
        summary="squared error of a field against the derivatives of states",
        reference=references.MANEK_KOLTER,
        example={},
    )
    registrar.objective(
        "trajectory_matching",
        "stabnet_projection.objectives.trajectory_matching:TrajectoryMatching",
        summary="squared error of trajectories that start at observed states: multiple shooting",
        reference=references.MULTIPLE_SHOOTING,
        example={"interval": 0.25, "segment": 2},
    )
    _register_sodef(registrar)


def _register_sodef(registrar: stabnet.Registrar) -> None:
    """Register SODEF: its field, its model and its objective."""
    registrar.vector_field(
        "sine",
        "stabnet_projection.fields.sine:SineField",
        summary="sine of an affine map of the state, the field of SODEF",
        reference=references.SODEF,
        example={"state_shape": (4,), "feature_shape": (3,)},
    )
    registrar.model(
        "sodef",
        "stabnet_projection.models.sodef:sodef",
        summary="flow from the features of a backbone, through an orthogonal layer",
        reference=references.SODEF,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "convnet", "channels": (4,), "width": 6},
            "width": 4,
            "time": 1.0,
        },
    )
    registrar.objective(
        "sodef",
        "stabnet_projection.objectives.sodef:SODEFLoss",
        summary="cross entropy, and penalties that ask for a stable start of the flow",
        reference=references.SODEF,
        example={"diagonal_weight": 1.0},
    )


def _register_stable_fields(registrar: stabnet.Registrar) -> None:
    registrar.vector_field(
        "negative_definite",
        "stabnet_projection.fields.negative_definite:NegativeDefiniteField",
        summary="matrix of the state with negative definite symmetric part, times the offset",
        reference=references.ELCD,
        example={"state_shape": (3,), "feature_shape": (4,), "hidden": (5,)},
    )
    registrar.vector_field(
        "hurwitz",
        "stabnet_projection.fields.hurwitz:HurwitzField",
        summary="linear field, its matrix stable for every value of its parameters",
        reference=(references.GILLIS_SHARMA, references.LYAPUNOV),
        example={"state_shape": (3,), "feature_shape": (3,), "center": "features"},
    )
    registrar.vector_field(
        "negative_gradient",
        "stabnet_projection.fields.negative_gradient:NegativeGradientField",
        summary="negative gradient of a potential",
        reference=references.CONVEX_OPTIMIZATION,
        example={"state_shape": (4,), "feature_shape": (4,), "center": "features"},
    )
