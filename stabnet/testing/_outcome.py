"""What a check can say: it passed, it failed, or it does not apply."""

from __future__ import annotations

import unittest
from dataclasses import dataclass
from typing import Literal, final

from ..plugin import Entry

__all__ = ["CheckResult", "ConformanceError", "SkipCheck", "require"]


class ConformanceError(AssertionError):
    """A part breaks its contract; the message says what was expected and what was found."""


class SkipCheck(unittest.SkipTest):
    """A check does not apply, for the reason given. Pytest and unittest report it as skipped."""


@final
@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check of one entry.

    Attributes:
        entry: the registered name that was checked.
        check: the name of the check.
        status: how it went.
        message: why it failed or was skipped; empty if it passed.
        seconds: how long it took.
    """

    entry: Entry
    check: str
    status: Literal["passed", "failed", "skipped"]
    message: str = ""
    seconds: float = 0.0


def require(condition: bool, entry: Entry, expected: str, found: object) -> None:
    """Raise :class:`ConformanceError`, naming the entry, unless the condition holds."""
    if not condition:
        raise ConformanceError(f"{entry.kind}/{entry.name}: expected {expected}; found {found}")
