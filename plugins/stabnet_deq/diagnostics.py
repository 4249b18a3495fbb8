"""Diagnostics: whether an equilibrium was found, whether it is stable, and whether it matters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet import InvalidInputError, StabilityModel
from stabnet.interfaces import Features, State
from stabnet.robustness import eval_mode

from .arnoldi import radius_at
from .equilibria import Solved, flatten, solve

__all__ = ["Diagnosis", "Distance", "Spread", "diagnose", "distance_travelled"]

_SAME = 0.99
"""Share of predictions left as they were from which on a solver, or a dynamics, is called idle."""

_NEAR = 0.01
"""Relative distance from the first evaluation below which the solver hardly moved."""


@final
class Distance(NamedTuple):
    """How far a solve went, per sample.

    Attributes:
        total: ``‖z* − z⁰‖``. Divided by ``‖z*‖`` it would say nothing, as ``z⁰ = 0``.
        beyond_first: ``‖z* − f(z⁰, u)‖ / ‖z*‖``, what the solver added to one evaluation.
    """

    total: Float[Tensor, " batch"]
    beyond_first: Float[Tensor, " batch"]


@final
@dataclass(frozen=True)
class Spread:
    """The middle and the end of a set of numbers.

    Attributes:
        median: the lower median.
        largest: the largest; NaN if one of them is.
    """

    median: float
    largest: float

    def __str__(self) -> str:
        """Return both numbers in words."""
        return f"{self.median:.3g} (median), {self.largest:.3g} (largest)"


@final
@dataclass(frozen=True)
class Diagnosis:
    """What the equilibria of a classifier are worth.

    Attributes:
        samples: how many samples were looked at.
        accuracy: share of right predictions.
        accuracy_after_one: the same with ``f(z⁰, u)`` in place of the equilibrium.
        accuracy_at_start: the same with ``z⁰``.
        same_after_one: share of samples whose prediction is the same after one evaluation.
        same_at_start: share of samples whose prediction is the same at ``z⁰``.
        distance: ``‖z* − z⁰‖``.
        beyond_first: ``‖z* − f(z⁰, u)‖ / ‖z*‖``.
        spectral_radius: estimate of the cell's at the equilibrium, over the samples.
        contracting: share of samples where that estimate is below one.
        converged: share of samples that met the solver's tolerance.
        residual: relative residual of the equilibria, over the samples.
        nfe: mean number of evaluations that a sample's batch took.
    """

    samples: int
    accuracy: float
    accuracy_after_one: float
    accuracy_at_start: float
    same_after_one: float
    same_at_start: float
    distance: Spread
    beyond_first: Spread
    spectral_radius: Spread
    contracting: float
    converged: float
    residual: Spread
    nfe: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, one sentence each; nothing if nothing is."""
        found = []
        if self.same_at_start >= _SAME:
            found.append(
                f"the dynamics does nothing: {self.same_at_start:.1%} of the predictions are the "
                "same where it starts"
            )
        elif self.same_after_one >= _SAME or self.beyond_first.median < _NEAR:
            found.append(
                f"the solver does next to nothing: after one evaluation {self.same_after_one:.1%} "
                "of the predictions are the same, and the state is within "
                f"{self.beyond_first.median:.1%} of the equilibrium (median)"
            )
        if self.contracting < 1:
            found.append(
                f"the cell does not contract around {1 - self.contracting:.1%} of the equilibria: "
                "plain iteration would leave them (spectral radius not below 1)"
            )
        if self.converged < 1:
            found.append(
                f"{1 - self.converged:.1%} of the solves missed the tolerance: what is said here "
                "of their equilibria holds at states that are none"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, warnings too, as plain data for JSON."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        """Return a readable report."""
        lines = [
            f"{self.samples} samples, {self.converged:.1%} converged, {self.nfe:.3g} evaluations",
            f"residual                ‖f(z*) − z*‖ / ‖f(z*)‖  {self.residual}",
            f"spectral radius         ρ(∂f/∂z)                {self.spectral_radius}",
            f"distance                ‖z* − z⁰‖               {self.distance}",
            f"beyond one evaluation   ‖z* − f(z⁰)‖ / ‖z*‖     {self.beyond_first}",
            f"accuracy                at the equilibrium      {self.accuracy:.2%}",
            f"                        after one evaluation    {self.accuracy_after_one:.2%}",
            f"                        where it starts         {self.accuracy_at_start:.2%}",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def distance_travelled(part: nn.Module, x: Features) -> Distance:
    """Return how far the solver of each sample went from its start, in eval mode.

    Args:
        part: a model whose dynamics is an equilibrium, or has one as a stage; or an equilibrium.
        x: the model's inputs; for an equilibrium, its features.

    Raises:
        InvalidInputError: if there is no equilibrium, or more than one.
    """
    with torch.no_grad(), eval_mode(part):
        solved = solve(part, x)
        return _distance(solved, *_first_states(solved))


def diagnose(
    model: StabilityModel,
    batches: Iterable[tuple[Float[Tensor, "batch ..."], Int[Tensor, " batch"]]],
    *,
    products: int = 32,
    seed: int = 0,
) -> Diagnosis:
    """Diagnose the equilibria of a classifier on labelled samples, in eval mode.

    A deep equilibrium model that does nothing, one whose predictions are as good without its
    solver, is a known failure; so is one whose cell ceases to contract, and whose solves then fail.

    Args:
        model: a model whose dynamics is an equilibrium, or has one as a stage.
        batches: pairs of inputs and class labels. Each batch is solved once.
        products: vector–Jacobian products per sample for :func:`spectral_radius`, which is what
            takes most of the time.
        seed: seed of its start vectors.

    Raises:
        InvalidInputError: if there is no equilibrium, or more than one; if its cell couples
            samples even in eval mode; for targets that are no class labels; or if there is no
            sample.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts: list[dict[str, Tensor]] = []
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        for x, y in batches:
            # Cloned, since tensors made in inference mode take part in no vector–Jacobian product.
            parts.append(_look(model, x.to(device).clone(), y.to(device), products, seed))
    if not sum(len(part["right"]) for part in parts):
        raise InvalidInputError("there is no sample to diagnose; give at least one batch")
    return _summary({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _first_states(solved: Solved) -> tuple[State, State]:
    """Return where the solve started, and the image of that."""
    start: State = pytree.tree_map(torch.zeros_like, solved.solution.state)
    image: State = solved.equilibrium.cell(start, solved.u)
    return start, image


def _distance(solved: Solved, start: State, first: State) -> Distance:
    z = flatten(solved.solution.state)
    total = torch.linalg.vector_norm(z - flatten(start), dim=-1)
    beyond = torch.linalg.vector_norm(z - flatten(first), dim=-1)
    size = torch.linalg.vector_norm(z, dim=-1)
    return Distance(total, torch.where(beyond == 0, beyond, beyond / size))


def _look(
    model: StabilityModel, x: Tensor, y: Tensor, products: int, seed: int
) -> dict[str, Tensor]:
    """Return all that a diagnosis is made of, one value per sample."""
    solved = solve(model, x)
    start, first = _first_states(solved)
    predicted = model.decode(solved.output).argmax(1)
    if y.shape != predicted.shape or y.is_floating_point():
        raise InvalidInputError(
            f"a diagnosis takes class labels {tuple(predicted.shape)}, whole numbers; got "
            f"{tuple(y.shape)} of {y.dtype}"
        )
    after_one = model.decode(first, solved.stage, solved.features).argmax(1)
    at_start = model.decode(start, solved.stage, solved.features).argmax(1)
    distance, solution = _distance(solved, start, first), solved.solution
    assert solution.residual is not None
    assert solution.converged is not None
    return {
        "right": predicted == y,
        "right_after_one": after_one == y,
        "right_at_start": at_start == y,
        "same_after_one": after_one == predicted,
        "same_at_start": at_start == predicted,
        "distance": distance.total,
        "beyond_first": distance.beyond_first,
        "spectral_radius": radius_at(solved, products, seed),
        "residual": solution.residual,
        "converged": solution.converged,
        "nfe": torch.full(y.shape, float(solution.nfe)),
    }


def _summary(found: dict[str, Tensor]) -> Diagnosis:
    def share(of: Tensor) -> float:
        return float(of.double().mean())

    def spread(name: str) -> Spread:
        return Spread(float(found[name].median()), float(found[name].max()))

    return Diagnosis(
        samples=len(found["right"]),
        accuracy=share(found["right"]),
        accuracy_after_one=share(found["right_after_one"]),
        accuracy_at_start=share(found["right_at_start"]),
        same_after_one=share(found["same_after_one"]),
        same_at_start=share(found["same_at_start"]),
        distance=spread("distance"),
        beyond_first=spread("beyond_first"),
        spectral_radius=spread("spectral_radius"),
        contracting=share(found["spectral_radius"] < 1),
        converged=share(found["converged"]),
        residual=spread("residual"),
        nfe=share(found["nfe"]),
    )
