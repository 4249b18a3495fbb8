"""LyaNet, and the neural ODE of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

import stabnet
from stabnet import Flow, InvalidOptionError, StabilityModel

from ..objectives.schedules import paper_rate, released_rate

__all__ = ["lyanet", "neural_ode"]

Part = str | Mapping[str, Any] | nn.Module


def lyanet(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    mode: Literal["paper", "official"] = "paper",
    backbone: Part | None = None,
    vector_field: Part | None = None,
    integrator: Part | None = None,
    state_size: int | None = None,
    head: Part = "identity",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build LyaNet: a flow from the origin, steered by the features of the input.

    Train it with the objective ``lyapunov_monte_carlo`` in the same mode; nothing is guaranteed
    before.

    Args:
        in_shape: shape of one input, channels first.
        num_outputs: number of classes, or of values.
        mode: what ``None`` comes to. ``"paper"``: a ResNet-18 for small images, and the smooth
            simplex field at rate 5. ``"official"``, as released: a ResNet-18 with the stem for
            ImageNet, and the discontinuous direction field at rate log √(225 C), gain 100 and
            dropout 0.5. Both have features of 128 × 128. The released field is so fast that what
            comes out depends on the steps of the integrator, and with two or three classes
            overflows at the default ones; every training report compares it with finer steps.
        backbone: computes the features, once per input. For the default field they are a square
            number: ``{"name": "convnet", "width": 1024}``.
        vector_field: steers the state.
        integrator: carries it from time 0 to 1; ``None`` for ``rk4`` with steps of 0.1.
        state_size: entries of the state; ``num_outputs`` if ``None``.
        head: maps the state to outputs; by default it is the outputs.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    References:
        [LyaNet] (1)-(3) and section 5; released code.
    """
    if mode not in ("paper", "official"):
        raise InvalidOptionError(f"mode={mode!r} is unknown; it is 'paper' or 'official'")
    size = num_outputs if state_size is None else state_size
    stem = "cifar" if mode == "paper" else "imagenet"
    features = stabnet.build(
        {"name": "resnet18", "width": 128**2, "stem": stem} if backbone is None else backbone,
        kind="backbone",
        in_shape=tuple(in_shape),
    )
    method = {"name": "rk4", "step_size": 0.1} if integrator is None else integrator
    field = stabnet.build(
        _field(mode, size) if vector_field is None else vector_field,
        kind="vector_field",
        state_shape=(size,),
        feature_shape=features.out_shape,
    )
    return StabilityModel(
        in_shape,
        num_outputs,
        features,
        Flow(field, stabnet.build(method, kind="integrator")),
        stabnet.build(head, kind="head", in_features=size, num_outputs=num_outputs),
        mean,
        std,
    )


def neural_ode(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    mode: Literal["paper", "official"] = "paper",
    backbone: Part | None = None,
    vector_field: Part | None = None,
    integrator: Part | None = None,
    state_size: int | None = None,
    head: Part = "identity",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build the neural ODE that LyaNet is compared with: the same architecture.

    Train it with ``cross_entropy``, by back-propagation through the steps of a fixed-step
    integrator, as the paper does, or by the adjoint method:
    ``integrator={"name": "dopri5", "adjoint": True}``.

    Args:
        in_shape: shape of one input, channels first.
        num_outputs: number of classes, or of values.
        mode: as of :func:`lyanet`.
        backbone: as of :func:`lyanet`.
        vector_field: as of :func:`lyanet`.
        integrator: carries the state from time 0 to 1, and gradients back; ``None`` for ``rk4``
            with steps of 0.1.
        state_size: as of :func:`lyanet`.
        head: as of :func:`lyanet`.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    References:
        [LyaNet] section 5; Chen et al., "Neural ordinary differential equations", 2018.
    """
    return lyanet(
        in_shape=in_shape,
        num_outputs=num_outputs,
        mode=mode,
        backbone=backbone,
        vector_field=vector_field,
        integrator=integrator,
        state_size=state_size,
        head=head,
        mean=mean,
        std=std,
    )


def _field(mode: str, classes: int) -> dict[str, Any]:
    """Return the field of a mode."""
    if mode == "paper":
        return {"name": "data_controlled", "form": "simplex", "rate": paper_rate()}
    return {
        "name": "data_controlled",
        "form": "direction",
        "rate": released_rate(classes),
        "dropout": 0.5,
    }
