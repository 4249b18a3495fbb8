"""A classifier of images that is non-expansive up to its last layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stabnet import InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import BoundsLipschitz

from ..blocks.downsample import Basis
from ._assembly import Part, assembled

__all__ = ["nonexpansive_net"]


def nonexpansive_net(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    block: Part = "gradient_flow_conv",
    channels: Sequence[int] = (16, 64, 128),
    blocks: Sequence[int] = (2, 2, 2),
    dense_block: Part = "gradient_flow",
    features: Sequence[int] = (),
    resize_block: Part | None = None,
    basis: Basis = "pixels",
    head: str | Mapping[str, Any] | nn.Module = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build a network of blocks that expand no distance, and a last layer that is free.

    At every resolution there are so many blocks with so many channels, then the image is
    down-sampled by an isometry to the next; behind the last resolution the state is flattened, and
    dense blocks follow. Where the number of channels is to change, a block that has the option
    ``features`` (``aol``, ``cayley``, ``sandwich``) changes it. Others keep it, and the
    ``resize_block`` goes before them; without it zeros are appended, or the last channels left out
    with all they held.

    Train it with ``margin_cross_entropy`` for the certified radius, re-normalize it if its blocks
    track their norms, and have it certified.

    On small images a few dense layers train fastest: ``channels=(), blocks=(), features=(256,) * 3,
    dense_block="cayley"``, or gradient flows behind one such layer with ``resize_block="cayley"``.

    >>> import stabnet
    >>> options = {"channels": (1, 8), "blocks": (0, 1)}
    >>> net = stabnet.build("nonexpansive_net", in_shape=(1, 28, 28), **options)
    >>> [type(stage).__name__ for stage in net.dynamics.stages]
    ['Downsample', 'Lift', 'GradientFlow', 'Flatten']

    Args:
        in_shape: shape of one image, channels first; of any input if there are no ``channels``.
        num_outputs: number of classes.
        block: the block of every resolution, a name or a dict of name and options.
        channels: number of channels, one per resolution. Every resolution has half the height and
            width of the one before it.
        blocks: number of blocks, one per resolution; 0 to go on to the next.
        dense_block: the block behind the last resolution.
        features: number of features, one per dense block; none for no dense block.
        resize_block: a block with the option ``features``, put before those that have none where
            the width is to change.
        basis: how the image is down-sampled, by ``"pixels"`` or ``"haar"``. With the Haar basis the
            channels that are left out are those of the highest frequencies.
        head: maps the final state to logits. An affine one gives the largest radii.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel. Normalization expands by ``1 / min std``, which counts
            in every bound.

    Returns:
        The model, with the identity as backbone and a stack of blocks as dynamics.

    Raises:
        InvalidOptionError: for options out of range, images that cannot be halved so often, or a
            block that bounds no Lipschitz constant.

    References:
        [SNN] section 6.2.
    """
    model = assembled(
        in_shape,
        num_outputs,
        block=block,
        channels=channels,
        blocks=blocks,
        dense_block=dense_block,
        features=features,
        resize_block=resize_block,
        basis=basis,
        head=head,
        mean=mean,
        std=std,
    )
    assert isinstance(model.dynamics, Stack)
    for stage in model.dynamics.stages:
        if not isinstance(stage, BoundsLipschitz):
            raise InvalidOptionError(
                f"{type(stage).__name__} has no lipschitz_bound, so a net of it has no "
                "certificate; use a block that has, or the model 'resnet_twin'"
            )
    return model
