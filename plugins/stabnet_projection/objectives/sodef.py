"""The objective of SODEF: cross entropy, and penalties that ask for a stable equilibrium."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import stabnet
from stabnet import Flow, InvalidOptionError, StabilityModel
from stabnet.interfaces import Features, Objective
from stabnet.robustness import eval_mode
from stabnet.values import number, whole

from ..simplex import class_vectors
from ..stability import dominant, field_jacobian, flow_start

__all__ = ["SODEFLoss"]

Form = Literal["joint", "phased"]
Phase = Literal["features", "stability", "head"]

_WEIGHTS = {"joint": (1.0, 0.05, 0.05), "phased": (0.2, 10.0, 10.0)}
"""Of the speed, the diagonal and the dominance."""

_TRAINED = {
    "features": "backbone with its feature_head",
    "stability": "vector field",
    "head": "head",
}
"""What each phase trains, in words."""

_LIMIT = 30.0
"""Where the exponential is continued by its Taylor polynomial."""


@final
class SODEFLoss(Objective):
    r"""Cross entropy and three penalties on the field at the start of the flow.

    With :math:`f = F(t_0, z(0), u)` and :math:`J` its Jacobian in the state, the paper's *joint*
    form is the mean over samples of

    .. math:: \mathrm{CE} + \alpha_1 \|f\|_2 + \alpha_2 \sum_i e^{J_{ii}}
              + \alpha_3 \sum_i e^{\sum_{j \ne i} |J_{ij}| - |J_{ii}|}

    The released code differs, and trains in *phases*:

    ================  ============================  ==============================================
    what              ``form="joint"`` (paper)      ``form="phased"`` (release)
    ================  ============================  ==============================================
    trains            everything that is not        ``"features"``: backbone and orthogonal layer,
                      frozen, on everything         by cross entropy of fixed class vectors, with
                                                    no flow; then ``"stability"``: the field, by
                                                    the penalties alone; then ``"head"``: the last
                                                    layer, by cross entropy after the flow
    speed             ‖f‖₂                          mean over entries of (50 f)²
    diagonal          sum of exp(J_ii)              mean over entries of exp(J_ii + 1)
    dominance         of the diagonal over rows,    over columns, mean over entries of
                      sum of exp(·)                 exp(0.1 (· + 1))
    weights           1, 0.05, 0.05 (ours)          0.2, 10, 10 (MNIST); CIFAR-10: 0.1, 10, 0
    Jacobians         of every sample               of 8 samples a batch (CIFAR-10: 16)
    ================  ============================  ==============================================

    Both evaluate the field at the start, not at an equilibrium that the flow has reached. What is
    penalized is asked for, not enforced, and only at the inputs of training; nothing of it speaks
    of perturbed inputs.

    The dominance is of ``|J_ii|``, as printed, also where ``J_ii`` is positive: there it rewards a
    larger one. In the joint form, with equal weights, descent on a positive ``J_ii`` alone ends at
    half of ``Σ_{j≠i} |J_ij|``, not below zero.

    An exponential is continued by its Taylor polynomial of order 2 where its exponent exceeds 30,
    so that a very unstable field gives a large gradient instead of an infinite loss; ``extended``
    logs how often.

    In a phase the gradient reaches the parameters named above and no other; what is not trained is
    in eval mode there. Training judges the phase ``"stability"``, whose head may not be trained
    yet, by its loss (the release gives it 15 epochs on MNIST). In several processes, freeze what a
    phase does not train.

    Args:
        form: the paper's or the release's.
        phase: which phase; of ``"phased"`` only, and needed there.
        field_weight: :math:`\alpha_1`, not negative; ``None`` for the form's own.
        diagonal_weight: :math:`\alpha_2`, likewise.
        dominance_weight: :math:`\alpha_3`, likewise.
        samples: Jacobians per batch, of its first samples; ``None`` for the form's own.

    Raises:
        InvalidOptionError: for options out of range, or that do not go together.

    References:
        Kang, Song, Ding, Tay: "Stable neural ODE with Lyapunov-stable equilibrium points for
        defending against adversarial attacks", 2021; released code.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "flow"
    task: Literal["classification", "regression"] = "classification"

    def __init__(
        self,
        form: Form = "joint",
        phase: Phase | None = None,
        field_weight: float | None = None,
        diagonal_weight: float | None = None,
        dominance_weight: float | None = None,
        samples: int | None = None,
    ) -> None:
        super().__init__()
        _check_phase(form, phase)
        given = {
            "field_weight": field_weight,
            "diagonal_weight": diagonal_weight,
            "dominance_weight": dominance_weight,
        }
        set_here = [n for n, v in (*given.items(), ("samples", samples)) if v is not None]
        if phase in ("features", "head") and set_here:
            raise InvalidOptionError(
                f"{', '.join(set_here)} given for phase {phase!r}, which has no penalties; they "
                "belong to phase 'stability'"
            )
        self.form, self.phase = form, phase
        if phase == "stability":
            self.metric = "loss"
        self.weights = tuple(
            default if value is None else number(name, value, least=0)
            for (name, value), default in zip(given.items(), _WEIGHTS[form], strict=True)
        )
        own = 8 if form == "phased" else None
        self.samples = own if samples is None else whole("samples", samples, 1)
        self.supervision: Objective = stabnet.build("cross_entropy", kind="objective")

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: a :class:`stabnet.StabilityModel` whose dynamics is a :class:`stabnet.Flow`.
            x: inputs ``(batch, *in_shape)``.
            y: class labels ``(batch,)``.

        Returns:
            The loss; and to log ``loss``, and as far as the phase has them ``accuracy``,
            ``cross_entropy``, ``nfe``, and of the penalties ``field_term``, ``diagonal_term`` and
            ``dominance_term`` without their weights, the mean ``speed`` ``‖f‖₂``, the share of
            Jacobians that are ``dominant``, and the share of exponentials that were ``extended``.

        Raises:
            InvalidOptionError: if the model is not such, or has nothing to train in the phase.
            InvalidInputError: for labels that do not fit.
        """
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            # Older torch differentiates nothing there, not even by torch.func.
            with torch.inference_mode(False), torch.no_grad():
                return self(model, x.clone(), y.clone())  # type: ignore[no-any-return]
        model, flow = _flowing(model)
        if self.phase == "features":
            u = model.features(x)
            assert isinstance(u, Tensor)
            fixed = class_vectors(model.num_outputs, u[0].numel()).to(u)
            loss, logs = self._supervised(u.flatten(1) @ fixed.T, x, y)
        elif self.phase == "stability":
            with torch.no_grad(), eval_mode(model.backbone):
                u = model.features(x)
            loss, logs = self._penalties(flow, u)
        elif self.phase == "head":
            with torch.no_grad(), eval_mode(model.backbone), eval_mode(flow):
                solution = model.solve(x)
            loss, logs = self._supervised(model.read(solution.state), x, y)
            logs["nfe"] = torch.full((), float(solution.nfe), device=loss.device)
        else:
            loss, logs = self._joint(model, flow, x, y)
        if self.training and torch.is_grad_enabled() and not loss.requires_grad:
            part = "model" if self.phase is None else _TRAINED[self.phase]
            raise InvalidOptionError(
                f"the {part} has no parameter that requires a gradient, so there is nothing to "
                "train here; leave this phase out, or unfreeze what it trains"
            )
        return loss, {"loss": loss.detach(), **logs}

    def _joint(
        self, model: StabilityModel, flow: Flow, x: Tensor, y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the whole loss, from one run of backbone and flow."""
        u = model.features(x)
        solution = flow(u)
        loss, logs = self._supervised(model.read(solution.state), x, y)
        penalty, terms = self._penalties(flow, u)
        nfe = torch.full((), float(solution.nfe), device=loss.device)
        return loss + penalty, {**logs, **terms, "nfe": nfe}

    def _supervised(
        self, logits: Float[Tensor, "batch classes"], x: Tensor, y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the cross entropy of logits, its labels checked."""
        loss: Tensor
        loss, logs = self.supervision(_Known(logits), x, y)
        return loss, {"cross_entropy": loss.detach(), "accuracy": logs["accuracy"]}

    def _penalties(self, flow: Flow, u: Features) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the weighted penalties at the start of the flow, and what to log of them."""
        z, driving = flow_start(flow, u)
        if self.phase is not None:
            z = z.detach()  # the phase trains the field, and no learned start
        t = flow.times[0]
        velocity = _full(flow.vector_field(t, z, driving)).flatten(1)
        some = slice(self.samples)
        driven = driving[some] if isinstance(driving, Tensor) else None
        jacobian = _full(field_jacobian(flow.vector_field, t, z[some], driven))
        diagonal = jacobian.diagonal(dim1=-2, dim2=-1)
        speed = torch.linalg.vector_norm(velocity, dim=1)
        joint = self.form == "joint"
        # Σ_{j≠i} |J_ij| − |J_ii|
        excess = jacobian.abs().sum(-1 if joint else -2) - 2 * diagonal.abs()
        if joint:
            exponents = diagonal, excess
            terms = [speed.mean(), *(_exp(e).sum(1).mean() for e in exponents)]
        else:
            exponents = diagonal + 1, 0.1 * (excess + 1)
            terms = [(50 * velocity).square().mean(), *(_exp(e).mean() for e in exponents)]
        loss = sum(w * term for w, term in zip(self.weights, terms, strict=True))
        assert isinstance(loss, Tensor)
        names = ("field_term", "diagonal_term", "dominance_term")
        beyond = torch.stack([(e.detach() > _LIMIT).float().mean() for e in exponents])
        by: Literal["rows", "columns"] = "rows" if joint else "columns"
        return loss, {
            **{n: term.detach() for n, term in zip(names, terms, strict=True)},
            "speed": speed.detach().mean(),
            "dominant": dominant(jacobian.detach(), by).float().mean(),
            "extended": beyond.mean(),
        }

    def extra_repr(self) -> str:
        """Return form and phase."""
        return f"form={self.form!r}, phase={self.phase!r}"


def _flowing(model: nn.Module) -> tuple[StabilityModel, Flow]:
    """Return the model and its flow.

    Raises:
        InvalidOptionError: if it is no such model, or has none.
    """
    flow = getattr(model, "dynamics", None)
    if isinstance(model, StabilityModel) and isinstance(flow, Flow):
        return model, flow
    raise InvalidOptionError(
        "the objective 'sodef' needs a StabilityModel whose dynamics is a Flow; this is a "
        f"{type(model).__name__} with dynamics {type(flow).__name__}"
    )


@final
class _Known(nn.Module):
    """A model whose logits are known already."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def _check_phase(form: str, phase: str | None) -> None:
    if form not in _WEIGHTS:
        raise InvalidOptionError(f"form={form!r} is unknown; it is 'joint' or 'phased'")
    phases: tuple[str | None, ...] = (None,) if form == "joint" else tuple(_TRAINED)
    if phase not in phases:
        wanted = (
            "no phase" if form == "joint" else f"one of the phases {', '.join(map(str, phases))}"
        )
        raise InvalidOptionError(f"form {form!r} takes {wanted}; got phase={phase!r}")


def _exp(exponent: Tensor) -> Tensor:
    """Return the exponential, continued by its Taylor polynomial of order 2 beyond a limit.

    A tangent would not do: its slope does not grow, and the two penalties of an unstable diagonal
    entry, of weights that are equal, would cancel.
    """
    within = exponent.clamp(max=_LIMIT)
    beyond = exponent - within
    return within.exp() * (1 + beyond + beyond.square() / 2)


def _full(values: Tensor) -> Tensor:
    """Return what autocast computed in half precision as single precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
