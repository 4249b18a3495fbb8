"""Steps and lengths: what attacks accept, and how many steps they take when nobody says."""

from __future__ import annotations

import math
from numbers import Real

from stabnet import InvalidOptionError

__all__ = ["check_length", "check_radius", "check_whole", "paper_steps"]

ROUNDING = 1e-6
"""Far above the rounding error of ``255 · eps``, far below any radius that differs on purpose."""


def paper_steps(eps: float) -> int:
    r"""Return the step count that [LyaDEQ] prescribes for a radius.

    .. math:: n = \max(1, \lfloor \min(255 ε + 4,\; 1.25 · 255 ε) \rfloor)

    that is 2, 5, 7 and 10 at 2, 4, 6 and 8 / 255. The floor forgives rounding: 255 · (k / 255)
    may fall just short of k.

    Args:
        eps: radius in pixel units, in (0, 1].

    Returns:
        The number of steps, at least 1; it never falls as ``eps`` grows.

    Raises:
        InvalidOptionError: for a radius out of range.

    References:
        [LyaDEQ] (14); Kurakin et al. 2017, section 2.2.
    """
    check_radius("eps", eps)
    pixels = 255 * eps
    return max(1, math.floor(min(pixels + 4, 1.25 * pixels) + ROUNDING))


def check_radius(option: str, value: float) -> None:
    """Raise :class:`InvalidOptionError` unless a length lies in (0, 1], in pixel units."""
    if not 0 < value <= 1:
        raise InvalidOptionError(
            f"{option}={value!r} must lie in (0, 1]; it is in units of images in [0, 1], so eight "
            "grey levels are written 8/255"
        )


def check_length(option: str, value: float) -> float:
    """Return an l2 length in pixel units if it is positive and finite.

    Raises:
        InvalidOptionError: otherwise.
    """
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 < value < math.inf):
        raise InvalidOptionError(
            f"{option}={value!r} must be a positive finite number, the l2 length of a perturbation "
            "of images in [0, 1], such as 127/255 = 0.498"
        )
    return value


def check_whole(option: str, value: int) -> int:
    """Return a number of steps or restarts if it is a whole number and at least 1.

    Raises:
        InvalidOptionError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOptionError(f"{option}={value!r} must be a whole number, at least 1")
    return value
