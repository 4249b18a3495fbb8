"""The registrar: what a plugin registers its names with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partialmethod
from typing import Any, TypeVar

from ..errors import PluginError
from .kinds import KINDS
from .registry import Entry, Provider, nearest

__all__ = ["Registrar", "ScriptRegistrar"]

_F = TypeVar("_F", bound=Callable[..., Any])
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TARGET = re.compile(r"[\w.]+:[\w.]+")


def _checked(entry: Entry) -> Entry:
    """Return the entry, or raise :class:`PluginError` if it is malformed."""
    where = f"plugin {entry.provider.plugin!r} of {entry.provider}"
    if entry.kind not in KINDS:
        raise PluginError(
            f"{where} registers a {entry.kind!r}{nearest(entry.kind, KINDS)}; "
            f"kinds are {', '.join(KINDS)}"
        )
    if not _NAME.fullmatch(entry.name):
        raise PluginError(
            f"{where} registers {entry.kind} {entry.name!r}; a name is lower case letters, "
            "digits and underscores, and starts with a letter"
        )
    if isinstance(entry.target, str) and not _TARGET.fullmatch(entry.target):
        raise PluginError(
            f"{where} registers {entry.kind} {entry.name!r} at {entry.target!r}; "
            "write a target as 'package.module:attribute'"
        )
    if any(not r.lstrip().startswith("@") for r in entry.reference):
        raise PluginError(
            f"{where} registers {entry.kind} {entry.name!r} with a reference that is not BibTeX; "
            "give each reference as one '@…{…}' entry"
        )
    return entry


class Registrar:
    """Collects the registrations of one plugin; nothing counts until the plugin is accepted.

    There is one method per kind: ``registrar.model(name, target, …)``,
    ``registrar.backbone(name, target, …)``, and so on.
    """

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.entries: dict[Entry, bool] = {}

    def register(
        self,
        kind: str,
        name: str,
        target: str | Callable[..., Any],
        *,
        summary: str = "",
        reference: str | Sequence[str] = (),
        example: Mapping[str, Any] | None = None,
        override: bool = False,
    ) -> None:
        """Register a name.

        Args:
            kind: the kind of part.
            name: lower case letters, digits and underscores.
            target: where the factory is, ``"package.module:attribute"``, or the factory itself.
            summary: one line that says what it is.
            reference: BibTeX entries of the methods it implements.
            example: tiny options and shapes that build it, used by the conformance kit.
            override: replace an entry of the same name.

        Raises:
            PluginError: if an argument is malformed or the plugin registers a name twice.
        """
        references = (reference,) if isinstance(reference, str) else tuple(reference)
        entry = _checked(
            Entry(kind, name, target, summary, references, _frozen(example), self.provider)
        )
        if any((e.kind, e.name) == (kind, name) for e in self.entries):
            raise PluginError(
                f"plugin {self.provider.plugin!r} of {self.provider} registers "
                f"{kind} {name!r} twice"
            )
        self.entries[entry] = override

    model = partialmethod(register, "model")
    backbone = partialmethod(register, "backbone")
    vector_field = partialmethod(register, "vector_field")
    cell = partialmethod(register, "cell")
    potential = partialmethod(register, "potential")
    block = partialmethod(register, "block")
    head = partialmethod(register, "head")
    integrator = partialmethod(register, "integrator")
    solver = partialmethod(register, "solver")
    objective = partialmethod(register, "objective")
    attack = partialmethod(register, "attack")
    dataset = partialmethod(register, "dataset")
    optimizer = partialmethod(register, "optimizer")


class _Example(dict[str, Any]):
    """An example's options; hashed by identity, so that entries stay hashable."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def _frozen(example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if example is None else _Example(example)


class ScriptRegistrar:
    """Registers names from a script, one decorator per kind.

    >>> import stabnet
    >>> @stabnet.register.optimizer("doctest_sgd", summary="plain gradient descent")
    ... def sgd(*, params, lr=0.1): ...
    """

    def __init__(self, add: Callable[[Mapping[Entry, bool]], None]) -> None:
        self._add = add

    def __call__(
        self,
        kind: str,
        name: str,
        *,
        summary: str = "",
        reference: str | Sequence[str] = (),
        example: Mapping[str, Any] | None = None,
        override: bool = False,
    ) -> Callable[[_F], _F]:
        """Return a decorator that registers a factory under a name; see :class:`Registrar`."""

        def decorate(factory: _F) -> _F:
            registrar = Registrar(Provider("script", "", factory.__module__))
            registrar.register(
                kind,
                name,
                factory,
                summary=summary or (factory.__doc__ or "").partition("\n")[0],
                reference=reference,
                example=example,
                override=override,
            )
            self._add(registrar.entries)
            return factory

        return decorate

    model = partialmethod(__call__, "model")
    backbone = partialmethod(__call__, "backbone")
    vector_field = partialmethod(__call__, "vector_field")
    cell = partialmethod(__call__, "cell")
    potential = partialmethod(__call__, "potential")
    block = partialmethod(__call__, "block")
    head = partialmethod(__call__, "head")
    integrator = partialmethod(__call__, "integrator")
    solver = partialmethod(__call__, "solver")
    objective = partialmethod(__call__, "objective")
    attack = partialmethod(__call__, "attack")
    dataset = partialmethod(__call__, "dataset")
    optimizer = partialmethod(__call__, "optimizer")
