"""A deep network of Hamiltonian blocks, trained at constant memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import stabnet
from stabnet import InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block
from stabnet.values import shape, whole

from ..blocks.phase_lift import PhaseLift
from ..reversible import reversible

__all__ = ["hamiltonian_net"]

Part = str | Mapping[str, Any]


def hamiltonian_net(
    *,
    in_shape: Sequence[int],
    num_outputs: int,
    backbone: str | Mapping[str, Any] | nn.Module = "identity",
    width: int | None = None,
    blocks: int | Sequence[int] = 12,
    vector_field: Part = "separable_hamiltonian",
    scheme: str = "symplectic_euler",
    step_size: float = 0.1,
    stored: bool = False,
    checkpoint_every: int | None = None,
    tolerance: float | None = None,
    head: str | Mapping[str, Any] | nn.Module = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    r"""Build a network of Hamiltonian blocks for vectors or images.

    Features are lifted to states ``(q, p)`` by zeros; blocks :math:`\Phi_i` follow, each one step
    of a symplectic scheme on a field of its own; the head reads off the last state. Images are
    halved between resolutions by turning patches of 2 × 2 pixels into channels, the same orthogonal
    map for ``q`` and ``p``, which is symplectic too. So where fields are Hamiltonian, every
    Jacobian from one state to a later one is symplectic, and has an operator norm of at least 1. In
    training, states are recomputed by inverting the blocks: memory grows with the number of
    resolutions, not with that of blocks.

    >>> import stabnet
    >>> net = stabnet.build("hamiltonian_net", in_shape=(2,), num_outputs=2, width=4)
    >>> [type(stage).__name__ for stage in net.dynamics.stages]
    ['PhaseLift', 'Reversible']

    Args:
        in_shape: shape of one input, ``(n,)`` or ``(channels, height, width)``.
        num_outputs: number of classes or values.
        backbone: maps an input to the features that the first state is made of; the input itself
            by default. Nothing is claimed of it, and its own activations are stored.
        width: entries (channels) of the first state, even; as few as features allow if ``None``.
            Each halving of an image makes four times as many.
        blocks: how many blocks; for images a sequence of one number per resolution.
        vector_field: the field of every block, separable.
        scheme: ``"symplectic_euler"``, ``"leapfrog"`` or ``"yoshida4"``.
        step_size: ``h``, not zero.
        stored: whether activations are stored instead of recomputed.
        checkpoint_every: number of blocks between states that are kept, as few as it takes if
            ``None``; see :class:`stabnet_hamiltonian.Reversible`.
        tolerance: relative error of a recomputed state that is accepted; see there.
        head: maps the final state to outputs.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model, with a stack as dynamics.

    Raises:
        InvalidOptionError: for options out of range, images that cannot be halved so often, or a
            field that is not separable.

    References:
        [SNN] section 4, (22)–(28).
    """
    if isinstance(blocks, str) or not isinstance(blocks, (int, Sequence)):
        raise InvalidOptionError(
            f"blocks={blocks!r} must be a whole number or, for images, a list of one number for "
            "each resolution, such as [2, 30]"
        )
    counts = [blocks] if isinstance(blocks, int) else list(blocks)
    sizes = shape("in_shape", in_shape)
    encoder = stabnet.build(backbone, kind="backbone", in_shape=sizes)
    features = tuple(encoder.out_shape)
    if not counts or (len(counts) > 1 and len(features) != 3):
        raise InvalidOptionError(
            f"blocks={blocks}: one number of blocks is needed for each resolution, and features of "
            f"shape {features} have {'at least' if len(features) == 3 else 'only'} one"
        )
    if isinstance(vector_field, nn.Module):
        raise InvalidOptionError(
            "vector_field is built for every block, so that one module cannot be it; got "
            f"{type(vector_field).__name__}. Give a name, or a dict of a name and options"
        )
    step = {
        "name": "hamiltonian",
        "vector_field": vector_field,
        "scheme": scheme,
        "step_size": step_size,
    }
    lift = PhaseLift(features, width)
    stages: list[Block] = [lift]
    state = lift.out_shape
    for index, count in enumerate(counts):
        if index:
            # In the basis of pixels, channels of q stay before those of p.
            halving = stabnet.build("downsample", kind="block", state_shape=state, basis="pixels")
            stages.append(halving)
            state = tuple(halving.out_shape)
        depth = whole("each number of blocks", count, 1)
        stages.append(
            reversible(
                state,
                block=step,
                depth=depth,
                stored=stored,
                checkpoint_every=checkpoint_every,
                tolerance=tolerance,
            )
        )
    readout = stabnet.build(
        head, kind="head", in_features=math.prod(state), num_outputs=num_outputs
    )
    return StabilityModel(sizes, num_outputs, encoder, Stack(stages), readout, mean, std)
