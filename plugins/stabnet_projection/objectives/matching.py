"""What the objectives for physical systems share: the scale of each component, and targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel
from stabnet.values import number

__all__ = ["check_target", "model_of_states", "relative_error", "scale_of", "scaled"]


def scale_of(scale: Sequence[float] | None) -> Float[Tensor, " n"] | None:
    """Return what residuals are divided by, component by component.

    Raises:
        InvalidOptionError: unless it is a sequence of positive numbers, or ``None``.
    """
    if scale is None:
        return None
    if isinstance(scale, (str, int, float)) or not len(scale):
        raise InvalidOptionError(f"scale={scale!r} must be positive numbers, one per component")
    return torch.tensor([number("scale", value, above=0) for value in scale])


def scaled(residual: Float[Tensor, "*batch n"], scale: Tensor | None) -> Float[Tensor, "*batch n"]:
    """Return residuals in units of the scale.

    Raises:
        InvalidOptionError: if there are more or fewer numbers than components.
    """
    if scale is None:
        return residual
    if residual.shape[-1] != len(scale):
        raise InvalidOptionError(
            f"scale has {len(scale)} numbers; there are {residual.shape[-1]} components"
        )
    return residual / scale.to(residual)


def model_of_states(model: nn.Module, what: str) -> StabilityModel:
    """Return the model, if its flow moves what its inputs are.

    Raises:
        InvalidOptionError: if its inputs are no states.
    """
    flow = getattr(model, "dynamics", None)
    if (
        isinstance(model, StabilityModel)
        and isinstance(flow, Flow)
        and flow.initial == "features"
        and tuple(flow.vector_field.state_shape) == model.in_shape
    ):
        return model
    raise InvalidOptionError(
        f"{what} needs a StabilityModel whose inputs are the states that its flow moves, such as "
        f"'stable_dynamics'; this is a {type(model).__name__} with {type(flow).__name__}"
    )


def check_target(y: Tensor, wanted: tuple[int | str, ...], what: str) -> None:
    """Check the shape of targets, in which a text stands for any positive number.

    Raises:
        InvalidInputError: for another shape, whole numbers, or a batch without samples.
    """
    if y.shape[:1] == (0,):
        raise InvalidInputError(f"the batch has no {what}; a mean needs at least one sample")
    fits = y.ndim == len(wanted) and all(
        size >= 1 if isinstance(want, str) else size == want
        for size, want in zip(y.shape, wanted, strict=True)
    )
    if not fits or not y.is_floating_point():
        raise InvalidInputError(
            f"{what} are floating-point numbers of shape ({', '.join(map(str, wanted))}); got "
            f"{y.dtype} of shape {tuple(y.shape)}"
        )


def relative_error(residual: Tensor, y: Tensor) -> Float[Tensor, ""]:
    """Return the norm of the residuals over that of the targets, both over the batch."""
    residual, y = residual.detach(), y.detach()
    size = torch.linalg.vector_norm(y).clamp_min(torch.finfo(y.dtype).tiny)
    relative: Tensor = torch.linalg.vector_norm(residual) / size
    return relative
