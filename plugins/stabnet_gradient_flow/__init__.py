"""Non-expansive blocks by gradient flows and their kin, and networks with certified radii."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "AOL": ".blocks.aol",
    "Activation": ".activations",
    "GradientFlow": ".blocks.gradient_flow",
    "GradientFlowPair": ".blocks.gradient_flow_pair",
    "NormEstimate": ".norms",
    "Operator": ".operators",
    "SLL": ".blocks.sll",
    "aol": ".blocks.aol",
    "feed_forward_activation": ".activations",
    "gradient_flow": ".blocks.gradient_flow",
    "gradient_flow_conv": ".blocks.gradient_flow",
    "max_min": ".activations",
    "monotone_activation": ".activations",
    "operator": ".operators",
    "rescaled_rows": ".rescaling",
    "sll": ".blocks.sll",
}

__all__ = [
    "AOL",
    "SLL",
    "Activation",
    "GradientFlow",
    "GradientFlowPair",
    "NormEstimate",
    "Operator",
    "aol",
    "feed_forward_activation",
    "gradient_flow",
    "gradient_flow_conv",
    "max_min",
    "monotone_activation",
    "operator",
    "rescaled_rows",
    "sll",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the blocks, models and objectives of the plugin."""
    registrar.block(
        "gradient_flow",
        "stabnet_gradient_flow.blocks.gradient_flow:gradient_flow",
        summary="non-expansive gradient flow of vectors, by explicit Euler",
        reference=references.SNN,
        example={"state_shape": (4,), "hidden": 6, "time": 3.0, "max_steps": 2},
    )
    registrar.block(
        "gradient_flow_conv",
        "stabnet_gradient_flow.blocks.gradient_flow:gradient_flow_conv",
        summary="non-expansive gradient flow of images, by explicit Euler",
        reference=references.SNN,
        example={"state_shape": (2, 4, 4), "activation": "tanh"},
    )
    registrar.block(
        "gradient_flow_pair",
        "stabnet_gradient_flow.blocks.gradient_flow_pair:GradientFlowPair",
        summary="an expansive gradient flow and a contractive one that makes up for it",
        reference=(references.CELLEDONI, references.SNN),
        example={"state_shape": (4,), "hidden": 6},
    )
    _register_closed_forms(registrar)


def _register_closed_forms(registrar: stabnet.Registrar) -> None:
    """Register the layers whose rescaling is a closed form of the weights."""
    registrar.block(
        "sll",
        "stabnet_gradient_flow.blocks.sll:sll",
        summary="non-expansive residual step, rescaled in closed form (SDP-based layer)",
        reference=references.SLL,
        example={"state_shape": (4,), "hidden": 6},
    )
    registrar.block(
        "aol",
        "stabnet_gradient_flow.blocks.aol:aol",
        summary="almost-orthogonal layer of norm one, columns rescaled in closed form",
        reference=references.AOL,
        example={"state_shape": (4,), "features": 4},
    )
