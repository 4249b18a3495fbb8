"""Hamiltonian vector fields, separable and general."""
