"""A data set: samples to train and to test on, and what a model has to know about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, final

from torch import Tensor

from ..errors import InvalidInputError
from .augmentation import augmentation

__all__ = ["Dataset", "Samples"]


class Samples(Protocol):
    """Pairs ``(x, y)`` by index: what a map-style torch ``Dataset`` with a length is.

    ``x`` is float32 of shape ``in_shape``, images in [0, 1]; ``y`` is a class label or a vector of
    target values. A method ``__getitems__`` that returns a torch ``TensorDataset`` of many samples
    at once makes :func:`stabnet.data.loader` fetch whole batches.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return one sample."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its metadata.

    A model for it is ``stabnet.build(…, in_shape=data.in_shape, num_outputs=data.num_outputs,
    mean=data.mean, std=data.std)``.

    Attributes:
        name: what it is called.
        train: the samples to train on; :func:`stabnet.data.split` takes the validation from them.
        test: the samples to test on.
        in_shape: shape of one input, ``(c, h, w)`` for images.
        num_outputs: number of classes, or of target values.
        mean: mean of each channel (of axis 0 of ``in_shape``) over the training samples.
        std: standard deviation of each channel, above 0.
        task: whether targets are class labels or values.
        classes: the classes' names in the order of their labels, where they have names.
        augmentation: name of the augmentation that the papers train with on this data, in
            :data:`stabnet.data.AUGMENTATIONS`.

    Raises:
        InvalidInputError: if the metadata contradict each other, or there are no samples.
    """

    name: str
    train: Samples = field(repr=False)
    test: Samples = field(repr=False)
    in_shape: tuple[int, ...]
    num_outputs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] | None = None
    augmentation: str = "none"

    def __post_init__(self) -> None:
        where = f"data set {self.name!r}"
        for part, samples in (("train", self.train), ("test", self.test)):
            if len(samples) == 0:
                raise InvalidInputError(f"{where} has no {part} samples; it needs at least one")
        if self.task not in ("classification", "regression"):
            raise InvalidInputError(
                f"{where} has the task {self.task!r}; it is 'classification' or 'regression'"
            )
        if len(self.in_shape) == 0 or self.num_outputs < 1:
            raise InvalidInputError(
                f"{where} has in_shape={self.in_shape} and num_outputs={self.num_outputs}; it "
                "needs at least one axis and one output"
            )
        channels = self.in_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise InvalidInputError(
                f"{where} has {len(self.mean)} means and {len(self.std)} standard deviations for "
                f"inputs of shape {self.in_shape}; give one of each per channel ({channels})"
            )
        if not all(s > 0 for s in self.std):
            raise InvalidInputError(
                f"{where} has the standard deviations {self.std}; they must be above 0, since "
                "models divide by them"
            )
        if self.classes is not None and len(self.classes) != self.num_outputs:
            raise InvalidInputError(
                f"{where} names {len(self.classes)} classes but has {self.num_outputs} outputs"
            )
        augmentation(self.augmentation)
        if self.augmentation != "none" and len(self.in_shape) != 3:
            raise InvalidInputError(
                f"{where} has the augmentation {self.augmentation!r}, which is for images "
                f"(c, h, w), but inputs of shape {self.in_shape}; use 'none'"
            )
