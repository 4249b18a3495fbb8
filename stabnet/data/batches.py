"""Loaders: batches of samples in a reproducible order."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from ..errors import InvalidOptionError
from .augmentation import Augmentation, augmentation
from .dataset import Samples

__all__ = ["loader"]


def loader(
    samples: Samples,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    augment: str | Augmentation = "none",
    drop_last: bool = False,
    num_workers: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a torch ``DataLoader`` of batches ``(x, y)``.

    The order comes from the loader's own generator alone. Every pass advances it; to repeat the
    order of a given epoch, reseed it before the pass: ``loader.generator.manual_seed(seed)``. The
    augmentation draws from torch's global generator instead (with ``num_workers`` above 0, from
    the workers' own, which torch seeds from the loader's generator).

    Args:
        samples: a part of a data set, such as ``data.test`` or ``splits.train``.
        batch_size: samples per batch, at least 1.
        shuffle: whether each pass has a new random order.
        seed: first seed of the generator that draws the order.
        augment: what to do to each batch of inputs: the name of an augmentation, usually
            ``data.augmentation`` for training, or a function of a batch.
        drop_last: leave out a last batch that is not full.
        num_workers: processes that fetch; 0 fetches in this one, which is fastest for samples in
            memory.

    Returns:
        The loader.

    Raises:
        InvalidOptionError: for an unknown augmentation, a ``batch_size`` or ``num_workers`` out of
            range, or if ``drop_last`` would leave no batch at all.
    """
    if batch_size < 1 or num_workers < 0:
        raise InvalidOptionError(
            f"batch_size={batch_size} and num_workers={num_workers}; they must be at least 1 and 0"
        )
    if drop_last and len(samples) < batch_size:
        raise InvalidOptionError(
            f"batch_size={batch_size} with drop_last leaves no batch of {len(samples)} samples; "
            "make the batch smaller, or keep the last one"
        )
    change = augmentation(augment) if isinstance(augment, str) else augment
    return DataLoader(
        cast(Any, samples),
        batch_size=batch_size,
        shuffle=shuffle and len(samples) > 0,  # torch refuses to shuffle nothing
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=_Collate(change),
        generator=torch.Generator().manual_seed(seed),
    )


@final
class _Collate:
    """Makes one batch of the samples fetched, and augments it; picklable, for worker processes."""

    def __init__(self, augment: Augmentation) -> None:
        self.augment = augment

    def __call__(self, fetched: Any) -> tuple[Tensor, Tensor]:
        stacked = fetched.tensors if isinstance(fetched, TensorDataset) else None
        x, y = default_collate(fetched) if stacked is None else stacked
        return self.augment(x), y
