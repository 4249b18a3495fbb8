"""Learning a vector field from states and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn

from stabnet.interfaces import Objective

from .matching import check_target, model_of_states, relative_error, scale_of, scaled

__all__ = ["DerivativeMatching"]


@final
class DerivativeMatching(Objective):
    r"""The squared error of the field, averaged over states and components.

    .. math:: \frac1{N n} \sum_{i, k} \Bigl(\frac{F_k(x_i) - \dot x_{ik}}{s_k}\Bigr)^2

    Nothing is integrated: what is matched is the field at ``t = 0``, so it should not depend on
    time.

    Args:
        scale: the units :math:`s` of the components, such as the standard deviations of the
            derivatives; all are 1 if ``None``.

    Raises:
        InvalidOptionError: for a scale that is not positive.

    References:
        [MK] section 4.1.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "flow"
    inputs: Literal["any", "states"] = "states"
    task: Literal["classification", "regression"] = "regression"
    scale: Tensor | None

    def __init__(self, scale: Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale_of(scale), persistent=False)

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Float[Tensor, "batch n"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: a :class:`stabnet.StabilityModel` whose inputs are the states of its flow, such
                as ``stable_dynamics``.
            x: states ``(batch, *in_shape)``.
            y: their derivatives, flattened to ``(batch, n)``.

        Returns:
            The loss; and ``loss`` and ``relative_error`` to log, the norm of the error over that of
            the derivatives, in the batch and without the scale.

        Raises:
            InvalidOptionError: for another model, or a scale of another length.
            InvalidInputError: if a shape does not fit.
        """
        model = model_of_states(model, "derivative_matching")
        states = model.features(x)
        assert isinstance(states, Tensor)
        velocity = model.velocity(0.0, states).flatten(1)
        check_target(y, tuple(velocity.shape), "derivatives")
        residual = velocity - y
        loss = scaled(residual, self.scale).square().mean()
        return loss, {"loss": loss.detach(), "relative_error": relative_error(residual, y)}
