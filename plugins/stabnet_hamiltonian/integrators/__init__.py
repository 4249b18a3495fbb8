"""Integrators whose steps are symplectic for Hamiltonian fields."""
