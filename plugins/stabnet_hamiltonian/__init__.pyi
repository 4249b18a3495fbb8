import stabnet

from .fields.energy import LayerEnergy
from .fields.hamiltonian_field import HamiltonianField
from .fields.separable_hamiltonian import SeparableHamiltonian
from .integrators.implicit_midpoint import ImplicitMidpoint
from .integrators.symplectic import SymplecticIntegrator, leapfrog, symplectic_euler, yoshida4
from .scheme import SCHEMES, Scheme, compose, inverse_step, step

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

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
