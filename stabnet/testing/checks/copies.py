"""Checks of copies: by state dict, by file, and by ``copy.deepcopy``."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

from ...checkpoint import load, save
from ...plugin import CONFIG_ATTRIBUTE, Entry, undescribed
from .._numbers import difference, identical
from .._outcome import SkipCheck, require
from .._specimen import Specimen, build_part, specimen

__all__ = ["check_deepcopy", "check_save_load", "check_state_dict"]


def check_state_dict(entry: Entry) -> None:
    """A state dict carries everything: loaded into a new part, it gives identical outputs."""
    s = _used(entry)
    other = build_part(entry, seed=5).double().eval()
    other.load_state_dict(s.part.state_dict())
    _require_equal(s, other, "a new part that loads the state dict")


def check_save_load(entry: Entry) -> None:
    """A part that is saved and loaded gives identical outputs, in the same precision."""
    s = _used(entry)
    config = getattr(s.part, CONFIG_ATTRIBUTE)
    if undescribed(config):
        raise SkipCheck("it cannot be described; see check_config")
    with tempfile.TemporaryDirectory() as folder:
        path = save(s.part, Path(folder) / "part.safetensors")
        torch.default_generator.manual_seed(5)
        loaded = load(path).eval()
    found = getattr(loaded, CONFIG_ATTRIBUTE)
    require(found == config, entry, f"the same description after loading, {config}", found)
    _require_equal(s, loaded, "the part that was saved and loaded")


def check_deepcopy(entry: Entry) -> None:
    """A deep copy gives identical outputs, and shares nothing with the original."""
    s = _used(entry)
    copied = copy.deepcopy(s.part)
    _require_equal(s, copied, "a deep copy")
    shared = _storages(s.part) & _storages(copied)
    require(
        not shared, entry, "a deep copy with memory of its own", f"{len(shared)} shared tensors"
    )
    before = _outputs(s, copied)
    with torch.no_grad():
        for parameter in s.part.parameters():
            parameter.add_(0.1)
    same = identical(_outputs(s, copied), before)
    require(
        same, entry, "a deep copy to keep its outputs", "that it follows the original's weights"
    )


def _used(entry: Entry) -> Specimen:
    """Return a specimen in eval mode after one pass in training mode, which fills its buffers."""
    s = specimen(entry, dtype=torch.float64)
    s.part.train()
    s()
    s.part.eval()
    return s


def _outputs(s: Specimen, part: nn.Module) -> tuple[torch.Tensor, ...]:
    torch.default_generator.manual_seed(0)
    return s(part=part)


def _require_equal(s: Specimen, other: nn.Module, what: str) -> None:
    expected, found = _outputs(s, s.part), _outputs(s, other)
    require(
        identical(found, expected),
        s.entry,
        f"identical outputs of {what}",
        f"a relative difference of {difference(found, expected):.3g}",
    )


def _storages(part: nn.Module) -> set[int]:
    tensors = (*part.parameters(), *part.buffers())
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
