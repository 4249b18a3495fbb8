"""How names become objects: hook, registrar, registry, loader and build. Imports no torch."""

from .build import Info, build, cite, entries, info, list_models, plugins, register
from .hookspec import hookimpl, stabnet_register
from .kinds import KINDS, Kind, part_kind
from .loader import Plugins, Report
from .options import CONFIG_ATTRIBUTE, undescribed
from .registrar import Registrar
from .registry import Entry, Provider, Registry

__all__ = [
    "CONFIG_ATTRIBUTE",
    "KINDS",
    "Entry",
    "Info",
    "Kind",
    "Plugins",
    "Provider",
    "Registrar",
    "Registry",
    "Report",
    "build",
    "cite",
    "entries",
    "hookimpl",
    "info",
    "list_models",
    "part_kind",
    "plugins",
    "register",
    "stabnet_register",
    "undescribed",
]
