"""What is guaranteed of the exact flow of a Hamiltonian."""

from __future__ import annotations

from stabnet.interfaces import Guarantee, Status

from .energy import Energy, LayerEnergy

__all__ = ["flow_guarantees", "symplectic_status"]

_EXACT = (
    "exact arithmetic, up to rounding",
    "the flow is exact: 'symplectic_euler', 'leapfrog', 'yoshida4' and 'implicit_midpoint' are "
    "symplectic as well, and keep H nearly; explicit methods are not",
)


def symplectic_status(*energies: Energy) -> tuple[Status, tuple[str, ...], str]:
    """Return how sure it is that the energies have symmetric second derivatives.

    Returns:
        The status, what it assumes, and which assumption is open.
    """
    layers = [e for e in energies if isinstance(e, LayerEnergy)]
    others = sorted({type(e).__name__ for e in energies if not isinstance(e, LayerEnergy)})
    assumptions: tuple[str, ...] = ()
    if any(layer.activation == "relu" for layer in layers):
        assumptions = ("no input of a relu is zero, as at almost every state",)
    if not others:
        return "by construction", assumptions, ""
    needs = (
        f"{', '.join(others)}: twice differentiable, with the gradient that belongs to the value, "
        "and each sample's value its own (no batch normalization in training mode)"
    )
    return "conditional", (needs, *assumptions), f"open to the field: {needs}"


def flow_guarantees(source: str, *energies: Energy) -> list[Guarantee]:
    """Return that the flow keeps ``H`` and is symplectic, which says nothing of convergence."""
    status, assumptions, detail = symplectic_status(*energies)
    return [
        Guarantee(
            claim="the Jacobian of the flow in the state is symplectic, so that its operator norm "
            "is at least 1: the largest gradients do not vanish (small ones may, and this says "
            "nothing of convergence, or of perturbed inputs)",
            formula="MᵀJM = J, ‖M‖₂ ≥ 1 for M = ∂z(t)/∂z(0)",
            source=source,
            status=status,
            assumptions=(*assumptions, *_EXACT),
            detail=detail,
        ),
        Guarantee(
            claim="the energy is constant along trajectories of the field",
            formula="H(z(t)) = H(z(0))",
            source="dH/dt = ∇HᵀJ∇H = 0",
            status=status,
            assumptions=(*assumptions, *_EXACT),
            detail=detail,
        ),
    ]
