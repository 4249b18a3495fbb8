r"""Rows rescaled by a diagonal matrix so that the operator norm is at most one, in closed form.

Let :math:`A` be a matrix, :math:`G = AA^\top`, and :math:`q_i > 0` any numbers. With

.. math:: N = \operatorname{diag}\Bigl(\sum_j |G_{ij}|\, q_j / q_i\Bigr), \qquad
          B = N^{-1/2} A

we have :math:`AA^\top \preceq N`, that is :math:`\|B\|_2 \le 1`, because
:math:`2 |x_i x_j| \le x_i^2\, q_j/q_i + x_j^2\, q_i/q_j`, and so

.. math:: x^\top G x \le \sum_{ij} |G_{ij}| |x_i| |x_j|
          \le \tfrac12 \sum_{ij} |G_{ij}| \bigl(x_i^2\, q_j/q_i + x_j^2\, q_i/q_j\bigr)
          = x^\top N x .

All that is used of :math:`r_{ij} = q_j/q_i` is that :math:`r_{ij} r_{ji} = 1`; and any larger
diagonal does as well.

**Convolutions** with stride 1. On images without border, the convolution :math:`T` has one row per
hidden channel ``i`` and pixel ``p``, and

.. math:: (TT^\top)_{(i,p),(j,p')} = G_{ij}[p - p'], \qquad
          G_{ij}[\tau] = \sum_{c,t} K_{ic}[t]\, K_{jc}[t + \tau],

the correlation of two kernels, zero where an entry of :math:`\tau` reaches the kernel's size
``k``. With :math:`q_i` the same at all pixels, the sums of absolute values are
:math:`N_i = \sum_j \sum_\tau |G_{ij}[\tau]|\, q_j/q_i` at every pixel, so that, as above,
:math:`\|N^{-1/2} T\|_2 \le 1`.

*Zero padding*: the convolution of an image is :math:`A = P T P^\top`, where :math:`P^\top`
continues an image by zeros and :math:`P` cuts it out. What is constant along pixels commutes with
:math:`P`, so that :math:`\|N^{-1/2} A\| = \|P N^{-1/2} T P^\top\| \le 1`, whatever the size of
the image. *Circular padding*: shifts that differ by whole images meet in one entry of
:math:`AA^\top`, which is the sum of their :math:`G_{ij}[\tau]`; so its sums of absolute values are
at most :math:`N_i`, also on images smaller than :math:`2k - 1`.

The columns of a weight are the rows of its transpose, and the same function rescales them:
:math:`\|A D\| = \|D A^\top\|`.

References:
    Prach, Lampert: "Almost-orthogonal layers for efficient general-purpose Lipschitz networks",
    2022, theorems 1 and 2. Araujo, Havens, Delattre, Allauzen, Hu: "A unified algebraic
    perspective on Lipschitz neural networks", 2023, theorem 3, for :math:`q`.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["rescaled_rows"]

_LEAST = 1e-12
"""Rows whose entries are all smaller are scaled as if this were the largest: zero stays zero."""

_LOG_RATIO = 40.0
"""Logarithm of the largest ``q_j/q_i``; with it neither sums nor their gradients overflow."""


def rescaled_rows(
    rows: Float[Tensor, "features ..."], log_q: Float[Tensor, " features"] | None = None
) -> tuple[Float[Tensor, "features ..."], Float[Tensor, " features"]]:
    r"""Return :math:`B = N^{-1/2} A`, of norm at most one, and the diagonal of :math:`N^{1/2}`.

    Rows are first divided by their largest entries :math:`m_i`, so that nothing overflows; then
    :math:`N_i = m_i^2 \sum_j |\hat G_{ij}|\, r_{ij}` with :math:`r_{ij} = (m_j q_j)/(m_i q_i)`.
    These ratios are kept within :math:`e^{\pm 40}`, symmetrically, which leaves
    :math:`r_{ij} r_{ji} = 1`, and so the bound true for every :math:`q`. A row whose entries are
    all below 1e-12 gets a larger :math:`N_i` than it needs: a row of zeros stays one.

    It costs one product of the weight with itself. For kernels of size ``k`` that is as much as
    convolving images of :math:`(2k-1)^2` pixels, as many as there are rows. It is computed at every
    call: a cache would go stale when a weight is edited in place.

    Args:
        rows: ``A`` as a matrix ``(features, n)``, or kernels ``(features, c, k, k)``.
        log_q: :math:`\log q`, zeros if ``None``.

    Returns:
        ``B``, with the shape of ``rows``, and one positive number per row. Both hold NaN or
        infinite values where the arguments do.
    """
    largest = rows.detach().flatten(1).abs().amax(1).clamp_min(_LEAST)
    scaled = rows / _along(largest, rows)
    log_p = largest.log() if log_q is None else largest.log() + log_q
    ratios = (log_p - log_p[:, None]).clamp(-_LOG_RATIO, _LOG_RATIO).exp()
    # A row whose largest entry is 1 has a sum of at least 1: the others are those below _LEAST.
    root = (_correlations(scaled) * ratios).sum(1).clamp_min(0.5).sqrt()
    return scaled / _along(root, rows), largest * root


def _correlations(rows: Float[Tensor, "features ..."]) -> Float[Tensor, "features features"]:
    """Return ``|AAᵀ|``; for kernels, its sum over all shifts of one against the other."""
    if rows.ndim == 2:
        return (rows @ rows.mT).abs()
    shifts = rows.shape[-1] - 1
    return F.conv2d(rows, rows, padding=shifts).abs().sum((2, 3))


def _along(scale: Float[Tensor, " features"], rows: Tensor) -> Float[Tensor, "features ..."]:
    """Return one number per row in a shape that divides the rows."""
    return scale.view(-1, *[1] * (rows.ndim - 1))
