"""How well the states of a reversible chain are reconstructed, beside an estimate of the bound."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidInputError
from stabnet.interfaces import Features
from stabnet.monitors import jacobian_norms

from .reversible import Reversible

__all__ = ["Reconstruction", "reconstruction_error"]


class Reconstruction(NamedTuple):
    """Error of the reconstruction of a chain's first state from its last.

    Attributes:
        error: distance to the first state, relative to the largest state of the chain.
        bound_estimate: ``ε ∏ᵢ norms[i]``. With the true norms it would be, up to a small factor and
            to first order, a bound of the error; with these it certifies nothing.
        norms: operator norm of the Jacobian of every block, where the states are; estimated, from
            below.
    """

    error: Float[Tensor, " batch"]
    bound_estimate: Float[Tensor, " batch"]
    norms: Float[Tensor, "blocks batch"]


@torch.no_grad()
def reconstruction_error(
    chain: Reversible, z: Float[Tensor, "batch ..."], u: Features = None, *, iterations: int = 20
) -> Reconstruction:
    r"""Reconstruct states by inverting a whole chain, and estimate the bound of the error.

    The rounding of one inversion, of a relative size ε, is amplified by the inversions after it,
    by :math:`\|(J\Phi_i)^{-1}\|` at most, which is :math:`\|J\Phi_i\|` for a symplectic block,

    .. math:: \frac{\|\tilde z_0 - z_0\|}{\max_i \|z_i\|} \le c\,\varepsilon \prod_i \|J\Phi_i\|,

    to first order, where ``c`` is that of one block's roundings; in tests it is below 2. The bound
    is pessimistic: its logarithm grows with the number of blocks even where errors do not. Norms
    are estimated from below, see :func:`stabnet.monitors.jacobian_norms`.

    Args:
        chain: the chain; its samples must not depend on each other.
        z: states ``(batch, *state_shape)``.
        u: features, for blocks that depend on them.
        iterations: of the power iteration, per block.

    Raises:
        InvalidInputError: for what is no chain, or states that it does not take.
    """
    if not isinstance(chain, Reversible):
        raise InvalidInputError(
            f"reconstruction_error takes a Reversible, which a model has among its "
            f"model.dynamics.stages; got {type(chain).__name__}"
        )
    norms = jacobian_norms(chain, z, iterations, u=u)
    states = [z]
    for block in chain.blocks:
        states.append(block(states[-1], u))
    found = chain.inverse(states[-1], u)
    # In double precision: squares and products may leave the range of the numbers.
    size = torch.stack([x.flatten(1).double().norm(dim=1) for x in states]).amax(0)
    difference = (found - z).flatten(1).double().norm(dim=1)
    error = torch.where(difference == 0, difference, difference / size)
    return Reconstruction(error, torch.finfo(z.dtype).eps * norms.double().prod(0), norms)
