"""Where and in which precision training runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..errors import InvalidOptionError

__all__ = ["Precision", "make_accelerator", "usable_device"]

Precision = Literal["no", "bf16", "fp16"]
_DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"


def make_accelerator(device: str | torch.device | None, mixed_precision: Precision) -> Accelerator:
    """Return an accelerator for a device and a precision.

    Accelerate keeps one state per process and refuses to change it, so that a second training on
    another device or in another precision would fail; the state is therefore started afresh.

    Args:
        device: where to train; ``None`` for the launcher's choice, or the best device there is.
        mixed_precision: the precision of autocast.

    Raises:
        InvalidOptionError: for a device that does not exist or that the launcher did not give this
            process, or a precision that the device does not have.
    """
    wanted = None if device is None else usable_device(device)
    # The process group of a launcher outlives this: a new state joins it again.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = wanted is not None and wanted.type == "cpu"
    try:
        with _chosen(wanted):
            accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision)
    except ValueError as error:
        raise InvalidOptionError(
            f"device={device!r} with mixed_precision={mixed_precision!r} is not possible here: "
            f"{error}"
        ) from error
    given = accelerator.device
    if given.type == "cpu" and mixed_precision == "fp16":
        raise InvalidOptionError(
            "mixed_precision='fp16' needs loss scaling, which the CPU has none of; use 'bf16'"
        )
    if wanted is not None and (
        wanted.type != given.type or wanted.index not in (None, given.index)
    ):
        raise InvalidOptionError(
            f"device={device!r} was asked for, but the launcher gave this process {given}; "
            "leave device out when training is launched in several processes"
        )
    return accelerator


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device that tensors can be put on.

    Raises:
        InvalidOptionError: if there is no such device here.
    """
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidOptionError(
            f"device={device!r} cannot be used here: {str(error).splitlines()[0]}. "
            "Use 'cpu', or leave device out for the best device there is"
        ) from error
    return wanted


@contextmanager
def _chosen(device: torch.device | None) -> Iterator[None]:
    """Have accelerate pick a device, unless a launcher has given this process its own."""
    if device is None or "LOCAL_RANK" in os.environ:
        yield
        return
    before = os.environ.get(_DEVICE_VARIABLE)
    os.environ[_DEVICE_VARIABLE] = str(device)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DEVICE_VARIABLE]
        else:
            os.environ[_DEVICE_VARIABLE] = before
