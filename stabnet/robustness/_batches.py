"""Checked batches of images, as every evaluation of a classifier takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..errors import InvalidInputError, InvalidOptionError
from ._checks import check_images

__all__ = ["checked_batches"]


def checked_batches(
    batches: Iterable[Sequence[Tensor]], max_images: int | None, device: torch.device | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield checked images and labels, ``max_images`` of them at most.

    Args:
        batches: any iterable of ``(images, labels)``.
        max_images: stop after so many images; all of them if ``None``.
        device: where to move them; as they are if ``None``.

    Raises:
        InvalidOptionError: if ``max_images`` is not positive.
        InvalidInputError: for a batch that is no such pair, or images or labels that do not fit.
    """
    if max_images is not None and max_images < 1:
        raise InvalidOptionError(f"max_images={max_images} must be at least 1, or None for all")
    left = max_images
    for batch in batches:
        if not (
            isinstance(batch, (tuple, list))
            and len(batch) >= 2
            and all(isinstance(t, Tensor) for t in batch[:2])
        ):
            raise InvalidInputError(
                f"a batch is (images, labels); got {type(batch).__name__}. For one batch of "
                "tensors give [(images, labels)]"
            )
        x, y = (t[:left].to(device) for t in batch[:2])
        check_images(x, y)
        yield x, y.long()
        if left is not None:
            left -= len(x)
            if left <= 0:
                return
