"""LyaDEQ: a deep equilibrium model with a Lyapunov projection and an orthogonal head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import stabnet
from stabnet import CellField, Equilibrium, InvalidOptionError, StabilityModel, Stack

from ..block import Reading

__all__ = ["lyadeq"]

Part = str | Mapping[str, Any] | nn.Module


def lyadeq(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    backbone: Part = "convnet",
    cell: Part = "deq",
    solver: Part = "anderson",
    backward_solver: Part | None = None,
    projection: Reading = "output",
    potential: Part | None = None,
    alpha: float = 2.0,
    time: float = 1.0,
    step_size: float = 0.1,
    head: Part = "orthogonal",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build LyaDEQ: backbone, equilibrium of a cell, Lyapunov projection, orthogonal head.

    The paper leaves α, η, the width of the potential and that of its smooth ReLU open, and does
    not say to which field the projection is applied; the choices here are ours.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        backbone: computes the features that drive the cell; its output shape is the state's.
        cell: the map whose fixed point is the state.
        solver: finds the fixed point.
        backward_solver: solves the adjoint equation; ``solver`` if ``None``.
        projection: the reading: ``"output"``, ``"residual"`` or ``"flow"``; see
            :func:`stabnet_projection.projection`. Only ``"flow"`` has a theorem, about the state:
            each input's equilibrium stays its own and is exponentially stable in ``z``. None has
            one about perturbed inputs. Train ``"flow"`` with the objective
            ``jacobian_regularized`` (a weight of 3 or so): with cross entropy alone its cell soon
            contracts no more, and training solves stop converging.
        potential: the Lyapunov function; ``None`` for the reading's ``icnn`` with our constants
            (η = 0.1, one hidden layer of width 64, d = 1). Set them with ``{"name": "icnn",
            "eta": …, "hidden": …, "smoothing": …}``, and for ``"flow"`` also ``"tangent": True``.
        alpha: decay rate. At 2, and where the potential is purely quadratic, ``"output"`` reflects
            the state and keeps its length; far below, the logits become tiny and train slowly.
        time: how long ``"flow"`` carries the state.
        step_size: its largest step. The decay holds for every step size, and the cost is that of
            ``time / step_size`` steps.
        head: maps the projected state to logits; ``"linear"`` for the ablation without the
            orthogonal layer.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    References:
        [LyaDEQ] (8)–(12); settings of its section on experiments.
    """
    plain: StabilityModel = stabnet.build(
        "deq",
        in_shape=in_shape,
        num_outputs=num_outputs,
        backbone=backbone,
        cell=cell,
        solver=solver,
        backward_solver=backward_solver,
        head=head,
    )
    equilibrium = plain.dynamics
    assert isinstance(equilibrium, Equilibrium)
    if isinstance(equilibrium.cell.state_shape[0], tuple):
        raise InvalidOptionError(
            "the projection takes states of one tensor; the cell's state has several, "
            f"{equilibrium.cell.state_shape}. Choose another cell, such as 'conv'"
        )
    block = stabnet.build(
        "projection",
        kind="block",
        state_shape=equilibrium.cell.state_shape,
        reading=projection,
        potential=potential,
        vector_field=CellField(equilibrium.cell) if projection == "flow" else None,
        alpha=alpha,
        time=time,
        step_size=step_size,
    )
    stages = Stack([equilibrium, block])
    return StabilityModel(in_shape, num_outputs, plain.backbone, stages, plain.head, mean, std)
