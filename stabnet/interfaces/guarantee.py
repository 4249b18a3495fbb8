"""A guarantee: what is claimed, on whose authority, under which assumptions, and how sure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

__all__ = ["Guarantee", "Status"]

Status = Literal["by construction", "verified", "sampled", "falsified", "conditional"]
"""How sure a guarantee is.

``by construction``: it holds for every value of the parameters. ``verified``: it was checked with
sound arithmetic, and ``detail`` says how and where. ``sampled``: evidence only. ``falsified``: a
counterexample is known. ``conditional``: it holds if the open assumptions named in ``detail`` do.
"""


@dataclass(frozen=True)
class Guarantee:
    """One statement about a model.

    Attributes:
        claim: the statement in words, naming the variable it speaks of (state or input).
        formula: the statement as a formula.
        source: paper and equation or theorem.
        status: how sure it is.
        assumptions: what it needs to hold.
        detail: how it was verified, or which assumption is open.
        part: the part of the model that it speaks of; filled in by the assembly.

    Raises:
        ValueError: for an unknown status, or a status that needs a ``detail`` and has none.
    """

    claim: str
    formula: str
    source: str
    status: Status
    assumptions: tuple[str, ...] = ()
    detail: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(
                f"unknown status {self.status!r} of a guarantee; it is one of {get_args(Status)}"
            )
        if self.status != "by construction" and not self.detail:
            raise ValueError(
                f"a guarantee with status {self.status!r} must say in `detail` how it was found "
                "or which assumption is open"
            )

    def of(self, part: str) -> Guarantee:
        """Return the same guarantee, said of the part named ``part``."""
        return replace(self, part=f"{part}.{self.part}" if self.part else part)

    def to_dict(self) -> dict[str, Any]:
        """Return the guarantee as plain data for JSON."""
        return asdict(self)
