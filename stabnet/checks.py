"""Checks and switches that models and services share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .errors import InvalidInputError

__all__ = [
    "check_finite",
    "dropout_seed",
    "frozen_batch_statistics",
    "in_modes",
    "is_differentiated",
    "is_traced",
    "modes_restored",
    "seeded",
]


def is_traced() -> bool:
    """Return whether tensors have no values to look at: under compile, export or ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_differentiated(x: Tensor) -> bool:
    """Return whether a gradient is wanted of a tensor, also inside of ``torch.vmap``.

    A tensor that ``vmap`` maps over says that it requires no gradient even where it does.
    """
    while torch._C._are_functorch_transforms_active() and torch._C._functorch.is_batchedtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def check_finite(x: Tensor, what: str) -> None:
    """Raise :class:`InvalidInputError` if a tensor holds a NaN or an infinity.

    Costs one host synchronization; does nothing where tensors are traced.
    """
    if is_traced() or bool(torch.isfinite(x).all()):
        return
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    raise InvalidInputError(
        f"{what} holds NaN or infinite values in {len(bad)} of {x.shape[0]} samples "
        f"(first: {bad[:5]}); expected finite values. Clean the data first"
    )


def frozen_batch_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """Leave the running statistics of batch normalization alone within the block.

    Layers in training mode still normalize by the batch's statistics; they only don't record them.
    """
    switched = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    # In eval mode nothing is left to switch, and a null context compiles where ours would not.
    return _not_tracking(switched) if switched else nullcontext()


@contextmanager
def _not_tracking(switched: list[_BatchNorm]) -> Iterator[None]:
    for m in switched:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in switched:
            m.track_running_stats = True


def dropout_seed(module: nn.Module) -> int | None:
    """Draw the seed of the dropout masks of one forward pass; ``None`` where nothing drops out."""
    if not any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in module.modules()):
        return None
    return int(torch.randint(2**62, ()))


def seeded(seed: int | None, device: torch.device) -> AbstractContextManager[None]:
    """Draw from seeded random numbers within the block, and give the caller's own back.

    Governs torch's global generators of the CPU and of ``device`` where that is a CUDA or XPU
    device, and no other generator. (``torch.manual_seed`` would seed every device.)

    Args:
        seed: the seed; ``None`` to leave random numbers alone.
        device: where the numbers are drawn.
    """
    return nullcontext() if seed is None else _drawing_from(seed, device)


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
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


def in_modes(module: nn.Module, modes: list[bool]) -> AbstractContextManager[None]:
    """Put every submodule into the given mode (training or evaluation) within the block."""
    # A null context compiles where ours would not.
    if all(m.training == training for m, training in zip(module.modules(), modes, strict=True)):
        return nullcontext()
    return _switched(module, modes)


@contextmanager
def _switched(module: nn.Module, modes: list[bool]) -> Iterator[None]:
    with modes_restored(module):
        for m, training in zip(module.modules(), modes, strict=True):
            m.training = training
        yield


@contextmanager
def modes_restored(*modules: nn.Module) -> Iterator[None]:
    """Put every submodule back into its own mode (training or evaluation) after the block.

    ``module.train()`` would not do: it wakes submodules that were frozen in eval mode.
    """
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
