"""Samples that lie in memory, fetched a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..errors import InvalidInputError

__all__ = ["TensorSamples", "channel_statistics"]

_CHUNK = 4096
"""Samples converted to float64 at a time: 100 MB of 32 × 32 color images."""


def _pixels(x: Tensor) -> Tensor:
    """Return bytes as float32 in [0, 1], and floating point as it is."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x


@final
class TensorSamples(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and targets in memory, as a torch data set.

    A batch is fetched by one indexing operation and converted as a whole. A plain ``DataLoader``
    can read it too, and a ``Subset`` of it stays as fast.

    Args:
        x: inputs; bytes stand for pixels and are divided by 255 when fetched, float32 is
            fetched as it is.
        y: class labels ``(n,)``, int64, or target values ``(n, num_outputs)``, float32.

    Raises:
        InvalidInputError: if the dtypes are others, or ``x`` and ``y`` differ in length.
    """

    def __init__(
        self,
        x: UInt8[Tensor, "n *in_shape"] | Float[Tensor, "n *in_shape"],
        y: Int[Tensor, " n"] | Float[Tensor, "n num_outputs"],
    ) -> None:
        if x.dtype not in (torch.uint8, torch.float32):
            raise InvalidInputError(f"inputs are uint8 or float32 tensors; got {x.dtype}")
        if y.dtype not in (torch.int64, torch.float32):
            raise InvalidInputError(
                f"targets are int64 labels or float32 values; got a tensor of {y.dtype}"
            )
        if len(x) != len(y):
            raise InvalidInputError(f"there are {len(x)} inputs but {len(y)} targets")
        self.x = x
        self.y = y

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one sample."""
        return _pixels(self.x[index]), self.y[index]

    def __getitems__(self, indices: Sequence[int]) -> TensorDataset:
        """Return many samples, with their tensors already stacked.

        torch's fetcher calls it with a batch's indices and hands the result to the collation: a
        ``TensorDataset`` iterates over samples like the list that the default collation expects,
        and spares :func:`stabnet.data.loader` the stacking.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return TensorDataset(_pixels(self.x[chosen]), self.y[chosen])


def channel_statistics(
    x: UInt8[Tensor, "n c *rest"] | Float[Tensor, "n c *rest"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and the standard deviation of each channel, over samples and places.

    In float64 and in two passes, so that a large mean does not swallow a small deviation. A
    constant channel gets the deviation 1: dividing by it leaves the channel alone.

    Args:
        x: at least one input; bytes stand for pixels and are divided by 255.

    Returns:
        Means and (population) standard deviations, one of each per channel.
    """

    def average(deviation_from: Tensor | float, power: int) -> Float[Tensor, " c"]:
        total = torch.zeros(x.shape[1], dtype=torch.float64)
        for start in range(0, len(x), _CHUNK):
            values = x[start : start + _CHUNK].to(torch.float64).transpose(0, 1).flatten(1)
            total += (values.T - deviation_from).pow(power).sum(0)
        return total / (x.numel() // x.shape[1])

    mean = average(0.0, 1)
    std = average(mean, 2).sqrt()
    scale = 255.0 if x.dtype == torch.uint8 else 1.0
    # Asked of the values themselves: rounding leaves a constant channel some deviation.
    other_axes = [axis for axis in range(x.ndim) if axis != 1]
    std = torch.where(x.amin(other_axes) == x.amax(other_axes), scale, std)
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())
