"""SODEF: a backbone, an orthogonal layer, a flow that starts there, and a linear head."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import Flow, InvalidOptionError, StabilityModel
from stabnet.interfaces import Backbone, Guarantee
from stabnet.values import flag, number, whole

__all__ = ["SODEFStart", "sodef"]

Part = str | Mapping[str, Any] | nn.Module


def sodef(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    backbone: Part = "resnet18",
    frozen: bool = False,
    width: int = 64,
    feature_head: Part | None = None,
    vector_field: Part = "sine",
    integrator: Part | None = None,
    time: float = 5.0,
    head: Part = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build SODEF: a flow that starts at the features of a backbone.

    Train it with the objective ``sodef``, which asks for a stable equilibrium at the start of the
    flow and enforces none: nothing is guaranteed, in the state or in the input. See
    :func:`stabnet_projection.sodef_stability` for what training came to.

    Args:
        in_shape: shape of one input, channels first.
        num_outputs: number of classes.
        backbone: computes features. To put SODEF on a trained one, give the module itself, built
            by stabnet so that the model can be saved, or a name with the option ``weights``. Its
            features should have a norm near √width: a state many times longer turns the sine by
            more than its period, and the penalties then find no slope to follow.
        frozen: whether the backbone keeps its weights and its statistics of batch normalization,
            and stays in eval mode: for one that is trained already, of which a copy is frozen.
            Gradients still pass through. The release freezes it on CIFAR-10, and trains it along
            on MNIST; from random weights, nothing would be learned of the inputs.
        width: size of the state.
        feature_head: maps the raveled features to the start of the flow; ``None`` for
            ``orthogonal`` without bias, as released.
        vector_field: moves the state, driven by nothing else.
        integrator: carries it; ``None`` for ``rk4`` with steps of 0.1. Released: ``dopri5`` with
            tolerances 1e-5 (MNIST) or 1e-3 (CIFAR-10), and the adjoint.
        time: how long; 5 is the release's.
        head: maps the final state to logits.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    Raises:
        InvalidOptionError: for options out of range, a backbone that is none or takes other inputs,
            or a state wider than the features, which an orthogonal layer cannot fill.

    References:
        Kang, Song, Ding, Tay: "Stable neural ODE with Lyapunov-stable equilibrium points for
        defending against adversarial attacks", 2021; released code.
    """
    layer = {"name": "orthogonal", "bias": False} if feature_head is None else feature_head
    features = stabnet.build(backbone, kind="backbone", in_shape=tuple(in_shape))
    _check_backbone(features, tuple(in_shape))
    start = SODEFStart(features, layer, width, frozen)
    field = stabnet.build(
        vector_field, kind="vector_field", state_shape=start.out_shape, feature_shape=()
    )
    method = {"name": "rk4", "step_size": 0.1} if integrator is None else integrator
    flow = Flow(
        field,
        stabnet.build(method, kind="integrator"),
        initial="features",
        times=(0.0, number("time", time, above=0)),
    )
    readout = stabnet.build(head, kind="head", in_features=width, num_outputs=num_outputs)
    return StabilityModel(in_shape, num_outputs, start, flow, readout, mean, std)


@final
class SODEFStart(Backbone):
    """Computes where the flow starts: a backbone, frozen if wanted, and a layer on its features.

    Args:
        backbone: the backbone; if frozen, it is copied, since freezing it would freeze it wherever
            else it is used.
        feature_head: the layer, as a part of kind head.
        width: size of the start.
        frozen: whether the backbone is.

    Raises:
        InvalidOptionError: for options out of range, or an orthogonal layer that would be wider
            than the features.
    """

    def __init__(self, backbone: Backbone, feature_head: Part, width: int, frozen: bool) -> None:
        super().__init__()
        self.frozen = flag("frozen", frozen)
        self.in_shape, self.out_shape = backbone.in_shape, (whole("width", width, 1),)
        size = math.prod(backbone.out_shape)
        name = feature_head.get("name") if isinstance(feature_head, Mapping) else feature_head
        if name == "orthogonal" and width > size:
            raise InvalidOptionError(
                f"width={width} exceeds the {size} features of the backbone, and the rows of an "
                f"orthogonal layer cannot be more; give width <= {size}, or another feature_head"
            )
        self.backbone = copy.deepcopy(backbone).requires_grad_(False) if frozen else backbone
        self.feature_head = stabnet.build(
            feature_head, kind="head", in_features=size, num_outputs=width
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, but leave a frozen backbone in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """Return where the flow of inputs ``(batch, *in_shape)`` starts."""
        start: Tensor = self.feature_head(self.backbone(x).flatten(1))
        return start

    def guarantees(self) -> list[Guarantee]:
        """Return under which conditions the start is stable in the state, and what that is not."""
        return [
            Guarantee(
                claim="the state z at which the flow of an input starts is an asymptotically "
                "stable equilibrium of the flow (this says nothing of perturbed inputs)",
                formula="F(z(0)) = 0 and J_ii < 0, |J_ii| > Σ_{j≠i} |J_ij| for all i, "
                "J = ∂F/∂z at z(0), whence Re λ(J) < 0",
                source="Kang et al. 2021; Gershgorin's circles; Lyapunov's indirect method",
                status="conditional",
                assumptions=("the field is continuously differentiable and autonomous",),
                detail="open: both conditions. Training penalizes their violation and enforces "
                "neither; sodef_stability counts how often. They cannot both hold along a curve "
                "of starts, since an equilibrium with a nonsingular Jacobian is isolated",
            ),
            Guarantee(
                claim="NOT guaranteed: robustness to perturbations of the input x",
                formula="no bound of ‖h(x + δ) − h(x)‖ is claimed",
                source="stability concerns the state z alone; RobustBench marks the published "
                "robustness as unreliable (71.28 % against AutoAttack, 64.20 % under transfer)",
                status="conditional",
                detail="open: how far z(0) moves with x, and whether it stays in the basin of the "
                "equilibrium; nothing bounds either",
            ),
        ]

    def extra_repr(self) -> str:
        """Return whether the backbone is frozen."""
        return f"frozen={self.frozen}"


def _check_backbone(backbone: Backbone, in_shape: tuple[int, ...]) -> None:
    """Refuse a module that is no backbone, or one for other inputs.

    Raises:
        InvalidOptionError: if it is one of these.
    """
    if not (hasattr(backbone, "in_shape") and hasattr(backbone, "out_shape")):
        raise InvalidOptionError(
            f"the backbone {type(backbone).__name__} says neither in_shape nor out_shape; give a "
            "stabnet.interfaces.Backbone, or a name"
        )
    if tuple(backbone.in_shape) != in_shape:
        raise InvalidOptionError(
            f"the backbone takes inputs of shape {tuple(backbone.in_shape)}, the model is to take "
            f"{in_shape}; build the model with the backbone's in_shape"
        )
