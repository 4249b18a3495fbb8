"""The registry: which names there are, and who provides them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import NameTakenError, PluginError, StabnetError, UnknownNameError
from .kinds import KINDS, Kind

__all__ = ["Entry", "Provider", "Registry", "check_kind", "nearest"]


@dataclass(frozen=True)
class Provider:
    """Who supplies a name.

    Attributes:
        distribution: the installed distribution, or ``"script"`` for a name registered in a script.
        version: its version, empty for a script.
        plugin: the entry point's name.
    """

    distribution: str
    version: str
    plugin: str

    def __str__(self) -> str:
        """Return the provider as one word or two, for messages."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        kind: the kind of part.
        name: the name, unique within its kind.
        target: the factory, or where to import it from (``"package.module:attribute"``).
        summary: one line that says what it is.
        reference: BibTeX entries of the methods it implements.
        example: tiny options and shapes that build it, for the conformance kit.
        provider: who supplies it.
    """

    kind: str
    name: str
    target: str | Callable[..., Any]
    summary: str = ""
    reference: tuple[str, ...] = ()
    example: Mapping[str, Any] | None = None
    provider: Provider = field(default=Provider("script", "", "script"))

    def factory(self) -> Callable[..., Any]:
        """Import and return the factory.

        Raises:
            PluginError: if the target cannot be imported or called.
        """
        if callable(self.target):
            return self.target
        module_name, _, attribute = self.target.partition(":")
        where = f"{self.kind} {self.name!r} of {self.provider} points at {self.target!r}, which"
        fault = f"This is a fault of the plugin {self.provider.plugin}"
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except StabnetError:  # such as a missing extra, which says what to do
            raise
        except Exception as error:
            raise PluginError(f"{where} cannot be imported: {error}. {fault}") from error
        if not callable(found):
            raise PluginError(f"{where} is {type(found).__name__}, not a factory. {fault}")
        return found  # type: ignore[no-any-return]


class Registry:
    """All registered names, unique per kind."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the entries, by kind and then by name."""
        order = list(KINDS)
        return iter(sorted(self._entries.values(), key=lambda e: (order.index(e.kind), e.name)))

    def copy(self) -> Registry:
        """Return a registry of the same entries."""
        other = Registry()
        other._entries = dict(self._entries)
        return other

    def of(self, kind: str) -> Mapping[str, Entry]:
        """Return the entries of one kind by name."""
        return MappingProxyType({e.name: e for e in self if e.kind == kind})

    def add(self, entries: Mapping[Entry, bool]) -> None:
        """Add entries, all of them or none.

        Args:
            entries: each new entry, and whether it may override one of the same name.

        Raises:
            NameTakenError: if a name is taken; the message names both providers.
        """
        for entry, override in entries.items():
            taken = self._entries.get((entry.kind, entry.name))
            if taken is not None and not override:
                raise NameTakenError(
                    f"{entry.kind} {entry.name!r} is registered by {entry.provider} (plugin "
                    f"{entry.provider.plugin!r}), but {taken.provider} (plugin "
                    f"{taken.provider.plugin!r}) already provides it; choose another name, or "
                    "register it with override=True"
                )
        self._entries.update({(e.kind, e.name): e for e in entries})

    def get(self, kind: str, name: str, *, hint: str = "") -> Entry:
        """Return the entry of a name.

        Args:
            kind: the kind of part.
            name: the name.
            hint: what else to tell who asked for a name that nobody has.

        Raises:
            UnknownNameError: says the nearest names, what is available and from whom.
        """
        check_kind(kind)
        entry = self._entries.get((kind, name))
        if entry is not None:
            return entry
        message = f"there is no {kind} named {name!r}"
        elsewhere = [e.kind for e in self if e.name == name]
        if elsewhere:
            message += f" ({name!r} is a {' and a '.join(elsewhere)})"
        names = self.of(kind)
        message += nearest(name, names)
        listed = ", ".join(f"{n} ({e.provider.distribution})" for n, e in names.items())
        message += f"; available: {listed or 'none'}"
        raise UnknownNameError(f"{message}.{' ' + hint if hint else ''}")


def check_kind(kind: str) -> Kind:
    """Return the kind of this name.

    Raises:
        UnknownNameError: if there is none.
    """
    if kind not in KINDS:
        raise UnknownNameError(
            f"there is no kind {kind!r}{nearest(kind, KINDS)}; kinds are {', '.join(KINDS)}"
        )
    return KINDS[kind]


def nearest(given: str, known: Mapping[str, Any]) -> str:
    """Return ``"; did you mean …?"`` for the known name nearest to the given one, if any is."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
