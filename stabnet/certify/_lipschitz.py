"""How far a perturbation of the input can move a model's state and its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import nn

from ..bounds import NoBoundError, check_unaltered, lipschitz_product
from ..bounds import lipschitz_bound as module_bound
from ..interfaces import Block
from ..model import StabilityModel
from ..robustness import eval_mode
from ..stack import Stack

__all__ = ["LipschitzBound", "lipschitz_bound"]


@final
@dataclass(frozen=True)
class LipschitzBound:
    """Upper bounds of Lipschitz constants in l2, part by part, from pixels to outputs.

    Attributes:
        parts: name and bound of every part before the head, in order.
        head: bound of the head.
    """

    parts: tuple[tuple[str, float], ...]
    head: float

    @property
    def features(self) -> float:
        """Bound of the map from inputs to the state that the head reads."""
        return lipschitz_product([bound for _, bound in self.parts])

    @property
    def outputs(self) -> float:
        """Bound of the map from inputs to outputs."""
        return lipschitz_product([self.features, self.head])


def lipschitz_bound(model: nn.Module) -> LipschitzBound:
    r"""Return upper bounds of the Lipschitz constants of a model's parts, in l2.

    .. math:: \|z(x) - z(x')\|_2 \le \prod_i L_i\, \|x - x'\|_2

    The bounds are sound: in float64, rounded up, from the weights and buffers as they stand, of
    the model in eval mode; nothing is cached, so no edit of a weight can leave them stale. They
    are what they are: for blocks that are non-expansive only after re-normalization, and were
    trained since, they exceed one.

    Args:
        model: a :class:`stabnet.StabilityModel` whose backbone, stages and head can be bounded; see
            :func:`stabnet.bounds.lipschitz_bound`. It stays as it is.

    Returns:
        The bounds, with normalization counted as a part.

    Raises:
        NoBoundError: names the part that has none.
        InvalidInputError: for weights that are not finite.
    """
    if not isinstance(model, StabilityModel):
        raise NoBoundError(
            f"{type(model).__name__} is no StabilityModel, whose parts could be bounded one by "
            "one; stabnet.bounds.lipschitz_bound bounds plain layers and sequences of them"
        )
    # The parts check themselves; between them there are stacks only.
    check_unaltered(model)
    parts = list(_parts(model))
    with eval_mode(model):
        bounds = tuple((name, _bound(name, part, shape)) for name, part, shape in parts)
        return LipschitzBound(bounds, _bound("head", model.head, _state_shape(parts[-1][1])))


def _bound(name: str, part: nn.Module, shape: tuple[int, ...]) -> float:
    try:
        return module_bound(part, shape)
    except NoBoundError as error:
        raise NoBoundError(f"{name}: {error}") from error


def _state_shape(last: nn.Module) -> tuple[int, ...]:
    """Return the shape of what the head reads, as far as the last stage knows it."""
    shape = getattr(last, "out_shape", getattr(last, "state_shape", ()))
    return (math.prod(shape),)


def _parts(model: StabilityModel) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Yield name, module and input shape of what is applied before the head."""
    yield "normalize", model.normalize, model.in_shape
    yield "backbone", model.backbone, model.in_shape
    yield from _stages("dynamics", model.dynamics)


def _stages(name: str, stage: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    if isinstance(stage, Stack):
        check_unaltered(stage)
        for index, inner in enumerate(stage.stages):
            yield from _stages(f"{name}.stages.{index}", inner)
    else:
        # A dynamics does not know the shape of what drives it; it must bound itself.
        shape = tuple(stage.state_shape) if isinstance(stage, Block) else ()
        yield f"{name} ({type(stage).__name__})", stage, shape
