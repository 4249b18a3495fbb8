"""The plain deep equilibrium classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
    gradient: Literal["implicit", "phantom", "unrolled"] = "implicit",
    phantom_steps: int = 1,
    phantom_damping: float = 1.0,
    head: Part = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build a deep equilibrium classifier: backbone, equilibrium of a cell, head.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        backbone: computes the features that drive the cell; its output shape is the state's.
        cell: the map whose fixed point is the state. It may choose a state of several tensors, as
            ``multiscale`` does.
        solver: finds the fixed point.
        backward_solver: solves the adjoint equation; ``solver`` if ``None``.
        gradient: how the equilibrium is differentiated; see :class:`stabnet.Equilibrium`.
        phantom_steps: steps of the phantom gradient.
        phantom_damping: damping of those steps, in (0, 1].
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
    built = stabnet.build(cell, kind="cell", state_shape=shape, feature_shape=shape)
    equilibrium = Equilibrium(
        built,
        stabnet.build(solver, kind="solver"),
        None if backward_solver is None else stabnet.build(backward_solver, kind="solver"),
        gradient=gradient,
        phantom_steps=phantom_steps,
        phantom_damping=phantom_damping,
    )
    parts = built.state_shape if isinstance(built.state_shape[0], tuple) else (built.state_shape,)
    size = sum(math.prod(part) for part in parts)
    return StabilityModel(
        in_shape,
        num_outputs,
        features,
        equilibrium,
        stabnet.build(head, kind="head", in_features=size, num_outputs=num_outputs),
        mean,
        std,
    )
