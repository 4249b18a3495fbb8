"""The errors that stabnet raises on purpose.

Every message says what was given, what was expected and what to do. All of them derive from
:class:`StabnetError`, and from the built-in class a caller would reach for.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConvergenceError",
    "InvalidInputError",
    "InvalidOptionError",
    "MissingDataError",
    "MissingExtraError",
    "NameTakenError",
    "PluginError",
    "StabnetError",
    "UndescribedPartError",
    "UnknownNameError",
]


class StabnetError(Exception):
    """Base of every error that stabnet raises on purpose."""


class UnknownNameError(StabnetError, LookupError):
    """A name (of a model, a backbone, a kind, …) that nobody has registered."""


class InvalidOptionError(StabnetError, ValueError):
    """An option that the named part does not have, lacks, or cannot take the value of."""


class InvalidInputError(StabnetError, ValueError):
    """A tensor whose shape, range or content a model or an objective cannot work with."""


class ConvergenceError(StabnetError, RuntimeError):
    """A solve that was asked to converge and did not."""


class PluginError(StabnetError):
    """A plugin that could not be loaded or that registered badly."""


class NameTakenError(PluginError):
    """A name registered twice for one kind without ``override=True``."""


class CheckpointError(StabnetError):
    """A checkpoint that cannot be written or read."""


class UndescribedPartError(CheckpointError):
    """A model holds a part that no registered name can rebuild."""


class MissingDataError(StabnetError, FileNotFoundError):
    """A data set that is not where it was looked for."""


class MissingExtraError(StabnetError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
