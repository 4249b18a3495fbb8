"""Checks of data sets, as far as they are at hand."""

from __future__ import annotations

from typing import Any

import torch

from ...data import loader, split
from ...plugin import Entry
from .._outcome import require
from .._specimen import build_part

__all__ = ["check_dataset_samples", "check_dataset_split"]

_LOOKED_AT = 64


def check_dataset_samples(entry: Entry) -> None:
    """Samples have the shapes, types and ranges that the metadata say."""
    data = build_part(entry)
    for samples in (data.train, data.test):
        x, y = next(iter(loader(samples, batch_size=_LOOKED_AT)))
        shape = tuple(x.shape[1:])
        require(shape == data.in_shape, entry, f"inputs of in_shape = {data.in_shape}", shape)
        require(x.dtype == torch.float32, entry, "inputs of torch.float32", x.dtype)
        if len(data.in_shape) == 3:
            dark, light = float(x.min()), float(x.max())
            inside = 0 <= dark < light <= 1
            require(inside, entry, "pixels in [0, 1]", f"{dark:g} to {light:g}")
        if data.task == "classification":
            whole = not y.is_floating_point() and y.shape == x.shape[:1]
            require(whole, entry, "a whole number as each label", f"{y.dtype}, {tuple(y.shape)}")
            low, high = int(y.min()), int(y.max())
            fits = 0 <= low <= high < data.num_outputs
            what = f"labels from 0 to {data.num_outputs - 1}"
            require(fits, entry, what, f"{low} to {high}")
        else:
            wanted = (len(x), data.num_outputs)
            require(tuple(y.shape) == wanted, entry, f"target values {wanted}", tuple(y.shape))


def check_dataset_split(entry: Entry) -> None:
    """Splitting is seeded, and loses and repeats no sample."""
    data = build_part(entry)
    one, same, other = (split(data, 0.1, seed) for seed in (0, 0, 1))
    indices = _indices(one.validation)
    require(indices == _indices(same.validation), entry, "equal splits from equal seeds", "others")
    require(
        indices != _indices(other.validation), entry, "other splits from other seeds", "the same"
    )
    parted = sorted([*_indices(one.train), *indices])
    whole = list(range(len(data.train)))
    require(parted == whole, entry, "every training sample in one part", "lost or repeated ones")


def _indices(samples: Any) -> list[int]:
    return list(samples.indices)
