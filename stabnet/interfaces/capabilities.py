"""Optional capabilities: small protocols that a part may have, and that others then use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from .block import Block
from .guarantee import Guarantee
from .potential import Context, Potential
from .solution import Features

__all__ = [
    "BoundsEquilibria",
    "BoundsGrowth",
    "BoundsIntervals",
    "BoundsLipschitz",
    "BoundsSmoothness",
    "ComposedOfBlocks",
    "Descends",
    "Descent",
    "FixedStep",
    "FusedInvertible",
    "Guaranteed",
    "HasEnergy",
    "Invertible",
    "Renormalizable",
    "Separable",
    "is_composed_of_blocks",
    "is_descending",
]


@runtime_checkable
class Guaranteed(Protocol):
    """A part that can say what is guaranteed about it.

    One with an attribute ``covers_parts = True`` speaks for the parts inside it, too: what they
    guarantee by themselves is not listed beside it, for it may not be what the whole does with them
    (the energy that a field keeps, and a step of it does not).
    """

    def guarantees(self) -> Sequence[Guarantee]:
        """Return the guarantees that hold for the part as it stands."""
        ...


@runtime_checkable
class Invertible(Protocol):
    """A block whose map can be inverted exactly, up to rounding."""

    def inverse(self, z: Tensor, u: Features = None) -> Tensor:
        """Return the state that the block maps to ``z``."""
        ...


@runtime_checkable
class FusedInvertible(Invertible, Protocol):
    """An invertible block that inverts and back-propagates in one pass."""

    def inverse_with_vjp(
        self, z: Tensor, u: Features = None
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor | None, ...]]]:
        """Return the preimage of ``z`` and the vector–Jacobian product of the block there.

        The product maps a gradient at ``z`` to the gradients, in this order, of the preimage, of
        those tensors of ``u`` that require one, and of those parameters of the block that do, as
        ``parameters()`` lists them; ``None`` for what the block does not depend on. It is called
        once at most.
        """
        ...


class ComposedOfBlocks(Protocol):
    """A block that is a sequence of blocks, which monitors and others may run one by one.

    From the state that the whole is given, each block is applied to the state of the one before;
    all get the features that the whole is given. Ask :func:`is_composed_of_blocks` for it:
    ``isinstance`` sees no submodules from Python 3.12 on.

    Attributes:
        blocks: the blocks, in order.
    """

    blocks: nn.ModuleList


def is_composed_of_blocks(part: object) -> TypeGuard[ComposedOfBlocks]:
    """Return whether a part is a block that is a sequence of blocks.

    That is what an attribute ``blocks`` of blocks says; one that uses them otherwise, in parallel
    or with a connection around them, has to call them something else.
    """
    blocks = getattr(part, "blocks", None)
    sequence = isinstance(blocks, nn.ModuleList) and all(isinstance(b, Block) for b in blocks)
    return sequence and isinstance(part, Block)


@runtime_checkable
class BoundsLipschitz(Protocol):
    """A part with a sound upper bound of its Lipschitz constant in l2.

    A backbone's is that of ``x ↦ u``, a head's of ``z ↦ logits``, a block's of ``z ↦ block(z)``: a
    block that looks at features has none, for bounds of stages are multiplied.
    """

    def lipschitz_bound(self) -> float:
        """Return an upper bound in eval mode, in float64, from weights and buffers as they stand.

        It holds in exact arithmetic, is rounded up, and is never taken from a cache, since an edit
        of a weight in place leaves no trace.

        Raises:
            StabnetError: if no sound bound is known for the part as it stands.
        """
        ...


@runtime_checkable
class Renormalizable(Protocol):
    """A part that follows its weights by an estimate during training, such as that of a norm."""

    def renormalize(self) -> None:
        """Compute what was estimated from a sound bound of the weights as they stand.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        ...


@runtime_checkable
class BoundsIntervals(Protocol):
    """A part that maps boxes to boxes."""

    def interval(
        self, lower: Tensor, upper: Tensor, *, sound: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the image of the box ``[lower, upper]``.

        With ``sound`` they are in float64 and include all rounding; else they are differentiable.
        See :mod:`stabnet.bounds`, whose ``interval`` calls this method.
        """
        ...


@runtime_checkable
class BoundsEquilibria(Protocol):
    """A cell that bounds its equilibria."""

    def equilibrium_interval(
        self, lower: Tensor, upper: Tensor, *, sound: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the equilibria for all features in the box ``[lower, upper]``.

        With ``sound`` they are in float64 and proven, infinite in rows that no box was proven for;
        else they are differentiable, and hold to the tolerance of the solve.
        """
        ...


@runtime_checkable
class BoundsGrowth(Protocol):
    """A potential that grows at least quadratically away from its center."""

    def growth_bound(self) -> Float[Tensor, ""]:
        """Return ``η > 0`` with ``V(z) ≥ η‖z − c‖²``, sound and in float64, without gradient."""
        ...


@runtime_checkable
class BoundsSmoothness(Protocol):
    """A potential whose gradient is Lipschitz in the state, with a known constant."""

    def smoothness_bound(self) -> Float[Tensor, ""]:
        """Return ``L`` with ``‖∇V(x) − ∇V(y)‖ ≤ L‖x − y‖``, sound and in float64, without gradient.

        It is computed from the weights as they stand. It is infinite where none is known for them.
        """
        ...


class Descent(NamedTuple):
    """A field that descends a potential, evaluated at states.

    Attributes:
        velocity: ``F(t, z, u)``, with the shape of ``z``.
        value: ``V(z)``, one value per state.
        rate: ``∇V(z)ᵀF(t, z, u)``, one value per state, at most ``−αV(z)``.
    """

    velocity: Tensor
    value: Tensor
    rate: Tensor


class Descends(Protocol):
    r"""A vector field that descends a potential, :math:`\nabla V(z)^\top F(t, z, u) \le -\alpha V`.

    Ask :func:`is_descending` for it: ``isinstance`` sees no submodules from Python 3.12 on.

    Attributes:
        potential: ``V``.
    """

    potential: Potential

    @property
    def alpha(self) -> float | Tensor:
        """The rate ``α``, not negative: a number, or a 0-dimensional tensor without gradient."""
        ...

    def context(self, u: Features = None) -> Context:
        """Return what ``V`` is evaluated with at these features; its center is always set."""
        ...

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        """Evaluate field, potential and the rate of change of the potential, all at once."""
        ...


def is_descending(field: object) -> TypeGuard[Descends]:
    """Return whether a field descends a potential.

    By one attribute: older compilers take an ``isinstance`` with a protocol for false.
    """
    return hasattr(field, "descent")


@runtime_checkable
class FixedStep(Protocol):
    """An integrator whose steps have a fixed size, which is read anew at every call.

    Attributes:
        step_size: the longest step; assigning another takes effect at the next call.
    """

    step_size: float


@runtime_checkable
class Separable(Protocol):
    """A separable field: ``dq/dt`` depends on ``p`` alone, and ``dp/dt`` on ``q`` alone."""

    def velocity(
        self, t: float | Tensor, p: Float[Tensor, "batch n"], u: Features = None
    ) -> Float[Tensor, "batch n"]:
        """Return ``dq/dt`` at momentum ``p``."""
        ...

    def force(
        self, t: float | Tensor, q: Float[Tensor, "batch n"], u: Features = None
    ) -> Float[Tensor, "batch n"]:
        """Return ``dp/dt`` at position ``q``."""
        ...


@runtime_checkable
class HasEnergy(Protocol):
    """A vector field with an energy, such as the Hamiltonian that its exact flow keeps."""

    def energy(self, z: Float[Tensor, "batch ..."], u: Features = None) -> Float[Tensor, " batch"]:
        """Return the energy at states ``z``, one value per state.

        Args:
            z: states ``(batch, *state_shape)``.
            u: features, for a field that depends on them.
        """
        ...
