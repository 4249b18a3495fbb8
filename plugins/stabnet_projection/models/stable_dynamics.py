"""Stable dynamics: a learned physical system whose stability is built in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import stabnet
from stabnet import Flow, InvalidOptionError, StabilityModel
from stabnet.interfaces import VectorField, is_descending
from stabnet.values import whole

__all__ = ["stable_dynamics"]

Part = str | Mapping[str, Any] | nn.Module


def stable_dynamics(
    *,
    in_shape: Sequence[int] = (2,),
    num_outputs: int | None = None,
    vector_field: Part | None = None,
    integrator: Part | None = None,
    times: Sequence[float] = (0.0, 1.0),
) -> StabilityModel:
    r"""Build a model of a physical system, :math:`\dot x = F(x)`, from states to later states.

    The input is the initial state, and the output the state at the last of the times:

    - ``model.velocity(0.0, x)`` is the field, and ``model.dynamics.vector_field`` the module;
    - ``model.solve(x, times=…).states`` is the trajectory, ``(T, batch, *in_shape)``;
    - train it with ``derivative_matching`` on pairs of states and their derivatives, or with
      ``trajectory_matching`` on observed trajectories.

    Inputs are not normalized, for that would change the state and where it is at rest. To roll out
    far, convert the trained model and its inputs to float64, ``model.double()``.

    A convex Lyapunov function and a global exponential rate are **assumptions about the system**:
    all of its states go to one equilibrium, and nowhere slower than at the rate. Where they do not
    hold, the field is wrong by what it takes to satisfy them. The potential matters too: near its
    center an ``icnn`` is :math:`\eta \|z\|^2` up to fourth order, which the true field of an
    oscillator may well not descend. So ``eta`` and ``smoothing`` are small here against states of
    order 1; ``quadratic`` is free in that respect, and has no shape but its matrix.

    Args:
        in_shape: shape of one state.
        num_outputs: the number of entries of a state, as the training data have it; it follows
            from ``in_shape`` and is never another.
        vector_field: the field, of the state alone. ``None`` for ``projected`` with an ``mlp`` of
            two hidden layers of 64; an ``icnn`` of two such layers with its tangent plane
            subtracted, ``eta`` 0.001 and ``smoothing`` 0.2; an equilibrium at the origin; and a
            rate of 0.01. Set them with ``{"name": "projected", "alpha": …, "potential": {"name":
            "icnn", "center": …}}``.
        integrator: carries the state; ``None`` for steps of 0.1 with ``rk4``, within
            ``stable_step`` for a field that descends a potential, which then never rises from
            step to step.
        times: where ``model.solve`` gives the trajectory unless it is told otherwise.

    Returns:
        The model.

    Raises:
        InvalidOptionError: for another ``num_outputs``, a field of other states, or one that is
            driven by features.
        InvalidInputError: unless the times are at least two, finite and strictly monotone.

    References:
        [MK] (10) and section 4.1; [SNN] (29).
    """
    shape = tuple(whole("in_shape", size, 1) for size in in_shape)
    if not shape:
        raise InvalidOptionError("in_shape=() is no shape of a state; give (n,) for n numbers")
    size = math.prod(shape)
    if num_outputs not in (None, size):
        raise InvalidOptionError(
            f"num_outputs={num_outputs}, but a state of shape {shape} has {size} entries, and the "
            "model returns states; leave num_outputs out"
        )
    stabnet.checked_times(times)
    field = stabnet.build(
        _projected() if vector_field is None else vector_field,
        kind="vector_field",
        state_shape=shape,
        feature_shape=None,
    )
    _check(field, shape)
    method: Part = "rk4"
    if integrator is not None:
        method = integrator
    elif is_descending(field):
        method = {"name": "stable_step", "integrator": "rk4"}
    scheme = stabnet.build(method, kind="integrator")
    backbone = stabnet.build("identity", kind="backbone", in_shape=shape)
    head = stabnet.build("identity", kind="head", in_features=size, num_outputs=size)
    return StabilityModel(shape, size, backbone, Flow(field, scheme, "features", times), head)


def _projected() -> dict[str, Any]:
    return {
        "name": "projected",
        "vector_field": {"name": "mlp", "hidden": [64, 64]},
        "potential": {
            "name": "icnn",
            "hidden": [64, 64],
            "tangent": True,
            "eta": 1e-3,
            "smoothing": 0.2,
        },
        "alpha": 0.01,
    }


def _check(field: VectorField, shape: tuple[int, ...]) -> None:
    if tuple(field.state_shape) != shape:
        raise InvalidOptionError(
            f"the vector field moves states of shape {tuple(field.state_shape)}, but in_shape is "
            f"{shape}, and the input is the initial state; they must be the same"
        )
    if tuple(field.feature_shape):
        raise InvalidOptionError(
            f"the vector field is driven by features of shape {tuple(field.feature_shape)}, of "
            "which this model has none: its input is the initial state. Build the field with "
            "feature_shape=None"
        )
