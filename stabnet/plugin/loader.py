"""The loader: finds plugins, loads each on its own, and keeps count of what failed."""

from __future__ import annotations

import inspect
import os
import threading
import traceback
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from ..errors import PluginError
from . import hookspec
from .registrar import Registrar
from .registry import Entry, Provider, Registry

__all__ = ["Plugins", "Report", "discover"]


@dataclass(frozen=True)
class Report:
    """What became of one plugin.

    Attributes:
        provider: the plugin and its distribution.
        module: the module that the entry point names.
        status: whether it was loaded, left out on request, or failed.
        names: how many names it registered.
        hooks: the hooks it implements.
        error: why it failed, in one line.
        details: the traceback of the failure.
    """

    provider: Provider
    module: str
    status: Literal["loaded", "disabled", "failed"]
    names: int = 0
    hooks: tuple[str, ...] = ()
    error: str = ""
    details: str = ""


def discover() -> list[EntryPoint]:
    """Return the installed plugins, first-party first, then by distribution and name."""

    def order(point: EntryPoint) -> tuple[bool, str, str]:
        distribution = _provider(point).distribution
        return distribution != hookspec.PROJECT, distribution, point.name

    return sorted(entry_points(group=hookspec.PROJECT), key=order)


def _provider(point: EntryPoint) -> Provider:
    """Return who is behind an entry point; a damaged distribution may not know its own name."""
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
    except Exception:
        name, version = "", ""
    return Provider(name or "unknown", version or "", point.name)


class Plugins:
    """The plugins of a process: loaded on first use, each rolled back whole if it fails.

    Args:
        points: the entry points to load; by default the installed ones.
        environment: where ``STABNET_STRICT`` and ``STABNET_DISABLE_PLUGINS`` are looked up.
    """

    def __init__(
        self,
        points: Iterable[EntryPoint] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._points = points
        self._environment = os.environ if environment is None else environment
        self._registry = Registry()
        self._reports: list[Report] = []
        self._loaded = False
        self._lock = threading.RLock()

    @property
    def registry(self) -> Registry:
        """The registry, with every plugin loaded."""
        self._load()
        return self._registry

    @property
    def reports(self) -> tuple[Report, ...]:
        """What became of each plugin."""
        self._load()
        return tuple(self._reports)

    def add(self, entries: Mapping[Entry, bool]) -> None:
        """Add entries from a script, after the plugins."""
        self.registry.add(entries)

    def failures(self) -> str:
        """Return a sentence about the plugins that failed, or nothing."""
        failed = [f"{r.provider.plugin} ({r.error})" for r in self.reports if r.status == "failed"]
        return f"Plugins that failed to load: {'; '.join(failed)}" if failed else ""

    def _load(self) -> None:
        with self._lock:  # another thread waits for a whole registry
            if self._loaded:
                return
            # Set first: a plugin whose import asks for a name must not start the loading again.
            self._loaded = True
            points = discover() if self._points is None else list(self._points)
            disabled = self._disabled()
            try:
                for point in points:
                    self._load_one(point, disabled)
            except BaseException:
                # Strict mode, or an interrupt: the next use starts afresh instead of half loaded.
                self._loaded, self._registry, self._reports = False, Registry(), []
                raise

    def _disabled(self) -> set[str]:
        text = self._environment.get("STABNET_DISABLE_PLUGINS", "")
        return {word.strip() for word in text.split(",") if word.strip()}

    def _load_one(self, point: EntryPoint, disabled: set[str]) -> None:
        provider = _provider(point)
        if f"{provider.distribution}:{point.name}" in disabled:
            self._reports.append(Report(provider, point.value, "disabled"))
            return
        before = self._registry.copy()  # its import may have registered names as a script does
        try:
            hooks, entries = _registrations(point, provider)
            self._registry.add(entries)
        except (Exception, SystemExit) as error:
            self._registry = before
            if self._environment.get("STABNET_STRICT", "") not in ("", "0"):
                raise PluginError(
                    f"plugin {point.name!r} of {provider} failed to load: {_one_line(error)}"
                ) from error
            report = Report(
                provider,
                point.value,
                "failed",
                error=_one_line(error),
                details=traceback.format_exc(),
            )
            self._reports.append(report)
            warnings.warn(
                f"plugin {point.name!r} of {provider} was left out: {report.error}. "
                "`stabnet plugins` shows details",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._reports.append(Report(provider, point.value, "loaded", len(entries), hooks))


class _Manager(pluggy.PluginManager):
    """A plugin manager that reads no attribute a plugin supplies lazily.

    Older releases of pluggy look at everything that ``dir`` names, which would import torch through
    the ``__getattr__`` of a module.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Return what pluggy does, for attributes that are there already."""
        missing = object()
        if inspect.getattr_static(plugin, name, missing) is missing:
            return None
        return super().parse_hookimpl_opts(plugin, name)


def _registrations(
    point: EntryPoint, provider: Provider
) -> tuple[tuple[str, ...], dict[Entry, bool]]:
    """Import one plugin and return the hooks it implements and what it registers.

    A pluggy manager per plugin: what one plugin does to it cannot reach the others.
    """
    manager = _Manager(hookspec.PROJECT)
    manager.add_hookspecs(hookspec)
    plugin = point.load()
    manager.register(plugin, name=f"{provider.distribution}:{provider.plugin}")
    manager.check_pending()
    callers = manager.get_hookcallers(plugin) or ()
    if not callers:
        raise PluginError(
            f"{point.value} implements no hook; define stabnet_register(registrar) and mark it "
            "with @stabnet.hookimpl"
        )
    registrar = Registrar(provider)
    manager.hook.stabnet_register(registrar=registrar)
    return tuple(caller.name for caller in callers), registrar.entries


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
