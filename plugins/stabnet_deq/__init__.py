"""Deep equilibrium models: the paper's cell, fixed-point solvers, and the plain DEQ classifier."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "Anderson": ".solvers.anderson",
    "DEQCell": ".cell",
    "Picard": ".solvers.picard",
    "deq": ".deq",
}

__all__ = ["Anderson", "DEQCell", "Picard", "deq"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the cell, the solvers and the model."""
    registrar.cell(
        "deq",
        "stabnet_deq.cell:DEQCell",
        summary="two linear layers with ReLU and batch normalization, driven by the features",
        reference=(references.LYADEQ, references.DEQ),
        example={"state_shape": (6,), "feature_shape": (6,)},
    )
    registrar.solver(
        "picard",
        "stabnet_deq.solvers.picard:Picard",
        summary="plain fixed-point iteration",
        example={"tolerance": 1e-11, "max_evaluations": 500},
    )
    registrar.solver(
        "anderson",
        "stabnet_deq.solvers.anderson:Anderson",
        summary="Anderson acceleration (type II) with a safeguard",
        reference=references.ANDERSON,
        example={"tolerance": 1e-11, "max_evaluations": 200},
    )
    registrar.model(
        "deq",
        "stabnet_deq.deq:deq",
        summary="deep equilibrium classifier: backbone, equilibrium of a cell, head",
        reference=references.DEQ,
        example={
            "in_shape": (1, 8, 8),
            "num_outputs": 3,
            "backbone": {"name": "linear", "width": 6},
            "solver": {"name": "anderson", "tolerance": 1e-11, "max_evaluations": 200},
        },
    )
