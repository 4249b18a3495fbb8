"""Leaving the caller's model and random numbers as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..checks import modes_restored

__all__ = ["eval_mode", "seeded"]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode within the block, and give every module its own mode back.

    Args:
        model: any module.
    """
    with modes_restored(model):
        model.eval()
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from seeded random numbers within the block, and give the caller's own back.

    Governs torch's global generators of the CPU and of ``device`` where that is a CUDA or XPU
    device, and no other generator. (``torch.manual_seed`` would seed every device.)

    Args:
        seed: the seed.
        device: where the model computes.
    """
    generators = [torch.default_generator]
    if device.type in ("cuda", "xpu"):
        backend = torch.get_device_module(device)
        backend.init()
        index = backend.current_device() if device.index is None else device.index
        generators.append(backend.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
