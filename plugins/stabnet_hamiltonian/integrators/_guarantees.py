"""What is guaranteed of the steps of a symplectic integrator."""

from __future__ import annotations

from stabnet.interfaces import Guarantee

__all__ = ["step_guarantee"]


def step_guarantee(needs: str, source: str, *assumptions: str) -> Guarantee:
    """Return that steps are symplectic if the field is as ``needs`` says, which is for the field.

    It says nothing of convergence or robustness.
    """
    return Guarantee(
        claim="the Jacobian of every step in the state is symplectic, so that its operator norm is "
        "at least 1: the largest gradients do not vanish (small ones may, and this says nothing of "
        "convergence, or of perturbed inputs)",
        formula="MᵀJM = J, ‖M‖₂ ≥ 1 for M = ∂z₊/∂z",
        source=source,
        status="conditional",
        assumptions=(needs, *assumptions, "exact arithmetic, up to rounding"),
        detail=f"open to the integrator: that {needs}",
    )
