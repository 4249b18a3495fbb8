"""Checks of the numbers among the options of a part, for plugins to share."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Integral, Real

from .errors import InvalidOptionError

__all__ = ["flag", "number", "shape", "whole"]


_LARGEST = sys.float_info.max


def number(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    where: str = "",
) -> float:
    """Return a finite number within bounds.

    Args:
        name: the option.
        value: its value.
        above: what it must be greater than.
        least: what it must at least be.
        below: what it must be smaller than.
        where: words on where these bounds hold, for the message.

    Raises:
        InvalidOptionError: for anything else.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    # Compared rather than asked of math.isfinite, which fails for integers beyond all floats.
    if real and -_LARGEST <= value <= _LARGEST and value > above and least <= value < below:
        return float(value)
    bounds = (("above", above), ("at least", least), ("below", below))
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
    raise InvalidOptionError(f"{name}={value!r} must be a finite number {wanted} {where}".rstrip())


def whole(name: str, value: int, least: int) -> int:
    """Return a whole number of at least ``least``.

    Raises:
        InvalidOptionError: for anything else.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and value >= least:
        return int(value)
    raise InvalidOptionError(f"{name}={value!r} must be a whole number, at least {least}")


def flag(name: str, value: bool) -> bool:
    """Return a truth value, which texts such as ``"no"`` are not.

    Raises:
        InvalidOptionError: for anything else.
    """
    if isinstance(value, bool):
        return value
    raise InvalidOptionError(f"{name}={value!r} must be True or False")


def shape(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample, without the batch, which has one dimension at least.

    Raises:
        InvalidOptionError: if it is empty or holds anything but positive whole numbers.
    """
    if isinstance(sizes, Sequence) and not isinstance(sizes, str) and len(sizes):
        return tuple(whole(f"each entry of {name}", size, 1) for size in sizes)
    raise InvalidOptionError(
        f"{name} is the shape of one sample without the batch, such as (64,); got {sizes!r}"
    )
