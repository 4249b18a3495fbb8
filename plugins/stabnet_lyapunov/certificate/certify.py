"""The robustness certificate of LyaNet's Theorem 3, proven on a covering."""

from __future__ import annotations

import copy
import math
import time

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel
from stabnet.bounds import NoBoundError
from stabnet.robustness import eval_mode

from .arithmetic import enclosed, potential_interval
from .evidence import Observer, Witnesses
from .look import refute, seen_radius
from .proof import Effort, Proof, prove
from .report import Finding, LyapunovCertificate
from .system import NotCoveredError, System, read_system
from .theorem import Decay

__all__ = ["lyapunov_certificate"]


@torch.no_grad()
def lyapunov_certificate(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    kappa: float,
    *,
    eps_max: float,
    v_min: float | None = None,
    slack: float = 0.0,
    clip: tuple[float, float] | None = None,
    steps: int = 6,
    max_cells: int = 4096,
    max_boxes: int = 1,
    seed: int = 0,
) -> LyapunovCertificate:
    r"""Certify how far inputs can be perturbed before a stable flow changes its answer.

    With the potential :math:`V = -\log p_y`, and a flow from an initial state that no input moves,
    two things are proven for each input, by interval bounds in float64, rounded outwards, on a
    covering of all states :math:`z` that any trajectory may visit with
    :math:`v_{\min} \le V(z) \le V(z(0))`:

    - the hypothesis of the theorem, :math:`\dot V + \kappa V \le \mathrm{slack}` at the input;
    - a radius: within it :math:`\dot V + \kappa V \le \kappa\ell` for an :math:`\ell` with which
      :math:`V(T) \le \max(v_{\min}, e^{-\kappa T} V(z(0)) + \ell (1 - e^{-\kappa T})) < \log 2`,
      so that the class is right.

    The radius is proven twice: for the exact flow, and for the steps of the Runge–Kutta method by
    which the model is evaluated, as they are: no error of the solver is left open. Not counted is
    the rounding of that evaluation, see the assumptions. The proofs are in
    :mod:`stabnet_lyapunov.certificate.theorem`; truncation is none, :math:`V` is cross entropy
    itself, and every proof is made again for the radius that is returned.

    Most can be proven of small ReLU encoders, at a rate well below the one trained for, such as
    0.6 of it, in short steps.

    This covers the data-controlled field in simplex form with up to 3 classes, the identity for
    a head, and backbones that :func:`stabnet.bounds.interval` can bound. What is said of any other
    flow is evidence from the states that were looked at, with the status ``"sampled"``, or a
    counterexample.

    That the decrease fails at a state, status ``"falsified"``, refutes the theorem's hypothesis and
    so this proof; the class may be robust all the same. Cross entropy does not see a common shift
    of all logits: decay of :math:`V` is convergence of the prediction, not of the state.

    Args:
        model: a :class:`stabnet.StabilityModel` whose dynamics is a :class:`stabnet.Flow`. It is
            copied to the CPU in float64 and eval mode, and left as it is.
        x: inputs ``(batch, *in_shape)``.
        y: their class labels.
        kappa: the rate of decay. From the origin the certificate is empty unless
            :math:`\kappa > \log(\log C / \log 2)/T`.
        eps_max: the largest radius that is tried, in the maximum norm and the units of the input.
        v_min: below it nothing is asked of the decrease; :math:`e^{-\kappa T} V(z(0))` if ``None``,
            as in the theorem. Larger values, below :math:`\log 2`, certify the class more easily,
            and less of a decrease.
        slack: how much the decrease may fail at the input; what it fails is counted.
        clip: least and greatest value of an input, such as ``(0, 1)`` for images; none if ``None``.
        steps: halvings in the search for the radius.
        max_cells: the most undecided boxes of states, per box of inputs.
        max_boxes: the most undecided boxes of inputs, per input. With 4 instead of 1, radii of
            points in the plane about double, and the proof takes some ten times as long.
            Inputs of more than 8 numbers are not taken apart.
        seed: seed of the perturbations that are looked at where nothing was proven.

    Returns:
        The certificate.

    Raises:
        InvalidInputError: for a model that is no flow, inputs of a wrong shape, out of range or not
            finite, or labels that do not fit.
        InvalidOptionError: for an option out of range, or a rate too small for any certificate.

    References:
        [LyaNet] Theorem 3.
    """
    began = time.perf_counter()
    _check_options(kappa, eps_max, v_min, slack, steps, max_cells, max_boxes)
    flow = _checked_model(model)
    right = _right(model, x, y, clip)
    x, y = x.detach().cpu().double(), y.cpu().long()  # a uint8 index would be a mask
    observer = Observer(copy.deepcopy(flow).cpu().double().eval(), kappa)
    system, why = _system(observer.model, x)
    decay = _decay(observer, system, x, y, v_min)
    effort = Effort(eps_max, clip, slack, steps, max_cells, max_boxes)
    proof = prove(system, x, y, right, decay, effort) if system else Proof.none(len(x), why)
    worst = refute(observer, system, proof, x, y, decay, slack)
    status, reason = _findings(right, proof, worst)
    open_ = torch.tensor([s != "verified" for s in status]) & right
    seen = seen_radius(observer, x, y, decay, effort, open_, seed)
    return LyapunovCertificate(
        status=status,
        reason=reason,
        radius=proof.radius,
        radius_flow=proof.radius_flow,
        radius_theorem=proof.radius_theorem,
        radius_sampled=seen,
        end=proof.end,
        end_flow=proof.end_flow,
        start=decay.start,
        target=decay.target,
        least=decay.least,
        decrease=proof.decrease,
        lipschitz=proof.lipschitz,
        witness=worst.state,
        violation=worst.violation,
        kappa=kappa,
        span=decay.span,
        slack=slack,
        eps_max=eps_max,
        clip=clip,
        evaluation=proof.evaluation,
        seconds=time.perf_counter() - began,
    )


def _check_options(
    kappa: float,
    eps_max: float,
    v_min: float | None,
    slack: float,
    steps: int,
    max_cells: int,
    max_boxes: int,
) -> None:
    for name, value in (("kappa", kappa), ("eps_max", eps_max)):
        if not 0 < value < math.inf:
            raise InvalidOptionError(f"{name}={value!r} must be positive and finite")
    if v_min is not None and not 0 < v_min < math.log(2):
        raise InvalidOptionError(
            f"v_min={v_min!r} must be in (0, log 2): a state with V ≥ log 2 may be of another class"
        )
    if not 0 <= slack < math.inf:
        raise InvalidOptionError(f"slack={slack!r} must be at least 0 and finite")
    if steps < 0 or max_cells < 1 or max_boxes < 1:
        raise InvalidOptionError(
            f"steps={steps}, max_cells={max_cells} and max_boxes={max_boxes} must be at least 0, 1 "
            "and 1"
        )


def _checked_model(model: nn.Module) -> StabilityModel:
    if not isinstance(model, StabilityModel) or not isinstance(model.dynamics, Flow):
        raise InvalidInputError(
            "the certificate is of flows; got "
            f"{type(model.dynamics if isinstance(model, StabilityModel) else model).__name__}. "
            "Pass a stabnet.StabilityModel whose dynamics is a stabnet.Flow, such as lyanet"
        )
    return model


def _right(
    model: nn.Module, x: Tensor, y: Tensor, clip: tuple[float, float] | None
) -> Bool[Tensor, " batch"]:
    """Return which inputs the model itself classifies rightly, having checked them."""
    if not x.is_floating_point() or not len(x) or not bool(x.isfinite().all()):
        raise InvalidInputError(
            f"inputs are {x.dtype} of shape {tuple(x.shape)}; expected at least one, of finite "
            "floating-point numbers"
        )
    if clip is not None and not (clip[0] <= float(x.min()) and float(x.max()) <= clip[1]):
        raise InvalidInputError(
            f"inputs range from {float(x.min()):.4g} to {float(x.max()):.4g}, outside of "
            f"clip={clip}. Leave clip=None for inputs that have no bounds"
        )
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise InvalidInputError(
            f"labels have shape {tuple(y.shape)} and dtype {y.dtype}; expected one integer class "
            f"per input, shape {tuple(x.shape[:1])}"
        )
    with eval_mode(model):
        logits = model(x)
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise InvalidInputError(
            f"labels go from {int(y.min())} to {int(y.max())}; the model has {logits.shape[1]} "
            "classes, counted from 0"
        )
    right: Tensor = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return right.cpu()


def _system(model: StabilityModel, x: Tensor) -> tuple[System | None, str]:
    """Return the system that can be covered, or ``None`` and why there is none."""
    try:
        system = read_system(model)
        system.features(x[:1], x[:1])
    except (NotCoveredError, NoBoundError) as error:
        return None, f"no covering: {error}"
    return system, ""


def _decay(
    observer: Observer, system: System | None, x: Tensor, y: Tensor, v_min: float | None
) -> Decay:
    """Return what is to decay, having checked that the rate is large enough for anything."""
    times = observer.flow.times
    span = times[-1] - times[0]
    if system is None:
        start = observer.potential(observer.trajectory(x)[1][0], y) * (1 + 1e-9)
    else:
        ends = [
            [enclosed(system.start[k] - system.start[o[-1]]) for k in o[:-1]]
            for o in system.order.tolist()
        ]
        margins = torch.tensor(ends, dtype=torch.float64)
        start = potential_interval(margins[..., 0], margins[..., 1])[1][y]
        span = float(system.span)
    decay = Decay(observer.kappa, span, start, start)
    if not bool((decay.level() > 0).any()):
        least = math.log(float(start.min()) / math.log(2)) / span
        raise InvalidOptionError(
            f"kappa={observer.kappa!r} certifies nothing: V(0) = {float(start.min()):.4g} has only "
            f"decayed to {float(decay.target.min()):.4g} by the end, and the class is right below "
            f"log 2. Take kappa > {least:.4g}"
        )
    least_v = decay.target if v_min is None else torch.full_like(start, v_min)
    return Decay(observer.kappa, span, start, torch.minimum(least_v, start))


def _findings(
    right: Tensor, proof: Proof, worst: Witnesses
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Return what is known of each input, and why."""
    found: list[tuple[Finding, str]] = []
    for i, violation in enumerate(worst.violation.tolist()):
        if not right[i]:
            found.append(("falsified", "the input itself is classified wrongly"))
        elif not math.isnan(violation):
            why = (
                f"the decrease condition fails: V̇ + κV = {violation:.4g} at a state. This refutes "
                "the hypothesis of the theorem, not the robustness of the class"
            )
            found.append(("falsified", why))
        elif proof.verified[i]:
            found.append(("verified", f"proven {proof.evaluation}"))
        elif proof.radius_flow[i] > 0:
            why = f"proven of the exact flow, but not of its steps: {proof.reason}"
            found.append(("sampled", f"{why}; a smaller step_size may do"))
        else:
            found.append(("sampled", proof.reason))
    return tuple(s for s, _ in found), tuple(r for _, r in found)
