"""Hamiltonian fields, symplectic integrators and networks that are inverted exactly."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "HamiltonianField": ".fields.hamiltonian_field",
    "ImplicitMidpoint": ".integrators.implicit_midpoint",
    "LayerEnergy": ".fields.energy",
    "SCHEMES": ".scheme",
    "Scheme": ".scheme",
    "SeparableHamiltonian": ".fields.separable_hamiltonian",
    "SymplecticIntegrator": ".integrators.symplectic",
    "compose": ".scheme",
    "inverse_step": ".scheme",
    "leapfrog": ".integrators.symplectic",
    "step": ".scheme",
    "symplectic_euler": ".integrators.symplectic",
    "yoshida4": ".integrators.symplectic",
}

__all__ = [
    "SCHEMES",
    "HamiltonianField",
    "ImplicitMidpoint",
    "LayerEnergy",
    "Scheme",
    "SeparableHamiltonian",
    "SymplecticIntegrator",
    "compose",
    "inverse_step",
    "leapfrog",
    "step",
    "symplectic_euler",
    "yoshida4",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@stabnet.hookimpl
def stabnet_register(registrar: stabnet.Registrar) -> None:
    """Register the fields, integrators, blocks and models of the plugin."""
    _register_fields(registrar)
    _register_integrators(registrar)


def _register_fields(registrar: stabnet.Registrar) -> None:
    registrar.vector_field(
        "separable_hamiltonian",
        "stabnet_hamiltonian.fields.separable_hamiltonian:SeparableHamiltonian",
        summary="field of an energy K(p) + U(q), each of one layer or any potential",
        reference=references.SNN,
        example={"state_shape": (4,), "hidden": 3},
    )
    registrar.vector_field(
        "hamiltonian_field",
        "stabnet_hamiltonian.fields.hamiltonian_field:HamiltonianField",
        summary="field of any energy H(q, p), which need not be separable",
        reference=references.SNN,
        example={"state_shape": (4, 3, 3), "hidden": 3},
    )


def _register_integrators(registrar: stabnet.Registrar) -> None:
    for name, summary, reference in (
        ("symplectic_euler", "symplectic Euler for separable fields, order 1", references.SNN),
        ("leapfrog", "leapfrog (Störmer–Verlet), order 2", references.STORMER_VERLET),
        ("yoshida4", "Yoshida's composition of leapfrog steps, order 4", references.YOSHIDA),
    ):
        registrar.integrator(
            name,
            f"stabnet_hamiltonian.integrators.symplectic:{name}",
            summary=summary,
            reference=reference,
            example={"step_size": 0.125},
        )
    registrar.integrator(
        "implicit_midpoint",
        "stabnet_hamiltonian.integrators.implicit_midpoint:ImplicitMidpoint",
        summary="implicit midpoint, symplectic for every Hamiltonian field, order 2",
        reference=references.GEOMETRIC_INTEGRATION,
        example={"step_size": 0.125},
    )
