"""The table of checks: what is checked of which kinds, in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch

from ..plugin import KINDS, Entry
from ._outcome import SkipCheck
from ._specimen import MODULES
from .checks.attacks import check_attack_ball, check_attack_effects
from .checks.calls import (
    check_batch_independence,
    check_determinism,
    check_dtype,
    check_gradients,
    check_no_grad,
    check_shapes,
)
from .checks.claims import check_guarantees, check_lipschitz_bound
from .checks.copies import check_deepcopy, check_save_load, check_state_dict
from .checks.datasets import check_dataset_samples, check_dataset_split
from .checks.effects import check_side_effects
from .checks.integrators import check_integration, check_integration_times
from .checks.models import check_solution
from .checks.objectives import check_objective
from .checks.optimizers import check_optimizer_resumes, check_optimizer_steps
from .checks.registration import check_build, check_config, check_factory, check_registration
from .checks.solvers import check_solver_failure, check_solver_solution
from .checks.states import (
    check_field_samples,
    check_potential_center,
    check_potential_gradient,
    check_potential_samples,
    check_potential_sign,
)

__all__ = ["CHECKS", "FOUNDATIONS", "Check", "checks_for"]

_Function = Callable[[Entry], None]

_DIFFERENTIABLE = tuple(kind for kind in MODULES if kind != "solver")
_WITH_BATCH = tuple(kind for kind in MODULES if kind != "objective")

FOUNDATIONS: dict[_Function, tuple[str, ...]] = {
    check_factory: tuple(KINDS),
    check_build: tuple(KINDS),
    check_shapes: MODULES,
    check_dtype: MODULES,
    check_side_effects: MODULES,
    check_determinism: MODULES,
}
"""Checks that all others (and each later one of these) need, with the kinds they apply to.

Where one of them fails, the others are skipped, so that one fault is one failure.
"""

CHECKS: dict[_Function, tuple[str, ...]] = {
    check_registration: tuple(KINDS),
    check_config: (*MODULES, "attack"),
    check_batch_independence: _WITH_BATCH,
    check_gradients: _DIFFERENTIABLE,
    check_no_grad: MODULES,
    check_state_dict: MODULES,
    check_save_load: MODULES,
    check_deepcopy: MODULES,
    check_guarantees: MODULES,
    check_lipschitz_bound: ("backbone", "cell", "block", "head"),
    check_solution: ("model",),
    check_field_samples: ("vector_field",),
    check_potential_samples: ("potential",),
    check_potential_gradient: ("potential",),
    check_potential_sign: ("potential",),
    check_potential_center: ("potential",),
    check_integration: ("integrator",),
    check_integration_times: ("integrator",),
    check_solver_solution: ("solver",),
    check_solver_failure: ("solver",),
    check_objective: ("objective",),
    check_attack_ball: ("attack",),
    check_attack_effects: ("attack",),
    check_dataset_samples: ("dataset",),
    check_dataset_split: ("dataset",),
    check_optimizer_steps: ("optimizer",),
    check_optimizer_resumes: ("optimizer",),
}
"""All other checks, with the kinds they apply to."""


@final
@dataclass(frozen=True)
class Check:
    """One check of one entry; call it to run it.

    Attributes:
        entry: the entry.
        function: the check.
    """

    entry: Entry
    function: _Function
    _foundations: dict[_Function, str] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The check's name."""
        return self.function.__name__

    def __call__(self) -> None:
        """Run the check, on seeded random numbers and leaving the caller's alone.

        Raises:
            ConformanceError: if the entry breaks its contract.
            SkipCheck: if the check does not apply, or a check that it needs fails.
        """
        if self.function is not check_registration:
            self._require_foundations()
        with _isolated():
            self.function(self.entry)

    def _require_foundations(self) -> None:
        for needed, kinds in FOUNDATIONS.items():
            if needed is self.function:
                return
            if self.entry.kind not in kinds:
                continue
            if needed not in self._foundations:
                self._foundations[needed] = self._fault(needed)
            fault = self._foundations[needed]
            if fault:
                raise SkipCheck(fault)

    def _fault(self, needed: _Function) -> str:
        try:
            with _isolated():
                needed(self.entry)
        except SkipCheck as reason:
            return str(reason)
        except Exception:
            return f"it needs {needed.__name__}, which fails"
        return ""


def checks_for(entry: Entry) -> tuple[Check, ...]:
    """Return the checks that apply to an entry, the fundamental ones first."""
    foundations: dict[_Function, str] = {}
    return tuple(
        Check(entry, function, foundations)
        for function, kinds in (FOUNDATIONS | CHECKS).items()
        if entry.kind in kinds
    )


@contextmanager
def _isolated() -> Iterator[None]:
    """Seed the global generators within the block, and give back what a check may disturb."""
    dtype, state, numpy_state = torch.get_default_dtype(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(state)
            np.random.set_state(numpy_state)
