"""What is guaranteed of the exact flow of a Hamiltonian."""

from __future__ import annotations

from stabnet.interfaces import Guarantee

__all__ = ["flow_guarantees"]

_ASSUMPTIONS = (
    "H is twice differentiable",
    "exact arithmetic, up to rounding",
    "the flow is exact: 'symplectic_euler', 'leapfrog', 'yoshida4' and 'implicit_midpoint' are "
    "symplectic as well, and keep H nearly; explicit methods are not",
)


def flow_guarantees(source: str) -> list[Guarantee]:
    """Return that the flow keeps ``H`` and is symplectic, which says nothing of convergence."""
    return [
        Guarantee(
            claim="the Jacobian of the flow in the state is symplectic, so that its operator norm "
            "is at least 1: the largest gradients do not vanish (small ones may, and this says "
            "nothing of convergence, or of perturbed inputs)",
            formula="MᵀJM = J, ‖M‖₂ ≥ 1 for M = ∂z(t)/∂z(0)",
            source=source,
            status="by construction",
            assumptions=_ASSUMPTIONS,
        ),
        Guarantee(
            claim="the energy is constant along trajectories of the field",
            formula="H(z(t)) = H(z(0))",
            source="dH/dt = ∇HᵀJ∇H = 0",
            status="by construction",
            assumptions=_ASSUMPTIONS,
        ),
    ]
