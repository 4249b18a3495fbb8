"""The field of steepest descent of a potential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import (
    BoundsGrowth,
    Context,
    Descent,
    Features,
    Guarantee,
    Potential,
    VectorField,
    check_field_state,
    driving_features,
)
from stabnet.values import number, shape

from .descent import check_center, descent_guarantees, field_context

__all__ = ["NegativeGradientField"]

Part = str | Mapping[str, Any] | nn.Module


@final
class NegativeGradientField(VectorField):
    r"""The negative gradient of a potential.

    .. math:: F(z, u) = -g\,\nabla V(z), \qquad \dot V = -g\,\|\nabla V\|^2 \le 0.

    A convex potential with :math:`V(z) \ge \eta\|z - c\|^2` decays at rate :math:`\alpha = g\eta`:

    .. math:: V \le \nabla V^\top (z - c) \le \|\nabla V\|\,\|z - c\|
              \le \|\nabla V\| \sqrt{V/\eta}
              \quad\Longrightarrow\quad \dot V = -g\,\|\nabla V\|^2 \le -g\eta V.

    No larger rate follows from these two properties; many potentials decay faster. Any other
    potential is only known not to rise, :math:`\alpha = 0`.

    Args:
        state_shape: shape of one state.
        feature_shape: shape of one input's features, for a potential that depends on them;
            ``None`` or ``()`` for an autonomous field.
        potential: the potential ``V``.
        gain: the factor ``g > 0``.
        center: whether the center is the ``"potential"``'s own, or each sample's ``"features"``,
            which are then states.

    Raises:
        InvalidOptionError: for a gain that is not positive, or features as center that are no
            states.

    References:
        Boyd and Vandenberghe, "Convex optimization", 2004, 3.1.3, for the inequality; [SNN] (11)
        and (13) for contraction.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        potential: Part = "icnn",
        gain: float = 1.0,
        center: Literal["potential", "features"] = "potential",
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = tuple(feature_shape or ())
        self.gain = number("gain", gain, above=0)
        self.center = check_center(center, self.state_shape, self.feature_shape)
        self.potential: Potential = stabnet.build(
            potential, kind="potential", state_shape=self.state_shape
        )

    @property
    def alpha(self) -> float | Tensor:
        """The rate ``gη`` for a convex potential that bounds its growth as it stands, else 0.

        A 0-dimensional tensor without gradient, which is not read from its device.
        """
        if self.potential.convex and isinstance(self.potential, BoundsGrowth):
            return self.gain * self.potential.growth_bound()
        return 0.0

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate the field; see :class:`stabnet.interfaces.VectorField`."""
        return self.descent(t, z, u).velocity

    def context(self, u: Features = None) -> Context:
        """Return what the potential is evaluated with; see :class:`stabnet.interfaces.Descends`."""
        return field_context(self.potential, self.center, driving_features(u, self.feature_shape))

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        """Evaluate the field, the potential and its rate of change.

        Args:
            t: time, which the field does not depend on.
            z: states, as in :meth:`forward`; also a single state without a batch.
            u: features.
        """
        check_field_state(z, self.state_shape)
        context, ndim = self.context(u), len(self.state_shape)
        features = context.features
        samples = features is not None and features.ndim > len(self.feature_shape)
        if features is not None and samples and z.ndim == ndim + 2 and len(features) != 1:
            # The gradient at a state depends on the features: each gets a state of its own.
            z = z.expand(len(features), *z.shape[1:])
        value, gradient = self.potential.value_and_gradient(z, context)
        rate = -self.gain * gradient.flatten(-ndim).square().sum(-1)
        return Descent(-self.gain * gradient, value, rate)

    def guarantees(self) -> list[Guarantee]:
        """Return the decay of the potential along exact trajectories, and contraction if convex."""
        decay = descent_guarantees(
            self.potential, float(self.alpha), source="dV/dt = −g‖∇V‖², and convexity for the rate"
        )
        if not self.potential.convex:
            return decay
        return [
            *decay,
            Guarantee(
                claim="two trajectories of the field with the same features never move apart, in "
                "the state (this says nothing of perturbed inputs)",
                formula="(F(z) − F(z′))ᵀ(z − z′) ≤ 0, hence ‖z(t) − z′(t)‖ ≤ ‖z(0) − z′(0)‖",
                source="the gradient of a convex function is monotone; [SNN] (11), (13)",
                status="by construction",
                assumptions=(
                    "V is convex, as it says",
                    "exact arithmetic, up to rounding",
                    "the flow is exact",
                ),
            ),
        ]

    def extra_repr(self) -> str:
        """Return the gain, and what the center is."""
        return f"gain={self.gain}, center={self.center!r}"
