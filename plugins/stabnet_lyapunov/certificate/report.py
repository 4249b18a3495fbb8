"""The certificate: what was proven of which inputs, and what was only seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Guarantee

__all__ = ["Finding", "LyapunovCertificate"]

Finding = Literal["verified", "falsified", "sampled"]
"""What is known of one input: proven, refuted by a counterexample, or neither."""

_ASSUMPTIONS = (
    "the model is evaluated in exact arithmetic, in eval mode, with the weights of its float64 "
    "copy",
    "IEEE 754 double precision, round to nearest, gradual underflow",
    "torch's exponentials and hyperbolic functions are off by at most a few units in the last "
    "place",
)


@dataclass(frozen=True, eq=False)
class LyapunovCertificate:
    r"""What is known of a set of inputs by Theorem 3 of LyaNet; see :func:`lyapunov_certificate`.

    All tensors are in float64, one entry per input.

    Attributes:
        status: ``"verified"``: the decrease condition at the input itself and a radius were proven.
            ``"falsified"``: the input is classified wrongly, or the *condition* fails at a state,
            which says nothing against the robustness of the class. ``"sampled"``: neither.
        reason: why, in words.
        radius: proven for the model as it is evaluated, step by step; for the exact flow where its
            steps are not fixed, see ``evaluation``; 0 where nothing was.
        radius_flow: proven for the exact flow; 0 where nothing was.
        radius_theorem: the theorem's own :math:`\bar\epsilon` for the exact flow, from the
            Lipschitz constant.
        radius_sampled: for inputs not verified, the radius within which nothing that was looked at
            speaks against it: evidence, no proof; NaN where nothing was looked at.
        end: upper bound of :math:`V(T)` within ``radius``, of what that speaks of.
        end_flow: upper bound of :math:`V(T)` within ``radius_flow``, for the exact flow.
        start: :math:`V_0`, rounded upwards.
        target: :math:`\delta = e^{-\kappa T} V_0`, rounded upwards.
        least: :math:`v_{\min}`.
        decrease: upper bound of :math:`\dot V + \kappa V` at the input itself, over the region;
            infinite where it was not proven to be at most ``slack``.
        lipschitz: upper bound :math:`L` of the change of :math:`\nabla V^\top f` over
            :math:`\epsilon`, on the ball of radius :math:`\epsilon` = ``radius_theorem``, or
            ``eps_max`` where that is 0: all that the theorem needs of a Lipschitz constant, though
            there may be steeper slopes within the ball. NaN if unknown.
        witness: a state at which the decrease condition fails at the input itself; NaN elsewhere.
        violation: :math:`\dot V + \kappa V` at that state, NaN elsewhere.
        kappa: :math:`\kappa`.
        span: :math:`T`.
        slack: how much the decrease condition was allowed to fail.
        eps_max: the largest radius that was tried.
        clip: bounds of all inputs, if there are any.
        evaluation: how the model is evaluated, in words.
        seconds: time that it took.
    """

    status: tuple[Finding, ...]
    reason: tuple[str, ...]
    radius: Float[Tensor, " batch"]
    radius_flow: Float[Tensor, " batch"]
    radius_theorem: Float[Tensor, " batch"]
    radius_sampled: Float[Tensor, " batch"]
    end: Float[Tensor, " batch"]
    end_flow: Float[Tensor, " batch"]
    start: Float[Tensor, " batch"]
    target: Float[Tensor, " batch"]
    least: Float[Tensor, " batch"]
    decrease: Float[Tensor, " batch"]
    lipschitz: Float[Tensor, " batch"]
    witness: Float[Tensor, "batch n"]
    violation: Float[Tensor, " batch"]
    kappa: float
    span: float
    slack: float
    eps_max: float
    clip: tuple[float, float] | None
    evaluation: str
    seconds: float

    def count(self, status: Finding) -> int:
        """Return the number of inputs of a status."""
        return self.status.count(status)

    @property
    def verified_share(self) -> float:
        """Share of the inputs that are verified."""
        return self.count("verified") / len(self.status)

    def guarantee(self) -> Guarantee:
        """Return what was found as a guarantee: of these inputs, and of no others."""
        total, found = len(self.status), {s: self.count(s) for s in ("verified", "falsified")}
        counts = (
            f"{found['verified']} of {total} inputs verified, {found['falsified']} falsified, "
            f"{self.count('sampled')} undecided"
        )
        if found["verified"]:
            radii = self.radius[self.radius > 0]
            return Guarantee(
                claim=f"for {found['verified']} of the {total} inputs examined, every input within "
                f"its own radius (from {float(radii.min()):.4g} to {float(radii.max()):.4g}, "
                "maximum norm) is classified rightly; this speaks of the input",
                formula="V(T; x′) < log 2 for all ‖x′ − x‖∞ ≤ ε̄(x)",
                source="[LyaNet] Theorem 3, as corrected",
                status="verified",
                assumptions=(*self._assumptions(), f"this speaks {self.evaluation}"),
                detail=f"{counts}; interval bounds in float64, rounded outwards, on a covering of "
                "all states with v_min ≤ V ≤ V(0)",
            )
        refuted = found["falsified"] > 0
        return Guarantee(
            claim="the decrease condition of Theorem 3 holds at every input examined"
            if refuted
            else "perturbed inputs keep their class",
            formula="∇V·f(z, x) + κV(z) ≤ 0 where v_min ≤ V(z) ≤ V(0), and the class is right"
            if refuted
            else "V(T; x′) < log 2 for all ‖x′ − x‖∞ ≤ ε̄(x)",
            source="[LyaNet] Theorem 3, as corrected",
            status="falsified" if refuted else "sampled",
            assumptions=self._assumptions(),
            detail=f"{counts}. First: "
            + self.reason[self.status.index("falsified" if refuted else "sampled")],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON; what is not finite becomes ``None``."""
        plain: dict[str, Any] = {
            "kappa": self.kappa,
            "span": self.span,
            "slack": self.slack,
            "eps_max": self.eps_max,
            "clip": None if self.clip is None else _plain(torch.tensor(self.clip)),
            "evaluation": self.evaluation,
            "seconds": self.seconds,
            "verified_share": self.verified_share,
            "guarantee": self.guarantee().to_dict(),
            "status": list(self.status),
            "reason": list(self.reason),
        }
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                plain[name] = _plain(value)
        return plain

    def _assumptions(self) -> tuple[str, ...]:
        inside = () if self.clip is None else (f"inputs stay within {self.clip}",)
        return (*_ASSUMPTIONS, *inside)


def _plain(value: Tensor) -> list[Any]:
    if value.ndim > 1:
        return [_plain(row) for row in value]
    finite = torch.isfinite(value).tolist()
    return [v if known else None for v, known in zip(value.tolist(), finite, strict=True)]
