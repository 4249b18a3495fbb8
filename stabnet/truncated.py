"""Truncated gradients of fixed points: a few recorded steps instead of the adjoint equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import StabnetError

__all__ = ["attach_phantom_gradient"]


def attach_phantom_gradient(
    f: Callable[..., Tensor],
    z: Float[Tensor, "batch n"],
    arguments: tuple[Tensor, ...],
    steps: int,
    damping: float,
) -> Float[Tensor, "batch n"]:
    r"""Return ``z`` with the gradient of some damped steps from there.

    .. math:: z \leftarrow (1 - \lambda) z + \lambda f(z, a)

    Its value stays what the solver found, whose residual is known.

    One undamped step makes the gradient Jacobian-free: :math:`J_a^\top g`. It is not the gradient
    of the fixed point, so a second derivative would not be one of anything: asking for it raises.

    Args:
        f: the map ``f(z, *arguments)``.
        z: a fixed point, without history.
        arguments: the arguments of the map.
        steps: number of steps, at least one.
        damping: ``λ``, in (0, 1].

    References:
        Geng et al.: "On training implicit models", 2021, (8)–(9); Fung et al.: "JFB", 2022.
    """
    arguments = tuple(_OnceDifferentiable.apply(a) for a in arguments)
    stepped = z
    for _ in range(steps):
        image = f(stepped, *arguments)
        stepped = image if damping == 1 else (1 - damping) * stepped + damping * image
    attached: Tensor = _GradientOf.apply(z, stepped)
    return attached


class _GradientOf(torch.autograd.Function):
    """The first argument, with the gradient of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, source: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor]:
        return None, gradients[0]


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, whose gradient has no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (gradient,) = gradients
        sealed: Tensor = _NotDifferentiable.apply(gradient) if torch.is_grad_enabled() else gradient
        return sealed


class _NotDifferentiable(torch.autograd.Function):
    """The identity without a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        raise StabnetError(
            "a phantom gradient has no derivative: it is not the gradient of the equilibrium. Use "
            "gradient='implicit' or 'unrolled' where second derivatives are wanted"
        )
