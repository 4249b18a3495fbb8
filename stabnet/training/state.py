"""What a resume needs: captured, written to one file that is valid as a whole, and put back."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import replacing

__all__ = [
    "copied",
    "get_random_state",
    "load_module_state",
    "module_state",
    "random_state_restored",
    "read_state",
    "seed_everything",
    "set_random_state",
    "write_state",
]

_FORMAT = 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators, as plain data and tensors.

    Args:
        device: the one CUDA device, if it is one, whose generator is meant; asking all of them
            would occupy memory on all.
    """
    numpy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what :func:`get_random_state` returned."""
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    random.setstate(state["python"])
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def random_state_restored(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators as they were before the block."""
    state = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict, with its tensors on the CPU."""
    return {
        k: v.detach().cpu().clone() if isinstance(v, Tensor) else copy.deepcopy(v)
        for k, v in state.items()
    }


def module_state(module: nn.Module) -> dict[str, Any]:
    """Return all tensors of a module: its state dict, and the buffers that are not part of it.

    A state dict leaves non-persistent buffers out, which a bit-identical resume needs too.
    """
    saved = module.state_dict()
    others = {n: b for n, b in module.named_buffers() if n not in saved}
    return {"saved": copied(saved), "others": copied(others)}


def load_module_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Put back what :func:`module_state` returned.

    Raises:
        CheckpointError: if it is another module's.
    """
    try:
        module.load_state_dict(state["saved"], strict=True)
        buffers = dict(module.named_buffers())
        for name, tensor in state["others"].items():
            buffers[name].copy_(tensor)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint holds the weights of another model: {error}"
        ) from error


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: one file, so that it is valid as a whole or not there at all.

    Raises:
        CheckpointError: if it cannot be written; what was there before is left.
    """
    try:
        with replacing(path) as temporary:
            torch.save({"format": _FORMAT, **state}, temporary)
    except RuntimeError as error:  # torch's own, where the disk is full
        raise CheckpointError(f"cannot write {path}: {error}") from error


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain data only, no code is run.

    Raises:
        CheckpointError: if it is missing, damaged, or of another program.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); it is damaged or was written by "
            "another program. Start afresh in an empty run_dir"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is not a training checkpoint of this version of stabnet; "
            "start afresh in an empty run_dir"
        )
    return state
