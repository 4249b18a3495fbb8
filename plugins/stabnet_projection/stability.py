"""What fields are like where flows start: Jacobians, and a count on given inputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel
from stabnet.interfaces import Features, Guarantee, VectorField
from stabnet.robustness import eval_mode
from stabnet.values import number

__all__ = ["SODEFStability", "dominant", "field_jacobian", "flow_start", "sodef_stability"]


def field_jacobian(
    field: VectorField,
    t: float | Tensor,
    z: Float[Tensor, "batch ..."],
    u: Features = None,
) -> Float[Tensor, "batch n n"]:
    r"""Return the Jacobian :math:`J_{ij} = \partial F_i / \partial z_j` at every state.

    All samples at once, by ``vmap`` of reverse mode. It can be differentiated in turn.

    Args:
        field: the field; each sample's value depends on that sample alone.
        t: time.
        z: states ``(batch, *state_shape)``.
        u: features, one tensor or none.

    Raises:
        InvalidInputError: if the field couples the samples by batch normalization in training
            mode, or is driven by several tensors.
    """
    if any(isinstance(m, _BatchNorm) and m.training for m in field.modules()):
        raise InvalidInputError(
            "the Jacobian of one sample is not defined for a field with batch normalization in "
            "training mode, which couples the samples; use a field without"
        )
    if isinstance(u, tuple):
        raise InvalidInputError(f"features are one tensor, or none; got a tuple of {len(u)}")

    def velocity(state: Tensor, features: Tensor | None) -> Tensor:
        driving = None if features is None else features[None]
        out: Tensor = field(t, state.reshape(1, *z.shape[1:]), driving)
        return out.flatten()

    # "different": each sample drops out on its own, where something does.
    over = torch.func.vmap(
        torch.func.jacrev(velocity), in_dims=(0, None if u is None else 0), randomness="different"
    )
    jacobian: Tensor = over(z.flatten(1), u)
    return jacobian


def flow_start(flow: Flow, u: Features) -> tuple[Tensor, Features]:
    """Return the state at which a flow starts, and the features that drive it from there.

    Raises:
        InvalidInputError: for features of several tensors.
    """
    if not isinstance(u, Tensor):
        raise InvalidInputError(f"features are one tensor; got {type(u).__name__}")
    if flow.initial == "features":
        return u, None
    start = flow.start if flow.initial == "learned" else u.new_zeros(flow.vector_field.state_shape)
    return start.to(u.dtype).expand(len(u), *start.shape), u


def dominant(
    jacobian: Float[Tensor, "batch n n"], by: Literal["rows", "columns"]
) -> Bool[Tensor, " batch"]:
    """Return which matrices have a negative, strictly dominant diagonal.

    By Gershgorin's theorem all their eigenvalues are in the open left half plane.

    Args:
        jacobian: the matrices.
        by: whether each diagonal entry dominates its row or its column.
    """
    diagonal = jacobian.diagonal(dim1=-2, dim2=-1)
    off = (jacobian - torch.diag_embed(diagonal)).abs().sum(-1 if by == "rows" else -2)
    return (-diagonal > off).all(-1)


@final
@dataclass(frozen=True)
class SODEFStability:
    """How often flows start slowly and at a Hurwitz Jacobian: evidence on the inputs given.

    Only where the speed is exactly zero is that a stable equilibrium. A small speed does not even
    place one nearby: Newton's step ``J⁻¹F`` to it is long where ``J`` is nearly singular, and a
    field that is small everywhere is slow everywhere. Of other inputs nothing is known, and nothing
    of robustness in the input.

    Attributes:
        samples: how many inputs there were.
        tolerance: below which the speed counts as zero.
        speed: the mean of ``‖F(z)‖₂``.
        largest_speed: the largest.
        still: share of inputs with ``‖F(z)‖₂ ≤ tolerance``.
        negative: share with a negative diagonal of the Jacobian.
        dominant: share with a negative diagonal that strictly dominates all rows, or all columns.
        hurwitz: share whose eigenvalues, as computed, are all in the open left half plane.
        abscissa: the mean of the largest real part of an eigenvalue.
        largest_abscissa: the largest.
        stable: share that is both still, within the tolerance, and Hurwitz.
    """

    samples: int
    tolerance: float
    speed: float
    largest_speed: float
    still: float
    negative: float
    dominant: float
    hurwitz: float
    abscissa: float
    largest_abscissa: float
    stable: float

    def guarantee(self) -> Guarantee:
        """Return the finding as a statement, whose status is ``sampled``."""
        return Guarantee(
            claim="shares of the inputs given whose flow starts slowly and at a Hurwitz Jacobian, "
            "of which only the speed zero is a stable equilibrium of the state; nothing is said of "
            "other inputs, or of robustness in the input",
            formula=f"‖F(z(0))‖ ≤ {self.tolerance:g} and Re λ(∂F/∂z (z(0))) < 0",
            source="Kang et al. 2021; Gershgorin's circles",
            status="sampled",
            detail=f"of {self.samples} inputs {self.still:.2%} are still, {self.dominant:.2%} "
            f"have a dominant negative diagonal, {self.hurwitz:.2%} are Hurwitz, {self.stable:.2%} "
            f"are still and Hurwitz; largest speed {self.largest_speed:.3g}, largest real part "
            f"{self.largest_abscissa:.3g}",
        )


@torch.no_grad()
def sodef_stability(
    model: StabilityModel, x: Float[Tensor, "samples ..."], *, tolerance: float = 1e-2
) -> SODEFStability:
    """Count on given inputs how often the flow starts slowly and at a Hurwitz Jacobian.

    The model is in eval mode, and its modules' modes are restored. Field, Jacobian and eigenvalues
    are computed in float64, from the start as the model computes it.

    Args:
        model: a model whose dynamics is a :class:`stabnet.Flow`.
        x: inputs ``(samples, *in_shape)``.
        tolerance: the speed that counts as zero, not negative.

    Returns:
        The counts.

    Raises:
        InvalidOptionError: if the model has no flow, or for a negative tolerance.
        InvalidInputError: for no inputs at all.
    """
    number("tolerance", tolerance, least=0)
    flow = getattr(model, "dynamics", None)
    if not isinstance(flow, Flow):
        raise InvalidOptionError(
            f"stability of a flow's start needs a model whose dynamics is a Flow; this one's is "
            f"{type(flow).__name__}"
        )
    if len(x) == 0:
        raise InvalidInputError("there are no inputs; give at least one")
    with eval_mode(model):
        z, u = flow_start(flow, model.features(x))
        field = copy.deepcopy(flow.vector_field).double()
        z, u = z.double(), u.double() if isinstance(u, Tensor) else u
        velocity: Tensor = field(flow.times[0], z, u)
        jacobian = field_jacobian(field, flow.times[0], z, u)
    speed = torch.linalg.vector_norm(velocity.flatten(1), dim=1)
    abscissa = torch.linalg.eigvals(jacobian).real.amax(1)
    still, hurwitz = speed <= tolerance, abscissa < 0
    negative = (jacobian.diagonal(dim1=-2, dim2=-1) < 0).all(1)

    def share(which: Tensor) -> float:
        return float(which.double().mean())

    return SODEFStability(
        samples=len(x),
        tolerance=tolerance,
        speed=float(speed.mean()),
        largest_speed=float(speed.max()),
        still=share(still),
        negative=share(negative),
        dominant=share(dominant(jacobian, "rows") | dominant(jacobian, "columns")),
        hurwitz=share(hurwitz),
        abscissa=float(abscissa.mean()),
        largest_abscissa=float(abscissa.max()),
        stable=share(still & hurwitz),
    )
