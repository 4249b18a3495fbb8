"""The spectral radius of a cell's Jacobian at the equilibrium, by Arnoldi's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Features
from stabnet.robustness import eval_mode

from .equilibria import Solved, flatten, solve, transposed_jacobian

__all__ = ["arnoldi_radius", "radius_at", "spectral_radius"]


def spectral_radius(
    part: nn.Module, x: Features, *, products: int = 32, seed: int = 0
) -> Float[Tensor, " batch"]:
    r"""Estimate :math:`\rho(\partial f/\partial z\,(z^*, u))` of each sample, in eval mode.

    Below one, plain iteration converges to the equilibrium from nearby, and the series behind the
    implicit gradient converges; above one, neither does. Complex pairs of eigenvalues count.

    The value is the largest modulus of a Ritz value: an estimate, not a bound. It is exact, to
    rounding, once ``products`` reaches the dimension of the state; before that it may lie on
    either side, above it only for matrices that are not normal.

    Args:
        part: a model whose dynamics is an equilibrium, or has one as a stage; or an equilibrium.
        x: the model's inputs; for an equilibrium, its features.
        products: vector–Jacobian products per sample, at least 1. As many vectors of the size of
            the state are kept.
        seed: seed of the start vectors.

    Returns:
        One value per sample; NaN where the Jacobian is not finite.

    Raises:
        InvalidInputError: if there is no equilibrium, or more than one, or its cell couples the
            samples of a batch even in eval mode.
        InvalidOptionError: if ``products`` is not positive.
    """
    # Outside of inference mode, in which older torch records nothing, not even for torch.func.
    with torch.inference_mode(False), torch.no_grad(), eval_mode(part):
        return radius_at(solve(part, pytree.tree_map_only(Tensor, torch.clone, x)), products, seed)


def radius_at(solved: Solved, products: int, seed: int) -> Float[Tensor, " batch"]:
    """Estimate the spectral radius of each sample at equilibria that were found before."""
    cell, z = solved.equilibrium.cell, solved.solution.state
    if not cell.per_sample:
        raise InvalidInputError(
            "the cell couples the samples of a batch in eval mode too, so that there is no "
            "Jacobian of a single sample; let its batch normalization track running statistics"
        )
    like = flatten(z)
    # Drawn on the CPU, so that a seed means the same everywhere.
    start = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
    return arnoldi_radius(transposed_jacobian(cell, z, solved.u), start, products)


def arnoldi_radius(
    product: Callable[[Tensor], Tensor], start: Float[Tensor, "batch n"], products: int
) -> Float[Tensor, " batch"]:
    r"""Estimate the spectral radius of many matrices at once by Arnoldi's method.

    An orthonormal basis :math:`Q` of the Krylov space of the start vector is built per row, and
    the largest modulus of the eigenvalues of :math:`H = Q^\top A Q` returned.

    Args:
        product: multiplies each row of a ``(batch, n)`` tensor by a matrix of its own.
        start: the start vectors, not zero.
        products: dimension of the Krylov space; ``n`` if that is less.

    Raises:
        InvalidOptionError: if ``products`` is not positive.

    References:
        Saad: "Numerical Methods for Large Eigenvalue Problems", 2011, section 6.2.
    """
    if products < 1:
        raise InvalidOptionError(f"products must be at least 1; got {products}")
    batch, n = start.shape
    steps = min(products, n)
    # The least precise of states still have a basis in single precision, under autocast too.
    q = start.to(torch.promote_types(start.dtype, torch.float32))
    negligible = 1e3 * torch.finfo(q.dtype).eps
    basis = q.new_zeros(batch, steps, n)
    hessenberg = q.new_zeros(batch, steps, steps)
    q = q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    for j in range(steps):
        basis[:, j] = q
        w = product(q.to(start.dtype)).to(q.dtype)
        size = torch.linalg.vector_norm(w, dim=-1)
        for _ in range(2):  # once loses orthogonality, twice is enough
            with torch.autocast(start.device.type, enabled=False):
                along = torch.einsum("bmn,bn->bm", basis[:, : j + 1], w)
                w = w - torch.einsum("bm,bmn->bn", along, basis[:, : j + 1])
            hessenberg[:, : j + 1, j] += along
        if j + 1 < steps:
            length = torch.linalg.vector_norm(w, dim=-1)
            # Rounding alone is left where the space is invariant: its eigenvalues are all there,
            # and zero vectors from here on add zeros to them.
            length = torch.where(length > negligible * size, length, 0)
            hessenberg[:, j + 1, j] = length
            q = torch.where(length[:, None] > 0, w / length[:, None], 0)
    finite = hessenberg.isfinite().all(-1).all(-1)
    # The eigenvalue routine raises for the whole batch because of one NaN.
    values = torch.linalg.eigvals(torch.where(finite[:, None, None], hessenberg, 0).double())
    radius = values.abs().amax(-1).to(q.dtype)
    return torch.where(finite, radius, torch.nan)
