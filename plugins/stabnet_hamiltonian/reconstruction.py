"""How well the states of a reversible chain are reconstructed, beside what bounds the error."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidInputError
from stabnet.interfaces import Block, Features, Invertible
from stabnet.values import whole

from .reversible import Reversible

__all__ = ["Reconstruction", "reconstruction_error"]


class Reconstruction(NamedTuple):
    """Error of the reconstruction of a chain's first state from its last.

    Attributes:
        error: distance to the first state, relative to the larger of first and last.
        bound: ``ε ∏ᵢ‖JΦᵢ‖``, of which the error is a small multiple at most.
        norms: estimated operator norm of the Jacobian of every block, where the states are.
    """

    error: Float[Tensor, " batch"]
    bound: Float[Tensor, " batch"]
    norms: Float[Tensor, "blocks batch"]


@torch.no_grad()
def reconstruction_error(
    chain: Reversible, z: Float[Tensor, "batch ..."], u: Features = None, *, iterations: int = 20
) -> Reconstruction:
    r"""Reconstruct states by inverting a whole chain, and estimate the bound of the error.

    The rounding of one inversion, of a relative size ε, is amplified by the inversions after it,
    by :math:`\|(J\Phi_i)^{-1}\|` at most, which is :math:`\|J\Phi_i\|` for a symplectic block. The
    bound is pessimistic: its logarithm grows with the number of blocks even where errors do not.
    Norms are estimated from below by power iteration, from torch's random numbers.

    Args:
        chain: the chain; its samples must not depend on each other.
        z: states ``(batch, *state_shape)``.
        u: features, for blocks that depend on them.
        iterations: of the power iteration, per block.

    Raises:
        InvalidInputError: for states that are not in the precision of real numbers.
    """
    if not z.is_floating_point():
        raise InvalidInputError(f"states have dtype {z.dtype}; expected floating point")
    whole("iterations", iterations, 1)
    norms, end = [], z
    for block in chain.blocks:
        norms.append(_norm(cast("Block", block), end, u, iterations))
        end = block(end, u)
    start = end
    for block in reversed(chain.blocks):
        start = cast("Invertible", block).inverse(start, u)
    difference, *sizes = (x.flatten(1).norm(dim=1) for x in (start - z, z, end))
    # Infinite beyond the range of the numbers, as it should be.
    bound = torch.finfo(z.dtype).eps * torch.stack(norms).double().prod(0)
    return Reconstruction(difference / torch.maximum(*sizes), bound, torch.stack(norms))


def _norm(block: Block, z: Tensor, u: Features, iterations: int) -> Float[Tensor, " batch"]:
    """Return an estimate of the norm of a block's Jacobian at each state, from below."""

    def f(z: Tensor) -> Tensor:
        return cast("Tensor", block(z, u))

    pull = torch.func.vjp(f, z)[1]
    # Jᵀw is linear in w, and J the transpose of that.
    push = torch.func.vjp(lambda w: pull(w)[0], torch.zeros_like(z))[1]
    v = _unit(torch.randn_like(z))
    for _ in range(iterations):
        v = _unit(pull(push(v)[0])[0])
    norm: Tensor = push(v)[0].flatten(1).norm(dim=1)
    return norm


def _unit(v: Tensor) -> Tensor:
    norm: Tensor = v.flatten(1).norm(dim=1)
    return v / norm.view(-1, *[1] * (v.ndim - 1))
