"""Hamiltonian fields, symplectic integrators and networks that are inverted exactly."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

_LAZY: dict[str, str] = {}

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the fields, integrators, blocks and models of the plugin."""
