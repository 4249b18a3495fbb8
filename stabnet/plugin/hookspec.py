"""The one hook of stabnet's plugin system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .registrar import Registrar

__all__ = ["PROJECT", "hookimpl", "stabnet_register"]

PROJECT = "stabnet"
"""The name of the pluggy project and of the entry-point group."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's implementation of the hook."""

_hookspec = pluggy.HookspecMarker(PROJECT)


@_hookspec
def stabnet_register(registrar: Registrar) -> None:
    """Register the names that a plugin supplies.

    Called once, on first use of any name. Give targets as strings (``"package.module:attribute"``)
    so that listing names imports nothing.

    Args:
        registrar: takes the registrations of this plugin.
    """
