"""The flow of a vector field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import InvalidInputError, InvalidOptionError
from .interfaces import Dynamics, Features, Integrator, Solution, VectorField
from .states import first_tensor, state_dtype

__all__ = ["Flow"]


@final
class Flow(Dynamics):
    r"""The flow of a vector field, :math:`\dot z = F(t, z, u)`, from an initial state.

    Args:
        vector_field: the right-hand side.
        integrator: how it is integrated.
        initial: ``"zeros"``; ``"features"``, the flow starts at ``u`` and is autonomous in it; or
            ``"learned"``, one learned state for all inputs.
        times: default interval or grid of times, at least two.

    Raises:
        InvalidOptionError: for another ``initial``, or ``"features"`` whose shape is not the
            state's.
    """

    def __init__(
        self,
        vector_field: VectorField,
        integrator: Integrator,
        initial: Literal["zeros", "features", "learned"] = "zeros",
        times: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if initial not in ("zeros", "features", "learned"):
            raise InvalidOptionError(
                f"initial={initial!r} is unknown; it is 'zeros', 'features' or 'learned'"
            )
        self.vector_field = vector_field
        self.integrator = integrator
        self.initial = initial
        self.times = tuple(float(t) for t in times)
        if initial == "learned":
            self.start = nn.Parameter(torch.zeros(vector_field.state_shape))

    def forward(
        self, u: Features, times: Sequence[float] | Float[Tensor, " times"] | None = None
    ) -> Solution:
        """Integrate from the initial state; see :class:`stabnet.interfaces.Dynamics`."""
        like = first_tensor(u)
        shape = (like.shape[0], *self.vector_field.state_shape)
        dtype = state_dtype(like)
        if self.initial == "features":
            if like.shape != shape:
                raise InvalidInputError(
                    f"a flow that starts at its features needs them of shape {shape}; "
                    f"got {tuple(like.shape)}"
                )
            z0, driving = like.to(dtype), None
        elif self.initial == "learned":
            z0, driving = self.start.to(dtype).expand(shape), u
        else:
            z0, driving = like.new_zeros(shape, dtype=dtype), u
        at: Sequence[float] | Tensor = self.times if times is None else times
        trajectory = self.integrator(self.vector_field, z0, at, driving)
        return Solution(
            state=trajectory.states[-1],
            nfe=trajectory.nfe,
            times=torch.as_tensor(at, dtype=dtype, device=like.device),
            states=trajectory.states,
        )
