"""Lyapunov training: losses, fields and models of LyaNet, and what they guarantee."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "AveragePool": ".blocks",
    "Ball": ".samplers",
    "DataControlledField": ".fields.data_controlled",
    "DecayReport": ".monitors",
    "EarlyTermination": ".monitors",
    "GainSchedule": ".objectives.schedules",
    "Hypercube": ".samplers",
    "LyapunovCertificate": ".certificate",
    "LyapunovMonteCarlo": ".objectives.monte_carlo",
    "LyapunovPathIntegral": ".objectives.path_integral",
    "Nero": ".nero",
    "PiecewiseConvField": ".fields.piecewise_conv",
    "RateSchedule": ".objectives.schedules",
    "Residual": ".blocks",
    "Sampler": ".samplers",
    "Stitch": ".blocks",
    "SupervisedPotential": ".potential",
    "Trajectory": ".samplers",
    "ball_radius": ".samplers",
    "continuous_net": ".models.continuous_net",
    "decay_share": ".monitors",
    "early_termination": ".monitors",
    "hypercube_size": ".samplers",
    "least_gain": ".fields.data_controlled",
    "lyanet": ".models.lyanet",
    "lyapunov_certificate": ".certificate",
    "neural_ode": ".models.lyanet",
    "resnet18": ".models.resnet18",
}

__all__ = [
    "AveragePool",
    "Ball",
    "DataControlledField",
    "DecayReport",
    "EarlyTermination",
    "GainSchedule",
    "Hypercube",
    "LyapunovCertificate",
    "LyapunovMonteCarlo",
    "LyapunovPathIntegral",
    "Nero",
    "PiecewiseConvField",
    "RateSchedule",
    "Residual",
    "Sampler",
    "Stitch",
    "SupervisedPotential",
    "Trajectory",
    "ball_radius",
    "continuous_net",
    "decay_share",
    "early_termination",
    "hypercube_size",
    "least_gain",
    "lyanet",
    "lyapunov_certificate",
    "neural_ode",
    "resnet18",
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
    registrar.block(
        "stitch",
        "stabnet_lyapunov.blocks:Stitch",
        summary="joins the states of two flows on different grids",
        reference=references.CONTINUOUS_NET,
        example={"state_shape": (2, 5, 4), "channels": 3, "stride": 2},
    )
    registrar.block(
        "residual",
        "stabnet_lyapunov.blocks:Residual",
        summary="residual block of ResNet-18",
        reference=references.RESNET,
        example={"state_shape": (2, 5, 4)},
    )
    registrar.block(
        "average_pool",
        "stabnet_lyapunov.blocks:AveragePool",
        summary="average over the grid",
        example={"state_shape": (2, 5, 4)},
    )
    registrar.vector_field(
        "piecewise_conv",
        "stabnet_lyapunov.fields.piecewise_conv:PiecewiseConvField",
        summary="residual block as a field, with weights piecewise constant in time",
        reference=references.CONTINUOUS_NET,
        example={"state_shape": (2, 5, 4)},
    )
    registrar.objective(
        "lyapunov_path_integral",
        "stabnet_lyapunov.objectives.path_integral:LyapunovPathIntegral",
        summary="Lyapunov loss along the model's own trajectory",
        reference=references.LYANET,
        example={"points": 3, "kappa": 1.0},
    )
    registrar.model(
        "continuous_net",
        "stabnet_lyapunov.models.continuous_net:continuous_net",
        summary="continuous-in-depth network: flows joined by stitches",
        reference=(references.CONTINUOUS_NET, references.LYANET),
        example={"in_shape": (1, 8, 8), "num_outputs": 3, "channels": (4, 6), "pieces": 2},
    )
    registrar.model(
        "resnet18",
        "stabnet_lyapunov.models.resnet18:resnet18",
        summary="ResNet-18 as a discrete-time system of residual blocks",
        reference=references.RESNET,
        example={"in_shape": (1, 8, 8), "num_outputs": 3},
    )
    registrar.optimizer(
        "nero",
        "stabnet_lyapunov.nero:Nero",
        summary="turns every neuron by a relative step, its weights balanced and of unit norm",
        reference=references.NERO,
        # The kit's model has an equilibrium, which cells with weights of unit norm need not have.
        example={"constrained": "convolutions"},
    )
