"""What the Lyapunov losses share: their potential, and the plain loss of the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

from torch import Tensor, nn

import stabnet
from stabnet import InvalidOptionError, StabilityModel
from stabnet.interfaces import Context, Potential
from stabnet.values import number

from ..potential import SupervisedPotential

__all__ = ["Supervision"]


@final
class Supervision(nn.Module):
    """A supervised potential for states of any shape, and its plain loss at the end.

    Args:
        potential: a name, a dict with options, or a module; ``supervised`` if ``None``.
        truncation: truncation of the default potential; its own default if ``None``.
        weight: weight of the plain loss, at least 0.

    Attributes:
        task: what the targets are: class labels, or values for the squared error.
        weight: the weight.

    Raises:
        InvalidOptionError: for a negative weight, or a potential that cannot be built by name
            because it has parameters, which training would not see.
    """

    task: Literal["classification", "regression"]

    def __init__(
        self,
        potential: str | Mapping[str, Any] | nn.Module | None,
        truncation: float | None,
        weight: float,
    ) -> None:
        super().__init__()
        self.weight = number("terminal_weight", weight, least=0)
        if potential is None:
            potential = {"name": "supervised"}
            if truncation is not None:
                potential["truncation"] = truncation
        self._given = potential if isinstance(potential, nn.Module) else None
        self._spec = potential
        self._built: dict[tuple[int, ...], Potential] = {}
        self._truncation: float | None = None
        example = self.potential((1,))
        self.loss: Any = getattr(example, "loss", "cross_entropy")
        if self._given is None and isinstance(example, SupervisedPotential):
            self._truncation = example.truncation
        self.task = "regression" if self.loss == "squared_error" else "classification"

    def potential(self, state_shape: tuple[int, ...]) -> Potential:
        """Return the potential for states of a shape."""
        if isinstance(self._given, Potential):
            return self._given
        if self._truncation is not None:  # building by name would not compile
            return SupervisedPotential(state_shape, self.loss, self._truncation)
        if state_shape not in self._built:
            built: Potential = stabnet.build(self._spec, kind="potential", state_shape=state_shape)
            if any(True for _ in built.parameters()):
                raise InvalidOptionError(
                    f"potential {self._spec!r} has parameters, which training sees only in a "
                    "module that is given: build it, and pass it as potential="
                )
            self._built[state_shape] = built
        return self._built[state_shape]

    def context(self, model: StabilityModel, y: Tensor) -> Context:
        """Return targets, and the model's head; one with batch norm keeps its statistics."""
        plain = isinstance(model.head, (nn.Identity, nn.Linear))
        return Context(label=y, head=model.head if plain else model.decode)

    def terminal(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the plain, untruncated loss of outputs; and their accuracy, to log.

        Outputs that are not finite are wrong.
        """
        plain = SupervisedPotential(outputs.shape[1:], self.loss, truncation=0.0)
        loss = plain(outputs, Context(label=y)).mean()
        if y.is_floating_point():
            return loss, {}
        right = (outputs.argmax(1) == y) & outputs.isfinite().all(1)
        return loss, {"accuracy": right.float().mean()}
