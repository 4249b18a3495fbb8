"""Lyapunov training: losses, fields and models of LyaNet, and what they guarantee."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

_LAZY: dict[str, str] = {}

__all__ = ["stabnet_register"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the parts of Lyapunov training."""
