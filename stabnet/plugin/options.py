"""Options: how a part is described, and how its options are checked before anything is built."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ..errors import InvalidOptionError, PluginError
from .kinds import KINDS, part_kind
from .registry import Entry, Registry, nearest

__all__ = ["CONFIG_ATTRIBUTE", "describe", "parameters", "resolve", "spelled", "undescribed"]

RESERVED = ("name", "kind", "providers")
"""Keys of a description that are not options."""

_SHAPES = ("in_shape", "state_shape", "feature_shape")
"""Arguments of kind contracts that are shapes."""

CONFIG_ATTRIBUTE = "_stabnet_config"
"""Where :func:`stabnet.build` leaves the description of what it built."""

Description = Mapping[str, Any]


def parameters(entry: Entry) -> dict[str, inspect.Parameter]:
    """Return the keyword parameters of an entry's factory.

    Raises:
        PluginError: if the factory takes ``*args`` or ``**kwargs``, has a parameter that cannot be
            given by name, or lacks an argument of the kind contract.
    """
    factory: Callable[..., Any] = entry.factory()
    found = dict(inspect.signature(factory).parameters)
    where = f"{entry.kind} {entry.name!r} of {entry.provider}"
    for parameter in found.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise PluginError(
                f"{where} takes {parameter}; a registered factory names every option, "
                "so that options can be checked"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise PluginError(
                f"{where} takes {parameter.name} by position only; options are given by name"
            )
    missing = [name for name in KINDS[entry.kind].contract if name not in found]
    if missing:
        raise PluginError(
            f"{where} does not take {', '.join(missing)}, which every {entry.kind} is passed"
        )
    return found


def spelled(part: str | Description, kind: str) -> tuple[str, dict[str, Any]]:
    """Split the description of a part into its name and its options.

    Raises:
        InvalidOptionError: if it has no name, or says that it is of another kind.
    """
    if isinstance(part, str):
        return part, {}
    if not isinstance(part.get("name"), str):
        raise InvalidOptionError(
            f"a {kind} is given as a name, a dict with a 'name' and options, or a module; "
            f"got {dict(part)!r}"
        )
    if part.get("kind", kind) != kind:
        raise InvalidOptionError(
            f"a {part['kind']} was given where a {kind} is expected: {dict(part)!r}"
        )
    return part["name"], {k: v for k, v in part.items() if k not in RESERVED}


def resolve(
    registry: Registry,
    kind: str,
    part: str | Description,
    given: Mapping[str, Any],
    *,
    hint: str = "",
    nested: bool = False,
) -> tuple[Entry, dict[str, Any]]:
    """Check a part and all parts within it, and fill in the defaults.

    Args:
        registry: where names are looked up.
        kind: the kind of part.
        part: its name, or a dict of its name and options.
        given: further options.
        hint: what else to tell who asked for an unknown name.
        nested: whether the part is an option of another, which passes it the kind contract later.

    Returns:
        The entry, and all of its options; parts among them as dicts with a name, or as modules.

    Raises:
        UnknownNameError: for a name that nobody has.
        InvalidOptionError: for an option that is unknown, missing or given twice.
    """
    name, own = spelled(part, kind)
    entry = registry.get(kind, name, hint=hint)
    known = parameters(entry)
    for option in own.keys() & given.keys():
        if not _same(own[option], given[option]):
            raise InvalidOptionError(
                f"{kind} {name!r} was given {option} twice: {own[option]!r} and {given[option]!r}"
            )
    options = _conventional(kind, {**own, **given}, known)
    for option in options:
        if option not in known:
            raise InvalidOptionError(
                f"{kind} {name!r} has no option {option!r}{nearest(option, known)}; "
                f"its options are {', '.join(known)}"
            )
    contract = KINDS[kind].contract
    resolved: dict[str, Any] = {}
    for option, parameter in known.items():
        if option not in options and parameter.default is parameter.empty:
            if nested and option in contract:
                continue
            raise InvalidOptionError(
                f"{kind} {name!r} needs the option {option!r}; its options are {', '.join(known)}"
            )
        if nested and option in contract and option not in options:
            continue
        value = options.get(option, parameter.default)
        if option in _SHAPES and isinstance(value, (str, Real)):
            raise InvalidOptionError(
                f"{option}={value!r} of {kind} {name!r} must be a sequence of sizes, such as (64,)"
            )
        inner = part_kind(option)
        if inner is not None and isinstance(value, (str, Mapping)):
            inner_entry, inner_options = resolve(registry, inner, value, {}, hint=hint, nested=True)
            value = {"name": inner_entry.name, **inner_options}
        elif inner is not None and value is not None:
            refuse_plain(value, f"the option {option!r} of {kind} {name!r}")
        resolved[option] = value
    return entry, resolved


def refuse_plain(part: Any, where: str) -> None:
    """Refuse what cannot be a part: a number, a sequence, nothing at all, or a class.

    Raises:
        InvalidOptionError: if ``part`` is one of those.
    """
    if part is None or isinstance(part, (type, bool, Real, bytes, Sequence, set, frozenset)):
        raise InvalidOptionError(
            f"{where} is given as a name, a dict with a 'name' and options, or a module; "
            f"got {part!r}"
        )


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values of an option are the same, a list being as good as a tuple."""
    if one is other:
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, (Real, str, Mapping)) and bool(one == other)


def _conventional(kind: str, options: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the conventional spellings of a model's shape into the contract's.

    ``num_classes`` is ``num_outputs``; ``in_channels`` and ``image_size`` (an edge, or height and
    width) make up ``in_shape``.
    """
    if kind != "model":
        return options
    if "num_classes" in options and "num_classes" not in known:
        classes = options.pop("num_classes")
        if options.setdefault("num_outputs", classes) != classes:
            raise InvalidOptionError(
                f"num_classes={classes} and num_outputs={options['num_outputs']} are two "
                "spellings of one option; give one"
            )
    spellings = [s for s in ("in_channels", "image_size") if s in options and s not in known]
    if spellings:
        if "in_shape" in options:
            raise InvalidOptionError(
                f"in_shape={options['in_shape']!r} already says what {' and '.join(spellings)} "
                "would; give one or the other"
            )
        default = known["in_shape"].default
        if not isinstance(default, Sequence) or len(default) != 3:
            default = (3, 32, 32)
        channels = options.pop("in_channels", default[0])
        size = options.pop("image_size", default[1:])
        options["in_shape"] = (channels, *((size, size) if isinstance(size, Integral) else size))
    return options


def describe(entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain-data description of a part: its name, its kind and all of its options."""
    return {"name": entry.name, "kind": entry.kind, **_plain(options)}


def _plain(value: Any) -> Any:
    """Turn an option's value into plain data, or into a mark that it cannot be described."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Integral):  # numpy's, for one
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    config = getattr(value, CONFIG_ATTRIBUTE, None)
    if config is not None:
        # The assembly passes the contract again when the whole is rebuilt.
        dropped = (*KINDS[config["kind"]].contract, "kind", "providers")
        return {k: v for k, v in config.items() if k not in dropped}
    return {"unregistered": f"{type(value).__module__}.{type(value).__qualname__}"}


def undescribed(config: Any) -> str | None:
    """Return the path of the first undescribed part in a description, or ``None``."""
    if isinstance(config, Mapping):
        if set(config) == {"unregistered"}:
            return str(config["unregistered"])
        for key, value in config.items():
            found = undescribed(value)
            if found:
                return f"{key} ({found})" if not found.endswith(")") else f"{key}.{found}"
    elif isinstance(config, (list, tuple)):
        return next((f for f in map(undescribed, config) if f), None)
    return None
