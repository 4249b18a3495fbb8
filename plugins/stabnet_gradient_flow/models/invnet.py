"""A network with a given Lipschitz constant, for inverse problems."""

from __future__ import annotations

from collections.abc import Sequence

import stabnet
from stabnet import InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block, BoundsLipschitz
from stabnet.values import number, shape, whole

from ..blocks.lift import Lift, Project
from ..blocks.scale import Scale
from ._assembly import Part, check_part

__all__ = ["invnet"]


def invnet(
    *,
    in_shape: Sequence[int] = (2,),
    num_outputs: int = 2,
    lipschitz: float = 1.0,
    width: int = 10,
    blocks: int = 5,
    block: Part = "gradient_flow",
) -> StabilityModel:
    r"""Build :math:`\mathrm{InvNet}_L`, which reconstructs vectors from measurements.

    .. math:: y \mapsto \operatorname{clamp}(c, -L, L) \; P \circ \Phi_k \circ \dots \circ \Phi_1
              \circ E\, y

    Zeros are appended to the measurements, :math:`E`; non-expansive blocks :math:`\Phi_i` of the
    wider state follow; the first entries are kept, :math:`P`, and scaled by a learned number
    within :math:`[-L, L]`. The whole is ``L``-Lipschitz if the blocks are non-expansive: those of
    ``gradient_flow`` are after ``stabnet.renormalize(model)``, and
    ``stabnet.certify.lipschitz_bound(model).outputs`` bounds the model as it stands.

    >>> import stabnet
    >>> net = stabnet.build("invnet", lipschitz=2.0, blocks=1)
    >>> [type(stage).__name__ for stage in net.dynamics.stages]
    ['Lift', 'GradientFlow', 'Project', 'Scale']

    Args:
        in_shape: shape of one measurement, ``(n,)``.
        num_outputs: entries of one reconstruction; at most ``width``.
        lipschitz: ``L``, positive.
        width: entries of the state between the blocks; at least ``n``.
        blocks: how many blocks; 0 for none.
        block: every block, a name or a dict of name and options.

    Returns:
        The model, with the identity as backbone and head, and a stack of blocks as dynamics. Train
        it with the objective ``mse``.

    Raises:
        InvalidOptionError: for options out of range, measurements that are no vectors, or a block
            that changes the width, has no ``lipschitz_bound``, or was built already.

    References:
        [SNN] section 6.1.
    """
    sizes = shape("in_shape", in_shape)
    values, state = whole("num_outputs", num_outputs, 1), (whole("width", width, 1),)
    if len(sizes) != 1:
        raise InvalidOptionError(
            f"in_shape={sizes}: invnet takes vectors (n,); flatten the measurements first"
        )
    if max(sizes[0], values) > state[0]:
        raise InvalidOptionError(
            f"width={state[0]} is less than the {sizes[0]} entries of a measurement or the "
            f"{values} of a reconstruction; give at least {max(sizes[0], values)}"
        )
    stages = [
        Lift(sizes, state[0]),
        *(_block(block, state) for _ in range(whole("blocks", blocks, 0))),
        Project(state, values),
        Scale((values,), largest=number("lipschitz", lipschitz, above=0)),
    ]
    backbone = stabnet.build("identity", kind="backbone", in_shape=sizes)
    head = stabnet.build("identity", kind="head", in_features=values, num_outputs=values)
    return StabilityModel(sizes, values, backbone, Stack(stages), head)


def _block(spec: Part, state_shape: tuple[int]) -> Block:
    """Return a new block from one shape of state to the same.

    Raises:
        InvalidOptionError: if it was built already, leads elsewhere, or has no Lipschitz bound.
    """
    check_part("block", spec)
    block: Block = stabnet.build(spec, kind="block", state_shape=state_shape)
    out = tuple(getattr(block, "out_shape", state_shape))
    if out != state_shape:
        raise InvalidOptionError(
            f"the block {spec!r} maps states of shape {state_shape} to {out}; it must keep the "
            "shape. Its options set it, such as features"
        )
    if not isinstance(block, BoundsLipschitz):
        raise InvalidOptionError(
            f"the block {spec!r} has no lipschitz_bound, so no network of it has a certificate; "
            "use gradient_flow, sll or another block that has"
        )
    return block
