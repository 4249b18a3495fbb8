"""Where data sets are looked for, and the front door to those registered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..plugin import build
from .dataset import Dataset

__all__ = ["data_root", "load"]

_VARIABLE = "STABNET_DATA"


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that data sets are kept in.

    Args:
        root: the folder; ``None`` for what the environment variable ``STABNET_DATA`` names, or
            ``data`` in the working directory if it is unset or empty.
    """
    if root is None:
        root = os.environ.get(_VARIABLE) or "data"
    return Path(root).expanduser().absolute()


def load(
    name: str | Mapping[str, Any] | Dataset,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    **options: Any,
) -> Dataset:
    """Load a data set by name.

    ``load("digits")`` needs nothing; ``load("cifar10", root="~/data", download=True)`` fetches
    what is not there yet. Nothing is downloaded unless asked for.

    Args:
        name: a registered data set; see ``stabnet.entries(kind="dataset")``. Also a dict of its
            name and options, or a data set, which is returned as it is.
        root: the folder to look in, or to download to; see :func:`data_root` for ``None``.
        download: whether to download what is missing.
        options: the data set's own options.

    Returns:
        The data set.

    Raises:
        MissingDataError: if the data are missing, incomplete or damaged; it says where they were
            looked for and what to do.
        UnknownNameError: for a name that nobody has registered.
        InvalidOptionError: for an option that the data set does not have.
    """
    contract = {"root": None if root is None else os.fspath(root), "download": download}
    own = name if isinstance(name, Mapping) else {}
    given = {option: value for option, value in contract.items() if value or option not in own}
    return cast(Dataset, build(cast(Any, name), kind="dataset", **given, **options))
