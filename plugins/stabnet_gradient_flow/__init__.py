"""Non-expansive blocks by gradient flows and their kin, and networks with certified radii."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

_LAZY = {
    "Activation": ".activations",
    "NormEstimate": ".norms",
    "Operator": ".operators",
    "feed_forward_activation": ".activations",
    "max_min": ".activations",
    "monotone_activation": ".activations",
    "operator": ".operators",
}

__all__ = [
    "Activation",
    "NormEstimate",
    "Operator",
    "feed_forward_activation",
    "max_min",
    "monotone_activation",
    "operator",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the blocks, models and objectives of the plugin."""
