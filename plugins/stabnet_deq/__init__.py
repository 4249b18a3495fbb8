"""Deep equilibrium models: the paper's cell, fixed-point solvers, and the plain DEQ classifier."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "Anderson": ".solvers.anderson",
    "ConvCell": ".conv",
    "DEQCell": ".cell",
    "Diagnosis": ".diagnostics",
    "Distance": ".diagnostics",
    "JacobianRegularized": ".regularization",
    "MultiscaleCell": ".multiscale",
    "Picard": ".solvers.picard",
    "Spread": ".diagnostics",
    "deq": ".deq",
    "diagnose": ".diagnostics",
    "distance_travelled": ".diagnostics",
    "spectral_radius": ".arnoldi",
}

__all__ = [
    "Anderson",
    "ConvCell",
    "DEQCell",
    "Diagnosis",
    "Distance",
    "JacobianRegularized",
    "MultiscaleCell",
    "Picard",
    "Spread",
    "deq",
    "diagnose",
    "distance_travelled",
    "spectral_radius",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the cell, the solvers and the model."""
    registrar.cell(
        "deq",
        "stabnet_deq.cell:DEQCell",
        summary="two linear layers with ReLU and batch normalization, driven by the features",
        reference=(references.LYADEQ, references.DEQ),
        example={"state_shape": (6,), "feature_shape": (6,)},
    )
    registrar.cell(
        "conv",
        "stabnet_deq.conv:ConvCell",
        summary="residual block of convolutions with group normalization, driven by the features",
        reference=(references.MDEQ, references.DEQ),
        example={"state_shape": (4, 3, 3), "feature_shape": (4, 3, 3), "groups": 2},
    )
    registrar.cell(
        "multiscale",
        "stabnet_deq.multiscale:MultiscaleCell",
        summary="residual blocks on several resolutions, with fusion across them",
        reference=references.MDEQ,
        example={
            "state_shape": ((2, 3, 4), (4, 2, 2)),
            "feature_shape": (2, 3, 4),
            "groups": 1,
        },
    )
    registrar.solver(
        "picard",
        "stabnet_deq.solvers.picard:Picard",
        summary="plain fixed-point iteration",
        example={"tolerance": 1e-11, "max_evaluations": 500},
    )
    registrar.solver(
        "anderson",
        "stabnet_deq.solvers.anderson:Anderson",
        summary="Anderson acceleration (type II) with a safeguard",
        reference=references.ANDERSON,
        example={"tolerance": 1e-11, "max_evaluations": 200},
    )
    registrar.objective(
        "jacobian_regularized",
        "stabnet_deq.regularization:JacobianRegularized",
        summary="another objective, plus the size of the cell's Jacobian at the equilibrium",
        reference=references.JACOBIAN_REGULARIZATION,
        example={"base_objective": "cross_entropy", "weight": 0.5, "samples": 2},
    )
    registrar.model(
        "deq",
        "stabnet_deq.deq:deq",
        summary="deep equilibrium classifier: backbone, equilibrium of a cell, head",
        reference=references.DEQ,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 6},
            "solver": {"name": "anderson", "tolerance": 1e-11, "max_evaluations": 200},
        },
    )
