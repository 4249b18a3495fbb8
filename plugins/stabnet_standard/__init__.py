"""The standard parts: backbones, plain fields, integrators, heads, objectives and data sets."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references as bib
from .datasets import register_datasets

_LAZY = {
    "AdaptiveRungeKutta": ".integrators",
    "ButcherTableau": ".integrators",
    "ConvField": ".vector_fields",
    "CrossEntropy": ".objectives",
    "MLPField": ".vector_fields",
    "MeanSquaredError": ".objectives",
    "RungeKutta": ".integrators",
    "StandardBackbone": ".backbones",
}

__all__ = [
    "AdaptiveRungeKutta",
    "ButcherTableau",
    "ConvField",
    "CrossEntropy",
    "MLPField",
    "MeanSquaredError",
    "RungeKutta",
    "StandardBackbone",
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
    """Register the standard parts."""
    _register_backbones(registrar)
    _register_vector_fields(registrar)
    _register_integrators(registrar)
    _register_heads_and_objectives(registrar)
    _register_optimizers(registrar)
    register_datasets(registrar)


def _register_backbones(registrar: stabnet.Registrar) -> None:
    package = "stabnet_standard.backbones"
    registrar.backbone(
        "identity",
        f"{package}:identity",
        summary="the input itself",
        example={"in_shape": (3, 8, 8)},
    )
    registrar.backbone(
        "linear",
        f"{package}:linear",
        summary="one fully connected layer on the flattened input",
        example={"in_shape": (1, 8, 8), "width": 6},
    )
    registrar.backbone(
        "mlp",
        f"{package}:mlp",
        summary="multi-layer perceptron on the flattened input",
        example={"in_shape": (5,), "hidden": (7,), "width": 6},
    )
    registrar.backbone(
        "convnet",
        f"{package}:convnet",
        summary="a few convolutions with batch normalization, averaged",
        example={"in_shape": (1, 8, 8), "channels": (4, 5), "width": 6},
    )
    registrar.backbone(
        "stem",
        f"{package}:stem",
        summary="one convolution with batch normalization; features on a grid",
        example={"in_shape": (1, 9, 8), "channels": 4, "stride": 2},
    )
    for name, size in (("resnet20", "0.27 M"), ("resnet56", "0.85 M")):
        registrar.backbone(
            name,
            f"{package}:{name}",
            summary=f"residual network of He et al. for small images, {size} parameters",
            reference=bib.RESNET,
            example={"in_shape": (3, 8, 8), "width": 6},
        )
    registrar.backbone(
        "resnet18",
        f"{package}:resnet18",
        summary="ResNet-18 with a stem for small images, 11 M parameters",
        reference=bib.RESNET,
        example={"in_shape": (3, 9, 9), "width": 6},
    )


def _register_vector_fields(registrar: stabnet.Registrar) -> None:
    package = "stabnet_standard.vector_fields"
    registrar.vector_field(
        "mlp",
        f"{package}:MLPField",
        summary="multi-layer perceptron of the state, driven by features",
        reference=bib.NEURAL_ODE,
        example={"state_shape": (3,), "feature_shape": (4,), "hidden": (5,)},
    )
    registrar.vector_field(
        "conv",
        f"{package}:ConvField",
        summary="convolutional network of the state, driven by features",
        reference=bib.NEURAL_ODE,
        example={"state_shape": (2, 4, 5), "feature_shape": (3, 4, 5), "channels": (3,)},
    )


def _register_integrators(registrar: stabnet.Registrar) -> None:
    package = "stabnet_standard.integrators"
    for name, summary, reference in (
        ("euler", "Euler's method with fixed steps, order 1", ()),
        ("midpoint", "explicit midpoint method with fixed steps, order 2", bib.RUNGE),
        ("rk4", "classical Runge–Kutta method with fixed steps, order 4", bib.KUTTA),
    ):
        registrar.integrator(
            name,
            f"{package}:{name}",
            summary=summary,
            reference=reference,
            example={"step_size": 0.25},
        )
    for name, summary, references in (
        ("adaptive_heun", "Heun's method with adaptive steps, order 2", ()),
        ("bosh3", "Bogacki–Shampine with adaptive steps, order 3", (bib.BOGACKI_SHAMPINE,)),
        ("dopri5", "Dormand–Prince with adaptive steps, order 5", (bib.DORMAND_PRINCE,)),
        ("dopri8", "Dormand–Prince with adaptive steps, order 8", (bib.PRINCE_DORMAND,)),
    ):
        registrar.integrator(
            name,
            f"{package}:{name}",
            summary=summary,
            reference=(*references, bib.TORCHDIFFEQ, bib.NEURAL_ODE),
            example={"rtol": 1e-6, "atol": 1e-8},
        )


def _register_heads_and_objectives(registrar: stabnet.Registrar) -> None:
    registrar.head(
        "linear",
        "stabnet_standard.heads:linear",
        summary="an unconstrained linear map",
        example={"in_features": 4, "num_outputs": 3},
    )
    registrar.head(
        "identity",
        "stabnet_standard.heads:identity",
        summary="the state itself",
        example={"in_features": 3, "num_outputs": 3},
    )
    registrar.objective(
        "cross_entropy",
        "stabnet_standard.objectives:CrossEntropy",
        summary="cross entropy of class labels",
        reference=bib.LABEL_SMOOTHING,
        example={"label_smoothing": 0.1},
    )
    registrar.objective(
        "mse",
        "stabnet_standard.objectives:MeanSquaredError",
        summary="mean squared error of target values",
        example={},
    )


def _register_optimizers(registrar: stabnet.Registrar) -> None:
    # Examples hold no `params`: a plugin registers without torch, and whoever tries one has them.
    for name, summary, reference in (
        ("adam", "Adam", bib.ADAM),
        ("adamw", "Adam with decoupled weight decay", bib.ADAMW),
        ("sgd", "stochastic gradient descent with momentum", ()),
    ):
        registrar.optimizer(
            name,
            f"stabnet_standard.optimizers:{name}",
            summary=summary,
            reference=reference,
            example={"lr": 0.01},
        )
