"""Checks of a registration: what is said of a name, its factory, and what the factory returns."""

from __future__ import annotations

import json

import torch
from torch import nn

from ... import interfaces
from ...data import Dataset
from ...errors import MissingDataError, MissingExtraError
from ...model import StabilityModel
from ...plugin import CONFIG_ATTRIBUTE, KINDS, Entry, build, info, undescribed
from .._numbers import tensors_of
from .._outcome import SkipCheck, require
from .._specimen import build_part

__all__ = ["check_build", "check_config", "check_factory", "check_registration"]

_TYPES: dict[str, type] = {
    "model": StabilityModel,
    "backbone": interfaces.Backbone,
    "vector_field": interfaces.VectorField,
    "cell": interfaces.Cell,
    "potential": interfaces.Potential,
    "block": interfaces.Block,
    "head": nn.Module,
    "integrator": interfaces.Integrator,
    "solver": interfaces.Solver,
    "objective": interfaces.Objective,
    "attack": interfaces.Attack,
    "dataset": Dataset,
    "optimizer": torch.optim.Optimizer,
}
"""What a factory of each kind returns."""


def check_registration(entry: Entry) -> None:
    """The name has a summary of one line, and an example (data sets may do without)."""
    summary = entry.summary
    single = bool(summary.strip()) and "\n" not in summary
    require(single, entry, "a summary of one line", repr(summary))
    if entry.kind != "dataset":
        found = entry.example
        require(found is not None, entry, "an example: tiny options that build it", found)


def check_factory(entry: Entry) -> None:
    """The factory can be imported, names every option, and takes the kind contract.

    Raises:
        PluginError: if it does not.
    """
    try:
        info(entry.name, kind=entry.kind)
    except MissingExtraError as error:
        raise SkipCheck(str(error)) from error


def check_build(entry: Entry) -> None:
    """The example builds an object of the kind."""
    if entry.example is None and entry.kind != "dataset":
        raise SkipCheck("it has no example; see check_registration")
    try:
        part = build_part(entry)
    except (MissingDataError, MissingExtraError) as error:
        raise SkipCheck(str(error)) from error
    wanted = KINDS[entry.kind].returns
    require(isinstance(part, _TYPES[entry.kind]), entry, wanted, type(part).__qualname__)


def check_config(entry: Entry) -> None:
    """The description is plain JSON, and builds the same part again."""
    part = build_part(entry)
    config = part.config if isinstance(part, StabilityModel) else getattr(part, CONFIG_ATTRIBUTE)
    unknown = undescribed(config)
    require(
        unknown is None,
        entry,
        "options that are numbers, text, lists, or parts with registered names",
        f"the option {unknown}",
    )
    text = json.dumps(config, allow_nan=False)
    require(
        json.loads(text) == config,
        entry,
        f"a description that JSON keeps as it is, {config}",
        json.loads(text),
    )
    rebuilt = build(json.loads(text))
    again = getattr(rebuilt, CONFIG_ATTRIBUTE)
    require(type(rebuilt) is type(part), entry, f"{type(part)} from its description", type(rebuilt))
    require(again == config, entry, f"the same description when rebuilt, {config}", again)
    if isinstance(part, nn.Module):
        require(
            _shapes(rebuilt) == _shapes(part),
            entry,
            f"the same state dict when rebuilt from the description, {_shapes(part)}",
            _shapes(rebuilt),
        )


def _shapes(part: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors_of(part).items()}
