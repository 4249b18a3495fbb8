"""stabnet_projection."""

from __future__ import annotations

import stabnet


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the parts."""
