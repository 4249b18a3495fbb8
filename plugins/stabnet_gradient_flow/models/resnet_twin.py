"""The residual network that a non-expansive one is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stabnet import StabilityModel

from ..blocks.downsample import Basis
from ._assembly import Part, assembled

__all__ = ["resnet_twin"]


def resnet_twin(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    block: Part = "free_residual",
    channels: Sequence[int] = (16, 64, 128),
    blocks: Sequence[int] = (2, 2, 2),
    dense_block: Part = "free_residual",
    features: Sequence[int] = (),
    resize_block: Part | None = None,
    basis: Basis = "pixels",
    head: str | Mapping[str, Any] | nn.Module = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build the twin of ``nonexpansive_net`` whose blocks are not constrained.

    The architecture is the same, down to the shapes of all states; blocks are ``z + Bσ(Az + b)``,
    ``A`` and ``B`` free. Since the two are not tied, ``free_residual`` has half as many hidden
    channels by default, so that both nets have about equally many parameters. With its option
    ``hidden`` they are as wide as those of the other net, at twice the parameters.

    Nothing is claimed of it. Its Lipschitz constant can be bounded, by a large number.

    Args:
        in_shape: shape of one image, channels first; of any input if there are no ``channels``.
        num_outputs: number of classes.
        block: the block of every resolution, a name or a dict of name and options.
        channels: number of channels, one per resolution.
        blocks: number of blocks, one per resolution.
        dense_block: the block behind the last resolution.
        features: number of features, one per dense block.
        resize_block: a block with the option ``features``, put before those that have none where
            the width is to change; without it zeros are appended, or the last channels left out.
        basis: how the image is down-sampled, by ``"pixels"`` or ``"haar"``.
        head: maps the final state to logits.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    Raises:
        InvalidOptionError: for options out of range, or images that cannot be halved so often.

    References:
        [SNN] section 6.2.
    """
    return assembled(
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
