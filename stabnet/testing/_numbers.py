"""Comparisons of tensors, and of gradients with differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

__all__ = ["difference", "gradient_fault", "identical", "jacobian", "tensors_of"]

_DIRECTIONS = 2
_OUTPUTS = 3


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest entry of its tensor.

    Infinite where shapes differ or something is not finite.
    """
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return math.inf
        if b.numel() == 0:
            continue
        scale = max(float(b.detach().abs().max()), 1e-8)
        relative = float((a.detach() - b.detach()).abs().max()) / scale
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst


def identical(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether all tensors are equal, bit for bit."""
    pairs = zip(found, expected, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the Jacobian of a function at a point, by one backward pass per output."""
    found: Tensor = torch.autograd.functional.jacobian(function, at)
    return found


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state dict, without extra state of other types."""
    return {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}


def gradient_fault(
    module: nn.Module, call: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> str | None:
    """Compare gradients with central differences, along random directions.

    All parameters move along a few random directions at once, then all floating-point inputs;
    a few random combinations of the outputs are differentiated. An error in any entry of the
    Jacobian shows up in such a projection, except for a set of directions of measure zero.

    Args:
        module: the module whose parameters are moved, in float64.
        call: evaluates ``call(module, *inputs)``.
        inputs: the inputs.

    Returns:
        Which gradient is wrong and by how much, or ``None`` if all are right.
    """
    called = _Called(module, call)
    parameters = {n: p.detach() for n, p in called.named_parameters() if p.is_floating_point()}
    floating = [i for i, x in enumerate(inputs) if x.is_floating_point()]

    def of_parameters(*moved: Tensor) -> Tensor:
        replaced = dict(zip(parameters, moved, strict=True))
        out: Tensor = torch.func.functional_call(called, replaced, tuple(inputs))
        return out

    def of_inputs(*moved: Tensor) -> Tensor:
        replaced = dict(zip(floating, moved, strict=True))
        out: Tensor = called(*(replaced.get(i, x) for i, x in enumerate(inputs)))
        return out

    for what, function, at in (
        ("its parameters", of_parameters, list(parameters.values())),
        ("its inputs", of_inputs, [inputs[i] for i in floating]),
    ):
        fault = _compare(function, at) if at else None
        if fault:
            return f"with respect to {what}, {fault}"
    return None


class _Called(nn.Module):
    """A call as a module, whose parameters ``functional_call`` can replace."""

    def __init__(self, module: nn.Module, call: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([t.flatten() for t in self.call(self.module, *inputs)])


def _compare(function: Callable[..., Tensor], at: Sequence[Tensor]) -> str | None:
    """Run ``gradcheck`` on random combinations of the outputs, scaled to a Jacobian of order 1."""
    generator = torch.Generator().manual_seed(3)
    directions = [_directions(t, generator) for t in at]
    origin = torch.zeros(_DIRECTIONS, dtype=torch.float64)
    weights = torch.randn(_OUTPUTS, function(*at).numel(), generator=generator, dtype=torch.float64)

    def projected(c: Tensor) -> Tensor:
        moved = (t + torch.tensordot(c, d, 1) for t, d in zip(at, directions, strict=True))
        out: Tensor = weights @ function(*moved)
        return out

    scale = float(jacobian(projected, origin).abs().max()) or 1.0
    try:
        torch.autograd.gradcheck(
            lambda c: projected(c) / scale, origin.requires_grad_(), atol=1e-4, rtol=1e-3
        )
    except GradcheckError as error:
        return " ".join(str(error).split())
    return None


def _directions(tensor: Tensor, generator: torch.Generator) -> Float[Tensor, "k ..."]:
    """Return random directions of length one."""
    drawn = torch.randn(_DIRECTIONS, *tensor.shape, generator=generator, dtype=torch.float64)
    lengths = drawn.reshape(_DIRECTIONS, -1).norm(dim=1).clamp_min(1e-12)
    directions: Tensor = drawn / lengths.view(-1, *[1] * tensor.ndim)
    return directions
