"""Hamiltonian fields, symplectic integrators and networks that are inverted exactly."""

from __future__ import annotations

import importlib
from typing import Any

import stabnet

from . import references

_LAZY = {
    "Hamiltonian": ".blocks.hamiltonian",
    "HamiltonianField": ".fields.hamiltonian_field",
    "ImplicitMidpoint": ".integrators.implicit_midpoint",
    "LayerEnergy": ".fields.energy",
    "PhaseLift": ".blocks.phase_lift",
    "Reconstruction": ".reconstruction",
    "Reversible": ".reversible",
    "SCHEMES": ".scheme",
    "Scheme": ".scheme",
    "SeparableHamiltonian": ".fields.separable_hamiltonian",
    "SymplecticIntegrator": ".integrators.symplectic",
    "compose": ".scheme",
    "hamiltonian": ".blocks.hamiltonian",
    "hamiltonian_net": ".models.hamiltonian_net",
    "inverse_step": ".scheme",
    "leapfrog": ".integrators.symplectic",
    "reconstruction_error": ".reconstruction",
    "step": ".scheme",
    "symplectic_euler": ".integrators.symplectic",
    "yoshida4": ".integrators.symplectic",
}

__all__ = [
    "SCHEMES",
    "Hamiltonian",
    "HamiltonianField",
    "ImplicitMidpoint",
    "LayerEnergy",
    "PhaseLift",
    "Reconstruction",
    "Reversible",
    "Scheme",
    "SeparableHamiltonian",
    "SymplecticIntegrator",
    "compose",
    "hamiltonian",
    "hamiltonian_net",
    "inverse_step",
    "leapfrog",
    "reconstruction_error",
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
    _register_networks(registrar)


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


def _register_networks(registrar: stabnet.Registrar) -> None:
    registrar.block(
        "hamiltonian",
        "stabnet_hamiltonian.blocks.hamiltonian:hamiltonian",
        summary="one step of a symplectic scheme on a separable field, inverted exactly",
        reference=references.SNN,
        example={"state_shape": (4,), "scheme": "leapfrog"},
    )
    registrar.block(
        "reversible",
        "stabnet_hamiltonian.reversible:reversible",
        summary="chain of invertible blocks; its memory in training does not grow with depth",
        reference=(references.REVERSIBLE, references.SNN),
        example={"state_shape": (2, 3, 3), "depth": 3, "checkpoint_every": 2},
    )
    registrar.block(
        "phase_lift",
        "stabnet_hamiltonian.blocks.phase_lift:PhaseLift",
        summary="states (q, p) from inputs, by zeros",
        reference=references.SNN,
        example={"state_shape": (3, 2, 2), "width": 6},
    )
    registrar.model(
        "hamiltonian_net",
        "stabnet_hamiltonian.models.hamiltonian_net:hamiltonian_net",
        summary="deep network of Hamiltonian blocks, trained at constant memory",
        reference=(references.SNN, references.REVERSIBLE),
        example={"in_shape": (1, 4, 4), "num_outputs": 3, "width": 2, "blocks": (2, 1)},
    )
