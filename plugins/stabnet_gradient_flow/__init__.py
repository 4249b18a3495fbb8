"""Non-expansive blocks by gradient flows and their kin, and networks with certified radii."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "AOL": ".blocks.aol",
    "Activation": ".activations",
    "Cayley": ".blocks.cayley",
    "Downsample": ".blocks.downsample",
    "Flatten": ".blocks.flatten",
    "FreeResidual": ".blocks.free_residual",
    "GradientFlow": ".blocks.gradient_flow",
    "GradientFlowPair": ".blocks.gradient_flow_pair",
    "Lift": ".blocks.lift",
    "MarginCrossEntropy": ".objectives.margin_cross_entropy",
    "MarginHinge": ".objectives.margin_hinge",
    "NormEstimate": ".norms",
    "Operator": ".operators",
    "Project": ".blocks.lift",
    "ProjectedDownsample": ".blocks.downsample",
    "SLL": ".blocks.sll",
    "Sandwich": ".blocks.sandwich",
    "Scale": ".blocks.scale",
    "SemiOrthogonal": ".semi_orthogonal",
    "aol": ".blocks.aol",
    "cayley": ".cayley_map",
    "downsample": ".blocks.downsample",
    "feed_forward_activation": ".activations",
    "gradient_flow": ".blocks.gradient_flow",
    "gradient_flow_conv": ".blocks.gradient_flow",
    "invnet": ".models.invnet",
    "max_min": ".activations",
    "monotone_activation": ".activations",
    "nonexpansive_net": ".models.nonexpansive_net",
    "operator": ".operators",
    "rescaled_rows": ".rescaling",
    "resnet_twin": ".models.resnet_twin",
    "sll": ".blocks.sll",
}

__all__ = [
    "AOL",
    "SLL",
    "Activation",
    "Cayley",
    "Downsample",
    "Flatten",
    "FreeResidual",
    "GradientFlow",
    "GradientFlowPair",
    "Lift",
    "MarginCrossEntropy",
    "MarginHinge",
    "NormEstimate",
    "Operator",
    "Project",
    "ProjectedDownsample",
    "Sandwich",
    "Scale",
    "SemiOrthogonal",
    "aol",
    "cayley",
    "downsample",
    "feed_forward_activation",
    "gradient_flow",
    "gradient_flow_conv",
    "invnet",
    "max_min",
    "monotone_activation",
    "nonexpansive_net",
    "operator",
    "rescaled_rows",
    "resnet_twin",
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
    _register_cayley(registrar)
    _register_shapes(registrar)
    _register_inverse_problems(registrar)
    _register_networks(registrar)


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
        # One channel and tap, where the first weights are no kink of |WᵀW|.
        example={"state_shape": (1, 4, 4), "features": 2, "kernel_size": 1},
    )


def _register_cayley(registrar: stabnet.Registrar) -> None:
    """Register the layers whose matrices come from the Cayley map."""
    registrar.block(
        "cayley",
        "stabnet_gradient_flow.blocks.cayley:Cayley",
        summary="orthogonal layer by the Cayley map; for images a circular convolution",
        reference=references.CAYLEY,
        example={"state_shape": (2, 4, 4), "features": 4},
    )
    registrar.block(
        "sandwich",
        "stabnet_gradient_flow.blocks.sandwich:Sandwich",
        summary="activation between two matrices of joint norm one, by the Cayley map",
        reference=references.SANDWICH,
        example={"state_shape": (4,), "features": 6},
    )


def _register_shapes(registrar: stabnet.Registrar) -> None:
    """Register the blocks that change the shape of a state, and expand no distance."""
    registrar.block(
        "downsample",
        "stabnet_gradient_flow.blocks.downsample:downsample",
        summary="half the height and width, patches turned into channels by an isometry",
        reference=references.SNN,
        example={"state_shape": (2, 4, 4), "basis": "haar"},
    )
    registrar.block(
        "lift",
        "stabnet_gradient_flow.blocks.lift:Lift",
        summary="more channels, by zeros",
        reference=references.SNN,
        example={"state_shape": (2, 4, 4), "channels": 3},
    )
    registrar.block(
        "project",
        "stabnet_gradient_flow.blocks.lift:Project",
        summary="fewer channels, the first ones",
        reference=references.SNN,
        example={"state_shape": (3, 4, 4), "channels": 2},
    )
    registrar.block(
        "flatten",
        "stabnet_gradient_flow.blocks.flatten:Flatten",
        summary="an image as a vector",
        reference=references.SNN,
        example={"state_shape": (2, 4, 4)},
    )


def _register_inverse_problems(registrar: stabnet.Registrar) -> None:
    """Register the network of a given Lipschitz constant, and the block that sets it."""
    registrar.block(
        "scale",
        "stabnet_gradient_flow.blocks.scale:Scale",
        summary="a learned factor of bounded size",
        reference=references.SNN,
        example={"state_shape": (4,), "largest": 2.0},
    )
    registrar.model(
        "invnet",
        "stabnet_gradient_flow.models.invnet:invnet",
        summary="reconstruction of vectors from measurements, with a given Lipschitz constant",
        reference=references.SNN,
        example={"in_shape": (3,), "num_outputs": 2, "lipschitz": 2.0, "width": 5, "blocks": 2},
    )


def _register_networks(registrar: stabnet.Registrar) -> None:
    """Register the networks for images, and the objectives that train them for the radius."""
    registrar.block(
        "free_residual",
        "stabnet_gradient_flow.blocks.free_residual:FreeResidual",
        summary="residual block without a constraint, to compare with",
        reference=references.SNN,
        example={"state_shape": (2, 4, 4)},
    )
    registrar.model(
        "nonexpansive_net",
        "stabnet_gradient_flow.models.nonexpansive_net:nonexpansive_net",
        summary="classifier of images, non-expansive up to its last layer",
        reference=references.SNN,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "channels": (2, 4),
            "blocks": (1, 1),
            "features": (6,),
        },
    )
    registrar.model(
        "resnet_twin",
        "stabnet_gradient_flow.models.resnet_twin:resnet_twin",
        summary="the same network as nonexpansive_net with free residual blocks",
        reference=references.SNN,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "channels": (2, 4),
            "blocks": (1, 1),
            "features": (6,),
        },
    )
    registrar.objective(
        "margin_cross_entropy",
        "stabnet_gradient_flow.objectives.margin_cross_entropy:MarginCrossEntropy",
        summary="cross entropy of certified radii, with a margin and a temperature",
        reference=(references.SNN, references.TSUZUKU, references.AOL),
        example={},
    )
    registrar.objective(
        "margin_hinge",
        "stabnet_gradient_flow.objectives.margin_hinge:MarginHinge",
        summary="how much the certified radius falls short of a margin",
        reference=(references.SNN, references.ANIL),
        example={"margin": 1.0},
    )
