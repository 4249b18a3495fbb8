"""Adversarial attacks: searches for a misclassified image within a ball around the given one."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from .references import APGD as _APGD
from .references import IFGSM as _IFGSM
from .references import LYADEQ, TORCHATTACKS
from .references import PGD as _PGD

__all__ = ["APGD", "IFGSM", "PGD", "PGDL2", "paper_steps", "stabnet_register"]

_LAZY = {
    "APGD": ".apgd",
    "IFGSM": ".linf",
    "PGD": ".linf",
    "PGDL2": ".l2",
    "paper_steps": ".steps",
}


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the attacks."""
    registrar.attack(
        "apgd",
        "stabnet_adversarial.apgd:APGD",
        summary="Auto-PGD: ascent that chooses its step size, in the l2 or l-infinity ball",
        reference=_APGD,
        example={"norm": "l2", "eps": 64 / 255, "steps": 4, "restarts": 2, "loss": "margin"},
    )
    registrar.attack(
        "ifgsm",
        "stabnet_adversarial.linf:IFGSM",
        summary="iterated fast gradient sign method (BIM) in the l-infinity ball",
        reference=(_IFGSM, TORCHATTACKS, LYADEQ),
        example={"eps": 4 / 255, "steps": 2},
    )
    registrar.attack(
        "pgd",
        "stabnet_adversarial.linf:PGD",
        summary="projected gradient ascent in the l-infinity ball from a random start",
        reference=(_PGD, TORCHATTACKS, LYADEQ),
        example={"eps": 4 / 255, "steps": 2},
    )
    registrar.attack(
        "pgd_l2",
        "stabnet_adversarial.l2:PGDL2",
        summary="projected gradient ascent in the l2 ball from random starts",
        reference=_PGD,
        example={"eps": 64 / 255, "steps": 3},
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
