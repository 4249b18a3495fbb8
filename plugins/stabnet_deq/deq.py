"""The plain deep equilibrium classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import stabnet
from stabnet import Equilibrium, StabilityModel

__all__ = ["deq"]

Part = str | Mapping[str, Any] | nn.Module


def deq(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    backbone: Part = "convnet",
    cell: Part = "deq",
    solver: Part = "anderson",
    backward_solver: Part | None = None,
    head: Part = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build a deep equilibrium classifier: backbone, equilibrium of a cell, head.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        backbone: computes the features that drive the cell; its output shape is the state's.
        cell: the map whose fixed point is the state.
        solver: finds the fixed point.
        backward_solver: solves the adjoint equation; ``solver`` if ``None``.
        head: maps the state to logits.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    References:
        Bai, Kolter, Koltun: "Deep Equilibrium Models", 2019; the default parts are [LyaDEQ] (11).
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
