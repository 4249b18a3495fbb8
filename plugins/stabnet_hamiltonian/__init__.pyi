import stabnet

from .blocks.hamiltonian import Hamiltonian, hamiltonian
from .blocks.phase_lift import PhaseLift
from .fields.energy import LayerEnergy
from .fields.hamiltonian_field import HamiltonianField
from .fields.separable_hamiltonian import SeparableHamiltonian
from .integrators.implicit_midpoint import ImplicitMidpoint
from .integrators.symplectic import SymplecticIntegrator, leapfrog, symplectic_euler, yoshida4
from .models.hamiltonian_net import hamiltonian_net
from .reconstruction import Reconstruction, reconstruction_error
from .reversible import Reversible
from .scheme import SCHEMES, Scheme, compose, inverse_step, step

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

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
