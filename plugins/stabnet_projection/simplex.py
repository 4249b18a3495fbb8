"""Fixed class vectors, as far from each other as they can be."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.values import whole

__all__ = ["class_vectors"]


def class_vectors(num_outputs: int, in_features: int) -> Float[Tensor, "classes features"]:
    r"""Return unit vectors with the smallest largest cosine, the corners of a regular simplex.

    .. math:: V V^\top = \tfrac{C}{C-1} I - \tfrac{1}{C-1} \mathbf{1}\mathbf{1}^\top

    so that every two classes are at the distance :math:`\sqrt{2C/(C-1)}`, the greatest that the
    closest two of ``C`` unit vectors can have. They lie in the first ``C − 1`` coordinates.

    The released SODEF trains its features against such vectors. Its own come from a search for the
    greatest distance, of which the simplex is the solution up to rotation; unit length is a choice
    of ours.

    Args:
        num_outputs: number of classes ``C``, at least 2.
        in_features: size of the space, at least ``C − 1``.

    Raises:
        InvalidOptionError: for fewer classes, or a space without room for the simplex.

    References:
        Kang, Song, Ding, Tay 2021; released code.
    """
    classes = whole("num_outputs", num_outputs, 2)
    if whole("in_features", in_features, 1) < classes - 1:
        raise InvalidOptionError(
            f"{classes} class vectors at equal distances need at least {classes - 1} features; "
            f"got {in_features}. Use a wider state"
        )
    # Helmert's rows: orthonormal, and orthogonal to the vector of ones.
    k = torch.arange(1, classes, dtype=torch.float64)[:, None]
    column = torch.arange(classes)[None]
    entry = (column < k).double() - k * (column == k)
    corners = (entry / torch.sqrt(k * (k + 1))).T * (classes / (classes - 1)) ** 0.5
    vectors = torch.zeros(classes, in_features, dtype=torch.float64)
    vectors[:, : classes - 1] = corners
    return vectors.to(torch.get_default_dtype())
