"""Checkpoints: a model's weights and its description, in one safetensors file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import CheckpointError, StabnetError, UndescribedPartError
from .files import replacing
from .plugin import CONFIG_ATTRIBUTE, build, undescribed

__all__ = ["load", "load_weights", "save"]

_KEY = "stabnet"
_NO_MODULES = ("attack", "dataset", "optimizer")
_rebuilding: ContextVar[bool] = ContextVar("_rebuilding", default=False)


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's weights and description to one file.

    The file appears whole or not at all, holds no pickle, and keeps shared parameters shared.

    Args:
        model: a model (or any part) that :func:`stabnet.build` built, with all its parts.
        path: where to write it, usually ``….safetensors``; missing folders are made.

    Returns:
        The path.

    Raises:
        UndescribedPartError: if the model or one of its parts has no registered name.
        CheckpointError: if the file cannot be written.
    """
    config = getattr(model, CONFIG_ATTRIBUTE, None)
    if config is None:
        raise UndescribedPartError(
            f"this {type(model).__name__} was not built by name, so it cannot be rebuilt; "
            "register a function that returns it and use stabnet.build"
        )
    part = undescribed(config)
    if part is not None:
        raise UndescribedPartError(
            f"the part {part} of {config['name']!r} has no registered name, so the model cannot "
            "be rebuilt from a file; register it (stabnet.register) and build it by name"
        )
    tensors, shared = _distinct(model.state_dict())
    description = {"config": config, "training": model.training, "shared": shared}
    target = Path(path)
    try:
        with replacing(target) as temporary:
            save_file(tensors, temporary, metadata={_KEY: json.dumps(description)})
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    return target


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state dict into distinct tensors, and names that share one of them.

    safetensors refuses tensors that share memory, whether two names of one parameter (a PReLU used
    twice, tied weights) or a part of a larger storage (geotorch's parametrizations).
    """
    seen: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        kept = seen.setdefault(key, name) if tensor.numel() else name
        if kept == name:
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            shared[name] = kept
    return tensors, shared


def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Any:
    """Rebuild a model from a file that :func:`save` wrote.

    Args:
        path: the file.
        device: where the model goes.

    Returns:
        The model, in the mode (training or evaluation) and the precision it was saved in.

    Raises:
        CheckpointError: if the file is missing, damaged, of another program, or does not fit the
            model that its description builds here; the message says which plugin is missing.
    """
    source = Path(path)
    metadata, dtypes = _read_header(source)
    config, training, shared = _description(source, metadata)
    try:
        with torch.random.fork_rng(devices=[]), _skipping_weight_files():
            model = build(config)
    except (StabnetError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source} describes a {config.get('name')!r} model of "
            f"{config.get('providers')}, which cannot be built here: {error}"
        ) from error
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
    tensors = load_file(source)
    tensors.update({name: tensors[kept] for name, kept in shared.items() if kept in tensors})
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {source} do not fit the {config['name']!r} model that its "
            f"description builds with {config.get('providers')}: {error}"
        ) from error
    return model.to(device).train(training)


def _description(
    source: Path, metadata: Mapping[str, str]
) -> tuple[dict[str, Any], bool, dict[str, str]]:
    """Return a checkpoint's config, mode and shared names; refuse what no :func:`save` wrote."""
    try:
        description = json.loads(metadata[_KEY])
        config, training, shared = (description[k] for k in ("config", "training", "shared"))
        name, kind = config["name"], config["kind"]
        whole = all(isinstance(s, str) for s in (name, kind, *shared, *shared.values()))
        whole = whole and isinstance(training, bool)
    except (KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"{source} is a safetensors file, but not one that stabnet.save wrote: it describes "
            "no model. Use stabnet.load_weights to read bare weights into a part"
        )
    if kind in _NO_MODULES:  # building a data set could even fetch it
        raise CheckpointError(f"{source} describes no model or part of one, but this: {kind}")
    return config, training, shared


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read bare weights from a safetensors file into a module.

    While :func:`load` rebuilds a model this does nothing: the checkpoint holds the weights.

    Args:
        module: where the weights go; every name and shape must fit.
        path: a safetensors file of the module's state dict.

    Raises:
        CheckpointError: if the file is missing, damaged, or does not fit the module.
    """
    if _rebuilding.get():
        return
    source = Path(path)
    _read_header(source)
    try:
        module.load_state_dict(load_file(source), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {source} do not fit {type(module).__name__}: {error}"
        ) from error


def _read_header(source: Path) -> tuple[dict[str, str], dict[str, torch.dtype]]:
    """Return a safetensors file's metadata and the dtype of each of its floating tensors."""
    if not source.is_file():
        raise CheckpointError(f"there is no checkpoint at {source.absolute()}")
    try:
        with safe_open(source, framework="pt") as file:
            tensors = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{source} is not a whole safetensors file ({error}); it is damaged, cut short, "
            "or was written by another program"
        ) from error
    known = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    known["BF16"] = torch.bfloat16
    return metadata, {n: known[d] for n, d in tensors.items() if d in known}


@contextlib.contextmanager
def _skipping_weight_files() -> Iterator[None]:
    token = _rebuilding.set(True)
    try:
        yield
    finally:
        _rebuilding.reset(token)
