"""Lyapunov training: losses, fields and models of LyaNet, and what they guarantee."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "Ball": ".samplers",
    "DataControlledField": ".fields.data_controlled",
    "GainSchedule": ".objectives.schedules",
    "Hypercube": ".samplers",
    "LyapunovMonteCarlo": ".objectives.monte_carlo",
    "RateSchedule": ".objectives.schedules",
    "Sampler": ".samplers",
    "SupervisedPotential": ".potential",
    "Trajectory": ".samplers",
    "ball_radius": ".samplers",
    "hypercube_size": ".samplers",
    "lyanet": ".models.lyanet",
    "neural_ode": ".models.lyanet",
}

__all__ = [
    "Ball",
    "DataControlledField",
    "GainSchedule",
    "Hypercube",
    "LyapunovMonteCarlo",
    "RateSchedule",
    "Sampler",
    "SupervisedPotential",
    "Trajectory",
    "ball_radius",
    "hypercube_size",
    "lyanet",
    "neural_ode",
    "stabnet_register",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the parts of Lyapunov training."""
    registrar.potential(
        "supervised",
        "stabnet_lyapunov.potential:SupervisedPotential",
        summary="the truncated loss of the prediction that a state stands for",
        reference=references.LYANET,
        example={"state_shape": (4,)},
    )
    registrar.vector_field(
        "data_controlled",
        "stabnet_lyapunov.fields.data_controlled:DataControlledField",
        summary="steers towards the corner of the class that it sees in the features",
        reference=references.LYANET,
        example={"state_shape": (3,), "feature_shape": (16,)},
    )
    registrar.objective(
        "lyapunov_monte_carlo",
        "stabnet_lyapunov.objectives.monte_carlo:LyapunovMonteCarlo",
        summary="Lyapunov loss on sampled states, without an ODE solve",
        reference=references.LYANET,
        # The kit's own model has a linear head, for which no equation gives the cube.
        example={"samples": 8, "sampler": {"name": "hypercube", "size": 2.0}},
    )
    registrar.model(
        "lyanet",
        "stabnet_lyapunov.models.lyanet:lyanet",
        summary="flow steered by the input's features, for Lyapunov training",
        reference=references.LYANET,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 16},
        },
    )
    registrar.model(
        "neural_ode",
        "stabnet_lyapunov.models.lyanet:neural_ode",
        summary="the architecture of lyanet, for training through the solve",
        reference=(references.NEURAL_ODE, references.LYANET),
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 16},
        },
    )
