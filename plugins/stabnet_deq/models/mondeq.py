"""The monotone deep equilibrium classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from stabnet import StabilityModel

from .deq import deq

__all__ = ["mondeq"]

Part = str | Mapping[str, Any] | nn.Module


def mondeq(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    backbone: Part = "linear",
    cell: Part = "monotone",
    solver: Part = "peaceman_rachford",
    backward_solver: Part | None = None,
    gradient: Literal["implicit", "phantom", "unrolled"] = "implicit",
    phantom_steps: int = 1,
    phantom_damping: float = 1.0,
    head: Part = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build a monotone equilibrium classifier, whose equilibria exist and are unique.

    With the backbone ``linear`` this is the fully connected model of the paper, whose features are
    ``Ux + b``. With one whose features are images (``stem``), cell and state are convolutional.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        backbone: computes the features that drive the cell; its output shape is the state's.
        cell: the map whose fixed point is the state.
        solver: finds the fixed point.
        backward_solver: solves the adjoint equation; ``solver`` if ``None``. Second derivatives
            need one that takes any map, such as ``anderson``.
        gradient: how the equilibrium is differentiated; see :class:`stabnet.Equilibrium`.
        phantom_steps: steps of the phantom gradient.
        phantom_damping: damping of those steps.
        head: maps the state to logits.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    References:
        Winston, Kolter: "Monotone operator equilibrium networks", 2020.
    """
    return deq(
        in_shape=in_shape,
        num_outputs=num_outputs,
        backbone=backbone,
        cell=cell,
        solver=solver,
        backward_solver=backward_solver,
        gradient=gradient,
        phantom_steps=phantom_steps,
        phantom_damping=phantom_damping,
        head=head,
        mean=mean,
        std=std,
    )
