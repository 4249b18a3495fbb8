"""The kinds of part, and what the assembly passes to a factory of each: the kind contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KINDS", "Kind", "part_kind"]


@dataclass(frozen=True)
class Kind:
    """One kind of part.

    Attributes:
        name: the kind, as it is written in code.
        contract: keyword arguments that the assembly passes to every factory of the kind.
        returns: what a factory of the kind returns, in words.
    """

    name: str
    contract: tuple[str, ...]
    returns: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("model", ("in_shape", "num_outputs"), "a StabilityModel"),
            Kind("backbone", ("in_shape",), "a Backbone, exposing out_shape"),
            Kind("vector_field", ("state_shape", "feature_shape"), "a VectorField"),
            Kind("cell", ("state_shape", "feature_shape"), "a Cell"),
            Kind("potential", ("state_shape",), "a Potential"),
            Kind("block", ("state_shape",), "a Block"),
            Kind("head", ("in_features", "num_outputs"), "a module (batch, in) -> (batch, out)"),
            Kind("integrator", (), "an Integrator"),
            Kind("solver", (), "a Solver"),
            Kind("objective", (), "an Objective, (model, x, y) -> (loss, logs)"),
            Kind("attack", (), "an Attack, (model, x, y) -> x_adv"),
            Kind("dataset", ("root", "download"), "a stabnet.data.Dataset"),
            Kind("optimizer", ("params",), "a torch Optimizer"),
        )
    }
)
"""All kinds by name."""


def part_kind(option: str) -> str | None:
    """Return the kind of part that an option of this name takes, if it takes one.

    An option named for a kind (``backbone``), or ending in an underscore and a kind
    (``backward_solver``), takes a part of that kind: a name, a dict with a ``"name"`` and options,
    or a module.

    >>> part_kind("backward_solver")
    'solver'
    >>> part_kind("alpha") is None
    True
    """
    return next((k for k in KINDS if option == k or option.endswith(f"_{k}")), None)
