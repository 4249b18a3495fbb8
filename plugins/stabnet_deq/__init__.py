"""Deep equilibrium models: the paper's cell, fixed-point solvers, and the plain DEQ classifier."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "Anderson": ".solvers.anderson",
    "Broyden": ".solvers.broyden",
    "ConvCell": ".conv",
    "DEQCell": ".cell",
    "Diagnosis": ".diagnostics",
    "Distance": ".diagnostics",
    "ForwardBackward": ".solvers.forward_backward",
    "IBPMonotoneCell": ".ibp.cell",
    "IntervalCrossEntropy": ".ibp.objective",
    "JacobianRegularized": ".regularization",
    "MonotoneCell": ".monotone",
    "MultiscaleCell": ".multiscale",
    "PeacemanRachford": ".solvers.peaceman_rachford",
    "Picard": ".solvers.picard",
    "ProximalActivation": ".monotone",
    "Spread": ".diagnostics",
    "StridedConv": ".ibp.backbone",
    "deq": ".models.deq",
    "diagnose": ".diagnostics",
    "distance_travelled": ".diagnostics",
    "ibp_mondeq": ".models.ibp_mondeq",
    "mondeq": ".models.mondeq",
    "spectral_radius": ".arnoldi",
}

__all__ = [
    "Anderson",
    "Broyden",
    "ConvCell",
    "DEQCell",
    "Diagnosis",
    "Distance",
    "ForwardBackward",
    "IBPMonotoneCell",
    "IntervalCrossEntropy",
    "JacobianRegularized",
    "MonotoneCell",
    "MultiscaleCell",
    "PeacemanRachford",
    "Picard",
    "ProximalActivation",
    "Spread",
    "StridedConv",
    "deq",
    "diagnose",
    "distance_travelled",
    "ibp_mondeq",
    "mondeq",
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
    registrar.cell(
        "monotone",
        "stabnet_deq.monotone:MonotoneCell",
        summary="monotone layer for vectors or images: one equilibrium, Lipschitz in the features",
        reference=(references.MONDEQ, references.MONDEQ_LIPSCHITZ),
        example={"state_shape": (6,), "feature_shape": (6,)},
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
    registrar.solver(
        "forward_backward",
        "stabnet_deq.solvers.forward_backward:ForwardBackward",
        summary="forward-backward splitting, for monotone cells",
        reference=(references.SPLITTING, references.MONDEQ),
        example={"tolerance": 1e-11, "max_evaluations": 500},
    )
    registrar.solver(
        "peaceman_rachford",
        "stabnet_deq.solvers.peaceman_rachford:PeacemanRachford",
        summary="Peaceman-Rachford splitting, for monotone cells",
        reference=(references.SPLITTING, references.MONDEQ),
        example={"tolerance": 1e-11, "max_evaluations": 200},
    )
    registrar.objective(
        "jacobian_regularized",
        "stabnet_deq.regularization:JacobianRegularized",
        summary="another objective, plus the size of the cell's Jacobian at the equilibrium",
        reference=references.JACOBIAN_REGULARIZATION,
        example={"base_objective": "cross_entropy", "weight": 0.5, "samples": 2},
    )
    registrar.solver(
        "broyden",
        "stabnet_deq.solvers.broyden:Broyden",
        summary="Broyden's quasi-Newton method with limited memory and a safeguard",
        reference=references.BROYDEN,
        example={"tolerance": 1e-11, "max_evaluations": 200},
    )
    registrar.model(
        "deq",
        "stabnet_deq.models.deq:deq",
        summary="deep equilibrium classifier: backbone, equilibrium of a cell, head",
        reference=references.DEQ,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 6},
            "solver": {"name": "anderson", "tolerance": 1e-11, "max_evaluations": 200},
        },
    )
    registrar.model(
        "mondeq",
        "stabnet_deq.models.mondeq:mondeq",
        summary="monotone equilibrium classifier: equilibria exist and are unique",
        reference=references.MONDEQ,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 6},
            "solver": {"name": "peaceman_rachford", "tolerance": 1e-11},
        },
    )
    registrar.cell(
        "ibp_monotone",
        "stabnet_deq.ibp.cell:IBPMonotoneCell",
        summary="dominated weights: unique equilibria, with sound interval bounds",
        reference=references.IBP_MONDEQ,
        example={"state_shape": (6,), "feature_shape": (6,)},
    )
    registrar.backbone(
        "strided_conv",
        "stabnet_deq.ibp.backbone:StridedConv",
        summary="strided convolutions without normalization or pooling, tight to bound",
        reference=references.INTERVAL_BOUNDS,
        example={"in_shape": (1, 8, 8), "channels": (2, 3), "width": 6},
    )
    registrar.objective(
        "ibp",
        "stabnet_deq.ibp.objective:IntervalCrossEntropy",
        summary="certified training by interval bounds; its accuracy is the verified one",
        reference=(references.INTERVAL_BOUNDS, references.IBP_MONDEQ),
        # The kit's own model has no interval bounds, and without a radius needs none.
        example={"eps": 0.0},
    )
    registrar.model(
        "ibp_mondeq",
        "stabnet_deq.models.ibp_mondeq:ibp_mondeq",
        summary="equilibrium classifier that can be verified by interval bounds",
        reference=references.IBP_MONDEQ,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 6},
            "solver": {"name": "picard", "tolerance": 1e-11, "max_evaluations": 500},
        },
    )
