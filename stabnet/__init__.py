"""stabnet: a framework of stability-constrained layers for PyTorch.

A network is a dynamical system, and a stability constraint can be put on its parts: the vector
field, the integrator or solver, the training objective and the head. Importing stabnet does not
import torch; what needs torch is imported when it is first used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    ConvergenceError,
    InvalidInputError,
    InvalidOptionError,
    MissingDataError,
    MissingExtraError,
    NameTakenError,
    PluginError,
    StabnetError,
    UndescribedPartError,
    UnknownNameError,
)
from .plugin import (
    Registrar,
    build,
    cite,
    entries,
    hookimpl,
    info,
    list_models,
    plugins,
    register,
)

if TYPE_CHECKING:
    from . import bounds as bounds
    from . import certify as certify
    from . import data as data
    from . import interfaces as interfaces
    from . import monitors as monitors
    from . import plots as plots
    from . import robustness as robustness
    from . import testing as testing
    from . import training as training
    from .checkpoint import load as load
    from .checkpoint import load_weights as load_weights
    from .checkpoint import save as save
    from .equilibrium import CellField as CellField
    from .equilibrium import Equilibrium as Equilibrium
    from .flow import Flow as Flow
    from .model import StabilityModel as StabilityModel
    from .renormalization import renormalize as renormalize
    from .stack import Stack as Stack
    from .times import checked_times as checked_times
    from .times import time_steps as time_steps

try:
    __version__ = version("stabnet")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "CellField": ".equilibrium",
    "Equilibrium": ".equilibrium",
    "Flow": ".flow",
    "StabilityModel": ".model",
    "Stack": ".stack",
    "checked_times": ".times",
    "load": ".checkpoint",
    "load_weights": ".checkpoint",
    "renormalize": ".renormalization",
    "save": ".checkpoint",
    "time_steps": ".times",
}
_ROOMS = (
    "bounds",
    "certify",
    "data",
    "interfaces",
    "monitors",
    "plots",
    "robustness",
    "testing",
    "training",
)

__all__ = [  # noqa: RUF022 - the lazy names are added below
    "CheckpointError",
    "ConvergenceError",
    "InvalidInputError",
    "InvalidOptionError",
    "MissingDataError",
    "MissingExtraError",
    "NameTakenError",
    "PluginError",
    "Registrar",
    "StabnetError",
    "UndescribedPartError",
    "UnknownNameError",
    "__version__",
    "build",
    "cite",
    "entries",
    "hookimpl",
    "info",
    "list_models",
    "plugins",
    "register",
    "CellField",
    "Equilibrium",
    "Flow",
    "StabilityModel",
    "Stack",
    "load",
    "load_weights",
    "renormalize",
    "save",
    "checked_times",
    "time_steps",
    "bounds",
    "certify",
    "data",
    "interfaces",
    "monitors",
    "plots",
    "robustness",
    "testing",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
