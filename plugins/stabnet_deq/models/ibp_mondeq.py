"""The IBP-MonDEQ: an equilibrium classifier that can be verified by interval bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

import stabnet
from stabnet import Equilibrium, StabilityModel

__all__ = ["ibp_mondeq"]

Part = str | Mapping[str, Any] | nn.Module

_BACKBONE: Mapping[str, Any] = MappingProxyType({"name": "linear", "width": 200})


def ibp_mondeq(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    backbone: Part = _BACKBONE,
    cell: Part = "ibp_monotone",
    solver: Part = "picard",
    backward_solver: Part | None = None,
    head: Part = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build an equilibrium classifier with interval bounds: backbone, ``ibp_monotone`` cell, head.

    Train it with the objective ``ibp``, whose radius is that at which it is to be verified.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        backbone: computes the features; bounds have to be known for it, and those of few plain
            layers are the tightest. One linear layer of 200 features by default.
        cell: a cell with ``equilibrium_interval``.
        solver: finds the equilibrium. Plain iteration converges for this cell, and fast.
        backward_solver: solves the adjoint equation; ``solver`` if ``None``.
        head: maps the state to logits; linear, for margins to be known.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    References:
        Wei, Kolter: "Certified robustness for deep equilibrium models via interval bound
        propagation", 2022.
    """
    features = stabnet.build(backbone, kind="backbone", in_shape=tuple(in_shape))
    shape = features.out_shape
    equilibrium = Equilibrium(
        stabnet.build(cell, kind="cell", state_shape=shape, feature_shape=shape),
        stabnet.build(solver, kind="solver"),
        None if backward_solver is None else stabnet.build(backward_solver, kind="solver"),
    )
    size = math.prod(shape)
    return StabilityModel(
        in_shape,
        num_outputs,
        features,
        equilibrium,
        stabnet.build(head, kind="head", in_features=size, num_outputs=num_outputs),
        mean,
        std,
    )
