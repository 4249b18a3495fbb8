r"""Learned linear maps with orthonormal columns or rows, on vectors and on images."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.bounds import largest_spectral_norm_bound
from stabnet.values import whole

from .cayley_map import cayley, rescaled

__all__ = ["SemiOrthogonal"]

_ENTRIES = 2**22
"""Entries of the matrices that are bounded at once."""


@final
class SemiOrthogonal(nn.Module):
    r"""A matrix with orthonormal columns, or rows where it is wide, from free weights.

    For vectors it is one matrix. For images it is a circular convolution, which the Fourier
    transform turns into one matrix per frequency,

    .. math:: \hat X(\omega) = \sum_t X_t\, e^{-i \omega \cdot t}, \qquad
              \hat Q(\omega) = \operatorname{cayley}(\hat X(\omega)), \qquad
              \widehat{Qz}(\omega) = \hat Q(\omega)\, \hat z(\omega),

    with a kernel ``X`` of few taps ``t`` around the origin; ``Q`` has as many as the image has
    pixels. The transform divided by the square root of their number is unitary, so that ``Q`` has
    orthonormal columns where all :math:`\hat Q(\omega)` do, and its norm is the largest of theirs.

    The transform of a real kernel at :math:`-\omega` is the conjugate of that at :math:`\omega`,
    which the Cayley map keeps: half of the frequencies will do, and real images have real images.
    Where both are kept, and differ by rounding, the inverse transform takes the part that belongs
    to a real image: a projection, which increases no norm.

    The matrices are computed from the weights at every call of the module, in eval mode too: an
    edit of the weights may leave no trace, so that a cache could not be told to be out of date.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        image: height and width; none for vectors.
        kernel_size: of a convolution, at most the size of the image.

    Attributes:
        weight: ``X``, any numbers; its size does not matter.
        gain: what ``X`` is rescaled to; see :func:`.cayley_map.rescaled`.

    Raises:
        InvalidOptionError: for a kernel larger than the image.

    References:
        Trockman, Kolter: "Orthogonalizing convolutional layers with the Cayley transform", ICLR
        2021.
    """

    def __init__(
        self, rows: int, columns: int, image: tuple[int, ...] = (), kernel_size: int = 3
    ) -> None:
        super().__init__()
        taps = whole("kernel_size", kernel_size, 1)
        if image and taps > min(image):
            raise InvalidOptionError(
                f"kernel_size={kernel_size} is larger than the images, of {image}, around which "
                "the convolution wraps; use a kernel of at most their size"
            )
        self.image = image
        self.kernel = (taps, taps) if image else ()
        size = math.sqrt(math.prod(self.kernel)) * (math.sqrt(rows) + math.sqrt(columns))
        self.weight = nn.Parameter(torch.randn(rows, columns, *self.kernel) / size)
        self.gain = nn.Parameter(self.weight.detach().norm())

    def forward(self) -> Inexact[Tensor, "... rows columns"]:
        """Return the matrix, or one complex matrix per frequency, ``(h, w // 2 + 1, …)``."""
        weight = rescaled(self.weight, self.gain)
        if not self.image:
            return cayley(weight)
        after = [size - taps for size, taps in zip(self.image, self.kernel, strict=True)]
        padded = F.pad(weight, (0, after[1], 0, after[0]))
        centered = padded.roll([-(taps // 2) for taps in self.kernel], (2, 3))
        return cayley(torch.fft.rfft2(centered).permute(2, 3, 0, 1))

    def multiply(
        self, matrices: Inexact[Tensor, "... m n"], z: Float[Tensor, "batch n ..."]
    ) -> Float[Tensor, "batch m ..."]:
        """Return the states times what :meth:`forward` returned, or a part or adjoint of it."""
        if not self.image:
            return F.linear(z, matrices)
        # There is no transform in half precision, which states have under autocast.
        spectrum = torch.fft.rfft2(z.to(torch.promote_types(z.dtype, torch.float32)))
        product = matrices @ spectrum.permute(2, 3, 1, 0)
        out: Tensor = torch.fft.irfft2(product.permute(3, 2, 0, 1), s=self.image)
        return out

    def along(self, x: Float[Tensor, " features"]) -> Float[Tensor, "features ..."]:
        """Return one number per feature in a shape that adds to and multiplies states."""
        return x.view(-1, *[1] * len(self.image))

    @torch.no_grad()
    def norm_bound(self) -> float:
        r"""Return an upper bound of the norm of the matrix, as :meth:`forward` computes it.

        That is near 1: what is above is the rounding of the Cayley map, in the precision of the
        weights. The bound is computed in float64 from the matrices as they are computed from the
        weights as they stand; a complex one as the real :math:`\begin{bmatrix} \operatorname{Re} &
        -\operatorname{Im} \\ \operatorname{Im} & \operatorname{Re} \end{bmatrix}`, of the same
        norm.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        matrices = self().cpu().reshape(-1, *self.weight.shape[:2])
        if not matrices.is_complex():
            return largest_spectral_norm_bound(matrices)
        count = max(1, _ENTRIES // (4 * matrices[0].numel()))
        return max(largest_spectral_norm_bound(_real(part)) for part in matrices.split(count))

    def extra_repr(self) -> str:
        """Return the shape of the matrix, or of the kernel before the Cayley map."""
        return f"{tuple(self.weight.shape)}"


def _real(matrices: Inexact[Tensor, "batch m n"]) -> Float[Tensor, "batch m2 n2"]:
    """Return real matrices of the same norm and twice the size."""
    re, im = matrices.real, matrices.imag
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)
