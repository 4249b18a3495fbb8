"""How names become objects."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOptionError, UnknownNameError
from .kinds import part_kind
from .loader import Plugins, Report
from .options import CONFIG_ATTRIBUTE, describe, parameters, refuse_plain, resolve
from .registrar import ScriptRegistrar
from .registry import Entry, check_kind, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Info", "build", "cite", "entries", "info", "list_models", "plugins", "register"]

_PLUGINS = Plugins()

register = ScriptRegistrar(_PLUGINS.add)
"""Registers names from a script: ``@stabnet.register.potential("mine")``."""


def build(
    name: str | Mapping[str, Any] | nn.Module, *, kind: str | None = None, **options: Any
) -> Any:
    """Build a part by name.

    ``build("lyadeq", backbone="resnet20", num_classes=10)`` builds a model;
    ``build("icnn", kind="potential", state_shape=(64,))`` any other part. Names and options are
    checked, throughout all nested parts, before anything is built.

    Args:
        name: a registered name; a dict ``{"name": …, **options}`` such as ``model.config``; or an
            object, which is returned as it is.
        kind: the kind of part; ``"model"`` by default.
        options: the options of the part. An option named for a kind (``backbone``) or ending in
            one (``backward_solver``) takes a part in turn.

    Returns:
        The part, which remembers its description (``model.config``).

    Raises:
        UnknownNameError: for a name or kind that nobody has.
        InvalidOptionError: for an option that is unknown, missing, given twice or out of range.
    """
    options.pop("providers", None)  # of a description given as build(**config)
    described = name.get("kind") if isinstance(name, Mapping) else None
    kind = kind or described or "model"
    if not isinstance(name, (str, Mapping)):
        return _as_is(name, kind, options)
    registry = _PLUGINS.registry
    entry, resolved = resolve(registry, kind, name, options, hint=_PLUGINS.failures())
    built = entry.factory()(**resolved)
    config = describe(entry, resolved)
    try:
        setattr(built, CONFIG_ATTRIBUTE, config)
    except AttributeError:  # an object with slots cannot be described, nor need it be
        return built
    config["providers"] = _providers(built, entry)
    return built


def _as_is(part: Any, kind: str, options: Mapping[str, Any]) -> Any:
    contract = check_kind(kind).contract
    refuse_plain(part, f"a {kind}")
    extra = [o for o in options if o not in contract]
    if extra:
        raise InvalidOptionError(
            f"the options {', '.join(extra)} were given for a {kind} that is already built "
            f"({type(part).__name__}); give its name instead, or leave the options out"
        )
    return part


def _parts(built: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and name of every described part within a module, itself first."""
    modules = built.modules() if hasattr(built, "modules") else [built]
    for module in modules:
        config = getattr(module, CONFIG_ATTRIBUTE, None)
        if config is not None:
            yield config["kind"], config["name"]


def _providers(built: Any, entry: Entry) -> dict[str, str]:
    registry = _PLUGINS.registry
    names = dict.fromkeys([(entry.kind, entry.name), *_parts(built)])
    return {f"{kind}/{name}": str(registry.get(kind, name).provider) for kind, name in names}


def entries(pattern: str = "*", *, kind: str | None = None) -> tuple[Entry, ...]:
    """Return the registered entries whose names match a shell pattern.

    Args:
        pattern: such as ``"*deq*"``.
        kind: one kind only.

    Raises:
        UnknownNameError: for an unknown kind.
    """
    if kind is not None:
        check_kind(kind)
    return tuple(
        e
        for e in _PLUGINS.registry
        if fnmatch.fnmatchcase(e.name, pattern) and kind in (None, e.kind)
    )


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the registered models that match a shell pattern."""
    return [e.name for e in entries(pattern, kind="model")]


@dataclass(frozen=True)
class Info:
    """What is known of a registered name.

    Attributes:
        entry: the registration.
        signature: the factory's options with their defaults.
        documentation: the factory's docstring.
        parts: the options that take parts, and the names available for each.
    """

    entry: Entry
    signature: inspect.Signature
    documentation: str
    parts: Mapping[str, tuple[str, ...]]


def info(name: str, *, kind: str | None = None) -> Info:
    """Return what is known of a registered name.

    Args:
        name: the name.
        kind: its kind; needed only where the name is registered for several kinds and none of
            them is a model.

    Raises:
        UnknownNameError: for a name that nobody has, or that is ambiguous.
    """
    kinds = [e.kind for e in entries(kind=kind) if e.name == name]
    if kind is None and len(kinds) > 1 and "model" not in kinds:
        raise UnknownNameError(f"{name!r} is a {' and a '.join(kinds)}; say which kind you mean")
    if kind is None and not kinds:
        close = nearest(name, {e.name: e for e in entries()})
        hint = _PLUGINS.failures()
        raise UnknownNameError(
            f"nothing named {name!r} is registered{close}; `stabnet list` shows every name"
            + (f". {hint}" if hint else "")
        )
    if kind is None:
        kind = "model" if "model" in kinds else kinds[0]
    entry = _PLUGINS.registry.get(kind, name, hint=_PLUGINS.failures())
    found = parameters(entry)
    takes = {option: part_kind(option) for option in found}
    return Info(
        entry,
        inspect.signature(entry.factory()),
        inspect.getdoc(entry.factory()) or "",
        {o: tuple(e.name for e in entries(kind=k)) for o, k in takes.items() if k is not None},
    )


def cite(model: nn.Module) -> str:
    """Return BibTeX for the methods that a model uses: its own and those of all its parts.

    Raises:
        InvalidOptionError: if a name is given; a name alone does not say which parts are used.
    """
    if isinstance(model, str):
        raise InvalidOptionError(
            f"cite takes a model that was built; for the name alone, "
            f"stabnet.info({model!r}).entry.reference holds the BibTeX"
        )
    registry = _PLUGINS.registry
    found = dict.fromkeys(
        reference
        for kind, name in _parts(model)
        for reference in registry.get(kind, name).reference
    )
    return "\n\n".join(reference.strip() for reference in found)


def plugins() -> tuple[Report, ...]:
    """Return what became of each installed plugin."""
    return _PLUGINS.reports
