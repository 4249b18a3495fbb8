"""Seeded splits: which samples train, which validate, which test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..errors import InvalidOptionError
from .batches import loader
from .dataset import Dataset, Samples

__all__ = ["Splits", "split"]


@final
@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint parts of a data set.

    Attributes:
        dataset: the data set that was split.
        train: samples to train on.
        validation: samples held out of the training samples; empty for a share of 0.
        test: the data set's own test samples.
    """

    dataset: Dataset
    train: Samples = field(repr=False)
    validation: Samples = field(repr=False)
    test: Samples = field(repr=False)

    def loader(
        self,
        split: Literal["train", "validation", "test"],
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augment: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return a torch ``DataLoader`` of one part; see :func:`stabnet.data.loader`.

        Args:
            split: which part.
            batch_size: samples per batch, at least 1.
            shuffle: whether each pass has a new random order.
            seed: first seed of the generator that draws the order.
            augment: whether to augment, as ``dataset.augmentation`` says.
            drop_last: leave out a last batch that is not full.
            num_workers: processes that fetch; 0 fetches in this one.

        Returns:
            The loader.

        Raises:
            InvalidOptionError: for an unknown part, or an option out of range.
        """
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in parts:
            raise InvalidOptionError(f"there is no part {split!r}; parts are {', '.join(parts)}")
        return loader(
            parts[split],
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            augment=self.dataset.augmentation if augment else "none",
            drop_last=drop_last,
            num_workers=num_workers,
        )


def split(dataset: Dataset, validation: float = 0.1, seed: int = 0) -> Splits:
    """Hold a random share of the training samples out for validation.

    The same ``seed`` gives the same split, whatever the state of any global generator.

    Args:
        dataset: the data set.
        validation: share of the training samples to hold out, in [0, 1).
        seed: seed of the choice.

    Returns:
        The parts. Within each, samples keep their order.

    Raises:
        InvalidOptionError: if ``validation`` is out of range, or leaves nothing to train on or,
            being above 0, nothing to validate on.
    """
    if not 0 <= validation < 1:
        raise InvalidOptionError(
            f"validation={validation}; it is the share of the training samples to hold out, in "
            "[0, 1)"
        )
    total = len(dataset.train)
    held_out = round(validation * total)
    if held_out == total or (validation > 0 and held_out == 0):
        raise InvalidOptionError(
            f"validation={validation} of {total} training samples holds out {held_out} of them; "
            "choose a share that leaves some for training and some for validation"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return Splits(
        dataset=dataset,
        train=_subset(dataset.train, order[held_out:]),
        validation=_subset(dataset.train, order[:held_out]),
        test=dataset.test,
    )


def _subset(samples: Samples, indices: torch.Tensor) -> Samples:
    return cast(Samples, Subset(cast(Any, samples), indices.sort().values.tolist()))
