"""The standard parts: backbones, plain fields, integrators, heads, objectives and data sets."""

from __future__ import annotations

import stabnet


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the standard parts."""
