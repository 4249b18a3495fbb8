"""A user's energy as a Lyapunov function."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Potential
from stabnet.values import flag, shape

from ..center import center_of, offset_from, point

__all__ = ["ENERGIES", "Energy", "double_well", "pendulum", "quartic"]

Function = Callable[[Tensor], Tensor]
"""An energy: states ``(N, *state_shape)`` to values ``(N,)``."""


def double_well(z: Float[Tensor, "N *shape"]) -> Float[Tensor, " N"]:
    r"""Return :math:`\tfrac14 (z_1^2 - 1)^2 + \tfrac12 \sum_{i > 1} z_i^2`.

    It is least at :math:`(\pm 1, 0, \dots)`, each of which may be the center, and has a saddle at
    the origin: no field can descend it from everywhere to one center.
    """
    flat = z.flatten(1)
    first, others = flat[:, 0], flat[:, 1:]
    well: Tensor = ((first - 1) * (first + 1)).square() / 4
    rest: Tensor = others.square().sum(1) / 2
    return well + rest


def pendulum(z: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
    r"""Return :math:`\tfrac12 \omega^2 + 1 - \cos\theta`, the energy of states ``(angle, speed)``.

    Mass, length and gravity are 1. It is least at all multiples of :math:`2\pi`, and has saddles
    between them, where the pendulum stands.
    """
    angle, speed = z.flatten(1).unbind(1)
    return speed.square() / 2 + 2 * (angle / 2).sin().square()


def quartic(z: Float[Tensor, "N *shape"]) -> Float[Tensor, " N"]:
    r"""Return :math:`\sum_i \tfrac12 z_i^2 + \tfrac14 z_i^4`, convex and least at the origin."""
    square = z.flatten(1).square()
    return (square / 2 + square.square() / 4).sum(1)


ENERGIES: Mapping[str, Function] = {
    "double_well": double_well,
    "pendulum": pendulum,
    "quartic": quartic,
}
"""The energies that :class:`Energy` knows by name."""


@final
class Energy(Potential):
    r"""Any function that is least at a point, less its value there.

    .. math:: V(z) = E(z) - E(c)

    The value at the center is recomputed at every call, so :math:`V(c) = 0` after any training of a
    function with parameters. A center of the context's own moves the energy along,
    :math:`V(z) = E(z - c_u + c) - E(c)`.

    **What is not known of an arbitrary energy.** That it is positive away from the center; that it
    has no other critical point, at which a field that descends it may stay; that it grows; that its
    gradient is Lipschitz; that, if it is learned, the center stays critical; and, unless ``convex``
    says so, that it is convex. All these are assumptions of whoever uses it. Construction refuses
    the counterexamples that it finds: a center that is not critical to rounding, a value below the
    center's close by, and a chord below the function for one said to be convex. That it finds none
    proves nothing.

    Near the center ``V`` is as accurate as the difference of two values of ``E``. Write energies
    that vanish there without cancelling, ``2 sin²(θ/2)`` and not ``1 − cos θ``.

    A function without a name cannot be saved. Give it one by registering a factory:

    .. code-block:: python

        @stabnet.register.potential("mine")
        def mine(*, state_shape, stiffness=1.0):
            return Energy(state_shape, lambda z: stiffness * z.square().sum(-1))

    Args:
        state_shape: shape of one state.
        function: ``E``, of states ``(N, *state_shape)`` with values ``(N,)``, each row by itself: a
            function, a module, or a name: ``"double_well"``, ``"pendulum"`` of states ``(angle,
            speed)``, or ``"quartic"``, which is convex. ``torch.func`` must differentiate it.
        center: a critical point of ``E``, in the default precision; the origin if ``None``.
        convex: whether ``E`` is convex, an assumption that others then use.

    Raises:
        InvalidOptionError: for an unknown name, a function with values of another shape, or one
            that is seen not to be as described.
    """

    center: Tensor

    def __init__(
        self,
        state_shape: Sequence[int],
        function: str | Function,
        center: Sequence[Any] | None = None,
        convex: bool = False,
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.function = _function(function, self.state_shape)
        own = point(center, self.state_shape)
        if isinstance(self.function, nn.Module):
            tensors = itertools.chain(self.function.parameters(), self.function.buffers())
            own = own.to(next((t for t in tensors if t.is_floating_point()), own))
        self.register_buffer("center", own)
        self.convex = flag("convex", convex)
        _check_minimum(self)
        if self.convex:
            _check_convexity(self)

    def forward(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> Float[Tensor, "*batch"]:
        """Evaluate ``V``; the center is ``context.center``, or the potential's own.

        Autocast is switched off, for near the center its rounding would outweigh the values.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, self.center.dtype))
            offset, _ = offset_from(center_of(self, context), z, len(self.state_shape))
            own = self.center.to(z.dtype)
            value = self._energy(own + offset.unflatten(-1, self.state_shape)) - self._energy(own)
            # At the center itself nothing may be left of the rounding of two evaluations.
            there = (offset == 0).all(-1)
            return value - torch.where(there, value, 0).detach()

    def value_and_gradient(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        """Evaluate ``V`` and its gradient, by ``torch.func``; autocast is switched off here too."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, self.center.dtype))
            offset, _ = offset_from(center_of(self, context), z, len(self.state_shape))
            # States that samples share have a gradient for each center.
            return super().value_and_gradient(
                z.expand(*offset.shape[:-1], *self.state_shape), context
            )

    def _energy(self, states: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        ndim = len(self.state_shape)
        flat = states.reshape(-1, *self.state_shape)
        values = self.function(flat)
        if not isinstance(values, Tensor) or values.shape != flat.shape[:1]:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidOptionError(
                f"the energy's function maps states of shape {tuple(flat.shape)} to "
                f"{found}; it must give one value per state, of shape {tuple(flat.shape[:1])}. "
                "Sum over the state, or squeeze a last dimension of one"
            )
        return values.reshape(states.shape[: states.ndim - ndim])

    def extra_repr(self) -> str:
        """Return the function, unless it is a module and shown as such, and the assumption."""
        if isinstance(self.function, nn.Module):
            return f"convex={self.convex}"
        return f"{getattr(self.function, '__name__', self.function)}, convex={self.convex}"


def _function(function: Any, state_shape: tuple[int, ...]) -> Function:
    """Return the function that is meant.

    Raises:
        InvalidOptionError: for a name that is unknown or of other states, and for no function.
    """
    if isinstance(function, str):
        if function not in ENERGIES:
            close = difflib.get_close_matches(function, list(ENERGIES), n=1, cutoff=0.5)
            raise InvalidOptionError(
                f"there is no energy named {function!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
                + f"; available: {', '.join(ENERGIES)}. Any function of states is an energy, too"
            )
        if function == "pendulum" and math.prod(state_shape) != 2:
            raise InvalidOptionError(
                f"the energy 'pendulum' is of states (angle, speed); got state_shape={state_shape}"
            )
        return ENERGIES[function]
    if not callable(function) or isinstance(function, (type, Potential)):
        states = f"(N, {', '.join(map(str, state_shape))})"
        raise InvalidOptionError(
            f"function={function!r} must be a function of states {states} with values (N,), or "
            f"one of the names {', '.join(ENERGIES)}; a potential is none"
        )
    found: Function = function
    return found


_RADIUS = 0.01
_PROBES = 64
_DESCENTS = 20


@torch.no_grad()
def _check_minimum(energy: Energy) -> None:
    """Refuse a center that is seen not to be a local minimum.

    Raises:
        InvalidOptionError: if the gradient there is not zero to rounding, or a smaller value is
            found on a small sphere around it, where the function is followed downwards.
    """
    c, ndim = energy.center, len(energy.state_shape)
    slope = energy.value_and_gradient(c[None])[1].norm()
    directions = _unit(_normal(energy, _PROBES), ndim)
    values, gradients = energy.value_and_gradient(c + _RADIUS * directions)
    steepest = _norms(gradients, ndim).max()
    eps = torch.finfo(c.dtype).eps
    allowed = 1e3 * eps * (1 + c.norm()) * steepest / _RADIUS
    if not bool(slope <= allowed):
        raise InvalidOptionError(
            f"the center {c.tolist()} is no critical point of the energy: its gradient has length "
            f"{slope:.3g} there, and {steepest:.3g} at a distance of {_RADIUS}. Give the point "
            "where the energy is least, to full precision, as center="
        )
    for _ in range(_DESCENTS):
        towards = gradients / torch.where(steepest > 0, steepest, 1)
        directions = _unit(directions - towards, ndim)
        values, gradients = energy.value_and_gradient(c + _RADIUS * directions)
    base = energy._energy(c).abs()
    lowest = values.min()
    if not bool(lowest >= -1e2 * eps * (base + values.abs().max())):
        at = (c + _RADIUS * directions)[values.argmin()]
        raise InvalidOptionError(
            f"the energy is not least at the center {c.tolist()}: at {at.tolist()} it differs by "
            f"{lowest:.3g}. A potential is positive away from its center; choose another center="
        )


@torch.no_grad()
def _check_convexity(energy: Energy) -> None:
    """Refuse a function that is seen not to be convex.

    Raises:
        InvalidOptionError: if it lies above one of its chords, beyond rounding.
    """
    a, b = _normal(energy, 2 * 3 * _PROBES).chunk(2)
    scale = torch.tensor([0.1, 1.0, 10.0], dtype=a.dtype, device=a.device)
    scale = scale.repeat(_PROBES).view(-1, *[1] * len(energy.state_shape))
    a, b = energy.center + scale * a, energy.center + scale * b
    ends = torch.stack([energy(a), energy(b)])
    above = energy((a + b) / 2) - ends.mean(0)
    size = ends.abs().amax(0) + energy._energy(energy.center).abs()
    wrong = above > 1e2 * torch.finfo(a.dtype).eps * size
    if bool(wrong.any()):
        k = int(wrong.int().argmax())
        raise InvalidOptionError(
            f"convex=True, but the energy lies {above[k]:.3g} above its chord halfway between "
            f"{a[k].tolist()} and {b[k].tolist()}; leave convex=True out"
        )


def _normal(energy: Energy, count: int) -> Float[Tensor, "count ..."]:
    """Return random states, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    c = energy.center
    return torch.randn(count, *energy.state_shape, generator=generator).to(c)


def _norms(states: Tensor, ndim: int) -> Tensor:
    """Return the length of each state, with dimensions of one."""
    lengths: Tensor = states.flatten(-ndim).norm(dim=-1)
    return lengths.view(-1, *[1] * ndim)


def _unit(states: Tensor, ndim: int) -> Tensor:
    """Return the directions of states; that of zero is zero."""
    length = _norms(states, ndim)
    return states / torch.where(length > 0, length, 1)
