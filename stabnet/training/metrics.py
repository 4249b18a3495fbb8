"""Sample-weighted means, accumulated on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..errors import StabnetError

__all__ = ["Means", "NonFiniteLossError"]


class NonFiniteLossError(StabnetError, FloatingPointError):
    """A loss that became NaN or infinite."""


@final
class Means:
    """Sample-weighted means of the values of many batches, without a host synchronization each.

    The mean of a name is taken over the samples of those batches that had it. Values that are
    means over their batch thus give the exact mean over all samples.

    Args:
        device: where the values are.
    """

    def __init__(self, device: torch.device) -> None:
        # float64 does not exist on Apple's devices.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._batches = 0
        self._first_bad = torch.full((), math.inf, dtype=self._dtype, device=device)

    def update(self, loss: Tensor, logs: Mapping[str, Tensor], samples: int) -> None:
        """Add one batch.

        Args:
            loss: its mean loss, a scalar.
            logs: its other mean values, scalars.
            samples: how many samples it has.
        """
        for name, value in {**logs, "loss": loss}.items():
            weighted = torch.as_tensor(value, device=self._device).detach().to(self._dtype)
            weighted = weighted * samples
            known = self._sums.get(name)
            self._sums[name] = weighted if known is None else known + weighted
            self._counts[name] = self._counts.get(name, 0) + samples
        bad = torch.where(torch.isfinite(loss.detach()), math.inf, float(self._batches))
        self._first_bad = torch.minimum(self._first_bad, bad.to(self._dtype))
        self._batches += 1

    def read(self, where: str) -> dict[str, float]:
        """Return the means so far; one host synchronization.

        Args:
            where: the words that follow the batch in the message of an error.

        Raises:
            NonFiniteLossError: if the loss of a batch was not finite; names the first such batch.
        """
        names = list(self._sums)
        *sums, bad = torch.stack([*self._sums.values(), self._first_bad]).tolist()
        if bad < math.inf:
            raise NonFiniteLossError(
                f"the loss became NaN or infinite at step {int(bad) + 1} {where}. Try a smaller "
                "learning rate, gradient_clip=1.0 or mixed_precision='no', and check the data"
            )
        return {n: s / self._counts[n] for n, s in zip(names, sums, strict=True)}

    def across(self, accelerator: Accelerator) -> Means:
        """Return the means over the batches of all processes; a process may have had none."""
        if accelerator.num_processes == 1:
            return self
        names = sorted(set(gather_object(list(self._sums))))
        if not names:
            return self
        zero = torch.zeros((), dtype=self._dtype, device=self._device)
        sums = torch.stack([self._sums.get(n, zero) for n in names])
        counts = torch.tensor(
            [float(self._counts.get(n, 0)) for n in names], dtype=self._dtype, device=self._device
        )
        total = accelerator.reduce(torch.stack([sums, counts]), reduction="sum")
        merged = Means(self._device)
        merged._sums = dict(zip(names, total[0], strict=True))
        merged._counts = {n: int(c) for n, c in zip(names, total[1].tolist(), strict=True)}
        merged._batches = self._batches
        merged._first_bad = accelerator.gather(self._first_bad[None]).min()
        return merged
