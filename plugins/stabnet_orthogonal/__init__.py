"""Orthogonal layers: maps that cannot increase distances."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {"OrthogonalHead": ".head"}

__all__ = ["OrthogonalHead"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the orthogonal head."""
    registrar.head(
        "orthogonal",
        "stabnet_orthogonal.head:OrthogonalHead",
        summary="linear layer with orthonormal rows, through the Cayley map",
        reference=references.GEOTORCH,
        example={"in_features": 6, "num_outputs": 3},
    )
