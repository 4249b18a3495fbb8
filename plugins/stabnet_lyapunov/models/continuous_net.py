"""The continuous-in-depth network: flows joined by stitches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import stabnet
from stabnet import Flow, InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block, Dynamics

from ..blocks import AveragePool, Stitch
from ..fields.piecewise_conv import PiecewiseConvField

__all__ = ["continuous_net"]

Part = str | Mapping[str, Any] | nn.Module


def continuous_net(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    channels: Sequence[int] = (16, 32, 64),
    pieces: int = 3,
    integrator: Part | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build a continuous-in-depth network: a stem; stitch and flow for each width; a linear head.

    All stitches but the first halve the grid, and the average over the grid is what the head
    reads. With the defaults the model has 370,650 parameters.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        channels: channels of the state of each flow.
        pieces: intervals of time on which the weights of a flow are constant. They are also where
            its trajectory is given.
        integrator: integrates the flows; ``None`` for ``rk4`` with one step for each piece.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    Raises:
        InvalidOptionError: if there are no channels, or an option is out of range.

    References:
        Queiruga, Erichson, Taylor, Mahoney: "Continuous-in-depth neural networks", 2020; the
        configuration is that of [LyaNet], table 1.
    """
    if not channels:
        raise InvalidOptionError("channels needs the width of at least one flow; got none")
    backbone = stabnet.build("stem", kind="backbone", in_shape=in_shape, channels=channels[0])
    shape: tuple[int, ...] = backbone.out_shape
    stages: list[Block | Dynamics] = []
    for index, width in enumerate(channels):
        stitch = Stitch(shape, width, stride=1 if index == 0 else 2)
        shape = stitch.out_shape
        field = PiecewiseConvField(shape, pieces=pieces)
        method = {"name": "rk4", "step_size": 1 / pieces} if integrator is None else integrator
        scheme = stabnet.build(method, kind="integrator")
        times = [k / pieces for k in range(pieces + 1)]
        stages += [stitch, Flow(field, scheme, "features", times)]
    pool = AveragePool(shape)
    head = stabnet.build(
        "linear", kind="head", in_features=pool.out_shape[0], num_outputs=num_outputs
    )
    dynamics = Stack([*stages, pool])
    return StabilityModel(in_shape, num_outputs, backbone, dynamics, head, mean, std)
