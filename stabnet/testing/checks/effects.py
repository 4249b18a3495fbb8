"""The check that a part leaves alone what is not its own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ...plugin import Entry
from .._numbers import identical, tensors_of
from .._outcome import require
from .._specimen import build_part, specimen

__all__ = ["check_side_effects"]


def check_side_effects(entry: Entry) -> None:
    """Building and calling leave global settings, modes and inputs alone; eval mode, all state."""
    before = _settings()
    s = specimen(entry)
    _require_same(entry, "building", before, _settings())
    for training in (False, True):
        s.part.train(training)
        inputs = [t.clone() for t in s.inputs]
        modes = {name: m.training for name, m in s.part.named_modules()}
        state = {name: t.clone() for name, t in tensors_of(s.part).items()}
        before = _settings()
        s()
        what = "a call in training mode" if training else "a call in eval mode"
        _require_same(entry, what, before, _settings())
        changed = [n for n, m in s.part.named_modules() if m.training != modes[n]]
        require(not changed, entry, f"{what} to leave every module's mode", f"changed {changed}")
        same = identical(s.inputs, inputs)
        require(same, entry, f"{what} to leave its inputs alone", "inputs changed in place")
        if not training and entry.kind != "objective":
            now = tensors_of(s.part)
            changed = [n for n, t in state.items() if not torch.equal(t, now[n])]
            require(
                not changed, entry, f"{what} to leave weights and buffers", f"changed {changed}"
            )
    _check_reseeding(entry)


def _check_reseeding(entry: Entry) -> None:
    draws = []
    for seed in (1, 2):
        build_part(entry, seed)
        draws.append(float(torch.rand(())))
    require(
        draws[0] != draws[1],
        entry,
        "building to leave the seed of torch's generator to its user",
        "equal random numbers after building with different seeds: the factory seeds it",
    )


def _settings() -> dict[str, Any]:
    _, words, *rest = np.random.get_state()
    return {
        "the default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "the switch for deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the number of threads": torch.get_num_threads(),
        "python's random state": random.getstate(),
        "numpy's random state": (np.asarray(words).tobytes(), *rest),
    }


def _require_same(entry: Entry, what: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = [name for name, value in before.items() if after[name] != value]
    require(not changed, entry, f"{what} to leave global state alone", f"changed {changed}")
