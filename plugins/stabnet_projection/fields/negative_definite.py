"""A field that pulls towards its center: a matrix with negative definite symmetric part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import (
    Context,
    Descent,
    Features,
    Guarantee,
    VectorField,
    check_field_state,
    driving_features,
    lift_features,
)
from stabnet.values import number, shape, whole

from ..center import center_of, offset_from
from .descent import descent_guarantees, field_context
from .equilibrium import CenterOption, split_center
from .squared_distance import SquaredDistance

__all__ = ["NegativeDefiniteField"]


@final
class NegativeDefiniteField(VectorField):
    r"""An extended linearization whose matrix has a negative definite symmetric part.

    .. math:: F(z, u) = A(z, u)\,(z - c), \qquad A = -P^\top P + S - S^\top - \rho I,

    with the matrices :math:`P, S` given by a network of ``z − c`` and the features. Since
    :math:`x^\top A x = -\|Px\|^2 - \rho\|x\|^2`, the squared distance :math:`V = \|z - c\|^2` from
    the center decays at least at rate :math:`2\rho`, for every value of the parameters:

    .. math:: \|z(t) - c\| \le e^{-\rho t}\,\|z(0) - c\|.

    Every continuous ``A`` with symmetric part at most :math:`-\rho I` has such factors: ``P`` the
    square root of :math:`-\rho I - (A + A^\top)/2`, and :math:`S = A/2`.

    This is contraction towards the equilibrium, and no more: ``A`` is not the Jacobian of the
    field, so the Euclidean distance of two trajectories may grow for a while. (Jaffe et al.
    conclude contraction in *some* metric; it is not constructed, here or there.)

    ``A`` is never formed, only its products with ``z − c``. The network ends in two matrices per
    state, though, with ``2 n²`` entries. Its hidden units are bounded, so ``A`` is as well.

    Args:
        state_shape: shape of one state; ``n`` is its number of entries.
        feature_shape: shape of one input's features; ``None`` or ``()`` for an autonomous field.
        rate: the rate ``ρ > 0``.
        hidden: widths of the network's hidden layers, at least one; its activation is tanh.
        center: the equilibrium: a point, ``None`` for the origin, or ``"features"`` for each
            sample's features, which are then states.

    Attributes:
        potential: ``V``.
        alpha: its rate, ``2ρ``.

    Raises:
        InvalidOptionError: for a rate or a width that is not positive, no hidden layer, or
            features as center that are no states.

    References:
        Jaffe, Davydov, Lapsekili, Singh, Bullo: "Learning neural contracting dynamics: extended
        linearization and global guarantees", 2024; [SNN] (30).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        rate: float = 0.01,
        hidden: Sequence[int] = (64,),
        center: CenterOption = None,
    ) -> None:
        super().__init__()
        if not hidden:
            raise InvalidOptionError(
                "hidden=() is empty; give one width of a hidden layer at least"
            )
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = tuple(feature_shape or ())
        self.rate = number("rate", rate, above=0)
        self.alpha = 2 * self.rate
        self.center, at = split_center(center, self.state_shape, self.feature_shape)
        self.potential = SquaredDistance(self.state_shape, at)
        n = math.prod(self.state_shape)
        widths = tuple(whole("hidden", width, 1) for width in hidden)
        self.first = nn.Linear(n, widths[0])
        self.drive = (
            nn.Linear(math.prod(self.feature_shape), widths[0], bias=False)
            if self.feature_shape
            else None
        )
        sizes = pairwise((*widths, 2 * n * n))
        self.rest = nn.Sequential(*(m for a, b in sizes for m in (nn.Tanh(), nn.Linear(a, b))))
        with torch.no_grad():  # so that at first A is of order one, however large n is
            for parameter in self.rest[-1].parameters():
                parameter.div_(math.sqrt(n))

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate the field; see :class:`stabnet.interfaces.VectorField`."""
        return self.descent(t, z, u).velocity

    def context(self, u: Features = None) -> Context:
        """Return what the potential is evaluated with; see :class:`stabnet.interfaces.Descends`."""
        return field_context(self.potential, self.center, driving_features(u, self.feature_shape))

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        r"""Evaluate the field, ``V`` and :math:`\dot V = -2\|P(z-c)\|^2 - 2\rho V`.

        Autocast is switched off: its rounding of the products could outweigh ``ρ``.

        Args:
            t: time, which the field does not depend on.
            z: states, as in :meth:`forward`; also a single state without a batch.
            u: features.
        """
        with torch.autocast(z.device.type, enabled=False):
            x = self._offset(z, u)
            P, S = self._matrices(x, z, u)
            row, column = x.unsqueeze(-2), x.unsqueeze(-1)
            image = P @ column
            dissipated = (P.mT @ image).squeeze(-1) + self.rate * x
            turned = (S @ column).squeeze(-1) - (row @ S).squeeze(-2)
            value = x.square().sum(-1)
            rate = -2 * image.square().sum((-2, -1)) - self.alpha * value
            return Descent((turned - dissipated).unflatten(-1, self.state_shape), value, rate)

    def matrix(self, z: Float[Tensor, "..."], u: Features = None) -> Float[Tensor, "*batch n n"]:
        """Return the matrices ``A(z, u)``, of the field at states as in :meth:`forward`."""
        with torch.autocast(z.device.type, enabled=False):
            P, S = self._matrices(self._offset(z, u), z, u)
            identity = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
            return S - S.mT - P.mT @ P - self.rate * identity

    def _offset(self, z: Tensor, u: Features) -> Float[Tensor, "*batch n"]:
        """Return ``z − c``, flattened, in the precision of the parameters at least."""
        check_field_state(z, self.state_shape)
        c = center_of(self.potential, self.context(u))
        precise = z.to(torch.promote_types(z.dtype, self.first.weight.dtype))
        return offset_from(c, precise, len(self.state_shape))[0]

    def _matrices(self, x: Tensor, z: Tensor, u: Features) -> tuple[Tensor, Tensor]:
        """Return ``P`` and ``S`` at offsets ``x``."""
        hidden = self.first(x)
        if self.drive is not None:
            features = driving_features(u, self.feature_shape)
            assert features is not None
            driven = self.drive(features.flatten(-len(self.feature_shape)).to(x.dtype))
            if driven.ndim > 1:
                driven = lift_features(driven, z, len(self.state_shape))
            hidden = hidden + driven
        n = x.shape[-1]
        P, S = self.rest(hidden).unflatten(-1, (2, n, n)).unbind(-3)
        return P, S

    def guarantees(self) -> list[Guarantee]:
        """Return the decay of the distance from the center, and what does not follow from it."""
        return [
            *descent_guarantees(
                self.potential, self.alpha, source="Jaffe et al. 2024, ELCD; [SNN] (30)"
            ),
            Guarantee(
                claim="NOT guaranteed: that two trajectories approach each other at all times; "
                "each approaches the equilibrium",
                formula="no bound of ‖z(t) − z′(t)‖ besides ‖z(t) − c‖ + ‖z′(t) − c‖ is claimed",
                source="A(z)(z − c) has the Jacobian A(z) only where A is constant",
                status="conditional",
                detail="open: that the Jacobian of the field, too, has a negative definite "
                "symmetric part",
            ),
        ]

    def extra_repr(self) -> str:
        """Return the rate, and whether the center is the features."""
        return f"rate={self.rate}" + (", center='features'" if self.center == "features" else "")
