"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

import stabnet.data

__all__ = ["digits"]

_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def digits(root: str | None = None, download: bool = False) -> stabnet.data.Dataset:
    """Load 1,797 real handwritten digits of 8 × 8 pixels, in 17 shades of gray.

    There is no official test set here: a fifth of the samples (359) is drawn once for all, with a
    fixed seed. The digits are those of 13 writers, and the same writers are in both parts, so a
    test accuracy says nothing about unseen hands.

    Args:
        root: not used: the images are part of scikit-learn.
        download: not used.

    Returns:
        1,438 training and 359 test samples of shape (1, 8, 8), 10 classes.

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target)
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(len(images), generator=generator)
    held_out = round(_TEST_SHARE * len(images))
    test, train = order[:held_out].sort().values, order[held_out:].sort().values
    return stabnet.data.from_tensors(
        images[train],
        labels[train],
        images[test],
        labels[test],
        name="digits",
        classes=[str(digit) for digit in range(10)],
    )
