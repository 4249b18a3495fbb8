"""A data set from tensors of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Num, Shaped
from torch import Tensor

from ..errors import InvalidInputError
from .dataset import Dataset
from .samples import TensorSamples, channel_statistics

__all__ = ["from_tensors"]

_IMAGE_AXES = 3


def from_tensors(
    x_train: Num[Tensor, "n_train *in_shape"],
    y_train: Num[Tensor, "n_train *out"],
    x_test: Num[Tensor, "n_test *in_shape"],
    y_test: Num[Tensor, "n_test *out"],
    *,
    name: str = "tensors",
    num_outputs: int | None = None,
    classes: Sequence[str] | None = None,
    augmentation: str = "none",
) -> Dataset:
    """Make a data set from tensors.

    Integer targets are class labels, floating-point targets are values to regress on; those with
    three axes are trajectories, values at each of several times. Inputs with three axes
    ``(c, h, w)`` are images: integers from 0 to 255, or floating point in [0, 1]. Inputs of any
    other shape are floating point of any range.

    >>> x, y = torch.rand(8, 2), torch.rand(8)
    >>> data = from_tensors(x[:6], y[:6], x[6:], y[6:])
    >>> data.task, data.in_shape, data.num_outputs
    ('regression', (2,), 1)

    Args:
        x_train: inputs to train on; at least one axis besides the batch.
        y_train: class labels ``(n,)`` from 0; values ``(n,)`` or ``(n, num_outputs)``; or
            trajectories ``(n, times, num_outputs)``.
        x_test: inputs to test on.
        y_test: their targets.
        name: what to call it.
        num_outputs: number of classes, where the highest ones do not occur; by default one more
            than the highest label, or the number of ``classes``. For values it is their number.
        classes: names of the classes.
        augmentation: name of the augmentation to train with.

    Returns:
        The data set, with mean and standard deviation computed from ``x_train``.

    Raises:
        InvalidInputError: for anything but finite tensors of matching lengths and shapes, for
            images out of range, and for labels that are negative or too high.
    """
    x_train, x_test = _inputs("x_train", x_train), _inputs("x_test", x_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InvalidInputError(
            f"x_train has inputs of shape {tuple(x_train.shape[1:])} and x_test of shape "
            f"{tuple(x_test.shape[1:])}; they must be the same"
        )
    y_train, y_test = _targets("y_train", y_train, x_train), _targets("y_test", y_test, x_test)
    if y_train.dtype != y_test.dtype or y_train.shape[1:] != y_test.shape[1:]:
        raise InvalidInputError(
            f"y_train is {_described(y_train)} and y_test {_described(y_test)}; give both as "
            "integer labels, or both as as many floating-point values"
        )
    outputs, task = _outputs(y_train, y_test, num_outputs, classes)
    mean, std = channel_statistics(x_train)
    return Dataset(
        name=name,
        train=TensorSamples(x_train, y_train),
        test=TensorSamples(x_test, y_test),
        in_shape=tuple(x_train.shape[1:]),
        num_outputs=outputs,
        mean=mean,
        std=std,
        task=task,
        classes=None if classes is None else tuple(classes),
        augmentation=augmentation,
    )


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def _checked(name: str, x: object) -> Shaped[Tensor, "n ..."]:
    """Return integers, or finite float32, on the CPU and without gradients."""
    if not isinstance(x, Tensor):
        raise InvalidInputError(
            f"{name} is a {type(x).__name__}; give a torch tensor (torch.as_tensor({name}))"
        )
    if x.ndim == 0 or x.numel() == 0:
        raise InvalidInputError(f"{name} is {_described(x)}; it needs at least one sample")
    if x.dtype == torch.bool or x.is_complex():
        raise InvalidInputError(f"{name} is {_described(x)}; give integers or floating point")
    x = x.detach().cpu()
    if x.is_floating_point():
        x = x.to(torch.float32)
    bad = (~x.isfinite()).reshape(len(x), -1).any(1).nonzero()
    if len(bad) > 0:
        raise InvalidInputError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(x)} samples, the first at "
            f"index {int(bad[0])}; remove or mend them"
        )
    return x


def _inputs(name: str, x: object) -> Shaped[Tensor, "n *in_shape"]:
    """Return checked inputs, images of integers as bytes and all else as float32."""
    x = _checked(name, x)
    if x.ndim == 1:
        raise InvalidInputError(
            f"{name} has shape {tuple(x.shape)}; inputs need an axis besides the batch: {name}[:, "
            "None] for one number per sample"
        )
    image = x.ndim == _IMAGE_AXES + 1
    low, high = float(x.min()), float(x.max())
    if x.is_floating_point():
        if image and (low < 0 or high > 1):
            raise InvalidInputError(
                f"{name} holds images (c, h, w) from {low:g} to {high:g}; floating-point images "
                "must be in [0, 1], not normalized: models normalize, and attacks act on pixels"
            )
        return x
    if not image:
        raise InvalidInputError(
            f"{name} is {_described(x)}; only images (n, c, h, w) may be integers, other inputs "
            f"must be floating point ({name}.float())"
        )
    if low < 0 or high > 255:
        raise InvalidInputError(
            f"{name} holds integer images from {low:g} to {high:g}; pixels must be in 0…255"
        )
    return x.to(torch.uint8)


def _targets(name: str, y: object, x: Tensor) -> Shaped[Tensor, "n *out"]:
    """Return checked targets: int64 labels, or float32 values ``(n, …, num_outputs)``."""
    y = _checked(name, y)
    if len(y) != len(x):
        raise InvalidInputError(
            f"{name} has {len(y)} targets for {len(x)} inputs; give one per input"
        )
    if y.is_floating_point():
        if y.ndim > 3:
            raise InvalidInputError(
                f"{name} has shape {tuple(y.shape)}; values to regress on are (n,) or (n, k), and "
                "trajectories (n, times, k)"
            )
        return y[:, None] if y.ndim == 1 else y
    if y.ndim != 1:
        raise InvalidInputError(
            f"{name} has shape {tuple(y.shape)}; class labels are (n,), one integer per sample, "
            "and values to regress on are floating point"
        )
    if y.min() < 0:
        raise InvalidInputError(f"{name} has the label {int(y.min())}; labels start at 0")
    return y.to(torch.int64)


def _outputs(
    y_train: Tensor, y_test: Tensor, num_outputs: int | None, classes: Sequence[str] | None
) -> tuple[int, Literal["classification", "regression"]]:
    """Return the number of outputs, and the task."""
    if y_train.is_floating_point():
        values = y_train.shape[-1]
        if num_outputs not in (None, values):
            when = " and time" if y_train.ndim > 2 else ""
            raise InvalidInputError(
                f"num_outputs={num_outputs}, but there are {values} values per sample{when}"
            )
        if classes is not None:
            raise InvalidInputError(
                "classes were named, but the targets are floating point, that is, values to "
                "regress on; give class labels as integers"
            )
        return values, "regression"
    highest = int(max(y_train.max(), y_test.max()))
    default = highest + 1 if classes is None else len(classes)
    outputs = default if num_outputs is None else num_outputs
    if highest >= outputs:
        raise InvalidInputError(
            f"there is a label {highest}, but only {outputs} classes; labels go from 0 to "
            f"{outputs - 1}"
        )
    return outputs, "classification"
