"""The system that the certificate speaks of, read from a model as it stands."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, count, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet import Flow, StabilityModel
from stabnet.bounds import affine_parameters, interval

from ..fields.data_controlled import DataControlledField
from .scheme import Scheme, exact_flow, runge_kutta

__all__ = ["NotCoveredError", "System", "read_system"]

MAX_CLASSES = 3
"""More classes make a state too large for a covering."""


class NotCoveredError(Exception):
    """Why a model is not one that the covering speaks of; then only samples can be looked at."""


@dataclass(frozen=True)
class System:
    r"""The simplex form of the data-controlled field, from a state that no input moves.

    States are written by how far they are wrong, in a frame that depends on the label :math:`y`:
    the margins :math:`m_k = z_k - z_y` of the other classes, in ascending order, and last the sum
    :math:`\sigma = \sum_k z_k`. The potential depends on the margins alone, and since the targets
    :math:`\mathrm{corner}\,(2p - 1)` all have the sum :math:`\mathrm{corner}\,(2 - C)`, the sum of
    a state moves from its start straight towards that, whatever the input.

    Attributes:
        model: a copy of the model in float64 and eval mode.
        classes: :math:`C`.
        rate: :math:`a = \mathrm{rate} \cdot \mathrm{gain} / C` of :math:`\dot z = a (s(z) - z)`.
        corner: half the side of the cube.
        start: the initial state.
        span: length of the time interval.
        order: per label, the other classes in ascending order and then the label.
        first: per label, the weight of the first layer in the frame, each entry rounded once.
        first_bias: bias of the first layer.
        gaps: weight and bias of :math:`r_i - r_j` for all :math:`i < j`, each entry rounded once.
        activation: the field's activation.
        flow: the flow itself, as a scheme.
        steps: the steps that the model takes; none if its integrator takes no fixed steps.
    """

    model: StabilityModel
    classes: int
    rate: Fraction
    corner: Fraction
    start: tuple[Fraction, ...]
    span: Fraction
    order: Tensor
    first: Float[Tensor, "labels h n"]
    first_bias: Float[Tensor, " h"]
    gaps: tuple[Float[Tensor, "pairs h"], Float[Tensor, " pairs"]]
    activation: nn.Module
    flow: Scheme
    steps: tuple[Scheme, ...]

    def features(
        self, lower: Float[Tensor, "batch ..."], upper: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch h h"], Float[Tensor, "batch h h"]]:
        """Return sound bounds of the matrices that inputs in a box are mapped to."""
        for module in (self.model.normalize, self.model.backbone):
            lower, upper = interval(module, lower, upper, sound=True)
        width = len(self.first_bias)
        return lower.reshape(-1, width, width), upper.reshape(-1, width, width)

    def states(
        self, framed: Float[Tensor, "batch points n"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch points n"]:
        """Return the states of margins and sums, up to rounding."""
        margins, total = framed[..., :-1], framed[..., -1:]
        own = (total - margins.sum(-1, keepdim=True)) / self.classes
        z = torch.cat([margins + own, own], -1)
        return z.gather(-1, self.order.argsort(1)[y][:, None].expand_as(z))

    def sums(self) -> tuple[Fraction, Fraction]:
        """Return the sum of the initial state's entries, and of the targets'."""
        return sum(self.start, Fraction(0)), self.corner * (2 - self.classes)


def read_system(model: nn.Module) -> System:
    """Read a model's system, as it stands.

    Raises:
        NotCoveredError: says why the covering does not speak of it.
    """
    field, flow = _parts(model)
    assert isinstance(model, StabilityModel)
    double = copy.deepcopy(model).double().eval()
    exact, _ = _parts(double)
    classes = field.state_shape[0]
    rate = Fraction(float(field.gain)) * Fraction(field.rate) / classes
    start = _start(flow, classes)
    order = torch.tensor([[*(k for k in range(classes) if k != y), y] for y in range(classes)])
    weight, first_bias = _linear(exact.first)
    pairs = list(combinations(range(classes), 2))
    rows, offsets = (torch.stack([t[i] - t[j] for i, j in pairs]) for t in _linear(exact.last))
    return System(
        model=double,
        classes=classes,
        rate=rate,
        corner=Fraction(field.corner),
        start=start,
        span=Fraction(flow.times[-1]) - Fraction(flow.times[0]),
        order=order,
        first=torch.stack([_in_frame(weight, y.tolist()) for y in order]),
        first_bias=first_bias,
        gaps=(rows, offsets),
        activation=exact.activation,
        flow=exact_flow(rate),
        steps=_steps(flow, rate),
    )


def _parts(model: nn.Module) -> tuple[DataControlledField, Flow]:
    """Return field and flow of a model, or raise."""
    if not isinstance(model, StabilityModel) or not isinstance(model.dynamics, Flow):
        raise NotCoveredError("it is no flow of a vector field")
    flow, field = model.dynamics, model.dynamics.vector_field
    if not isinstance(field, DataControlledField) or field.form != "simplex":
        raise NotCoveredError(
            "bounds are known for the data-controlled field in simplex form alone"
        )
    if flow.initial == "features":
        raise NotCoveredError("its initial state depends on the input")
    if type(model.head) is not nn.Identity:
        raise NotCoveredError("its head is not the identity")
    if field.state_shape[0] > MAX_CLASSES:
        raise NotCoveredError(
            f"a state of {field.state_shape[0]} entries is too large for a covering, which takes "
            f"up to {MAX_CLASSES}"
        )
    _check_as_its_class(model, flow, field)
    if not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
        raise NotCoveredError("it has weights that are not finite")
    for name in ("gain", "rate", "corner"):
        if not getattr(field, name) > 0:
            raise NotCoveredError(f"its field has the {name} {float(getattr(field, name)):g}")
    if flow.times[-1] <= flow.times[0]:
        raise NotCoveredError("its times do not increase")
    return field, flow


def _check_as_its_class(model: StabilityModel, flow: Flow, field: DataControlledField) -> None:
    """Raise where a part may compute something else than what is bounded here."""
    parts = ((model, StabilityModel), (flow, Flow), (field, DataControlledField))
    for part, kind in (*parts, (field.dropout, nn.Dropout)):
        if type(part) is not kind:
            raise NotCoveredError(f"its {type(part).__name__} is no plain {kind.__name__}")
    activation = field.activation
    slopes = activation.weight.numel() if isinstance(activation, nn.PReLU) else 1
    if type(activation) not in (nn.PReLU, nn.Softplus, nn.Tanh) or slopes > 1:
        raise NotCoveredError(f"its field has the activation {activation}")
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotCoveredError("it has forward hooks, which may change what it computes")
        for name in vars(module):
            if callable(getattr(type(module), name, None)):
                raise NotCoveredError(
                    f"one {type(module).__name__} has another {name!r} than its class"
                )


def _linear(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer of the field, as it stands."""
    weight, bias = affine_parameters(layer) or (None, None)
    if weight is None or bias is None:
        raise NotCoveredError(f"its field has a {type(layer).__name__} for a layer with a bias")
    return weight.detach(), bias.detach()


def _start(flow: Flow, classes: int) -> tuple[Fraction, ...]:
    if flow.initial == "learned":
        return tuple(map(Fraction, flow.start.detach().double().tolist()))
    return (Fraction(0),) * classes


def _in_frame(weight: Float[Tensor, "h n"], order: Sequence[int]) -> Float[Tensor, "h n"]:
    r"""Return the matrix that takes margins and sum to :math:`W_1 z`, rounded from exact numbers.

    With :math:`z_k = m_k + z_y` and :math:`z_y = (\sigma - \sum_k m_k) / n`.
    """
    rows = []
    for row in weight.tolist():
        exact = [Fraction(row[k]) for k in order]
        mean = sum(exact, Fraction(0)) / len(order)
        rows.append([float(w - mean) for w in exact[:-1]] + [float(mean)])
    return torch.tensor(rows, dtype=torch.float64)


def _steps(flow: Flow, rate: Fraction) -> tuple[Scheme, ...]:
    """Return the distinct steps that the flow's integrator takes; none if they are not fixed.

    They are read off its tableau, and tried: targets that change with every evaluation must be
    averaged by the integrator as they are by the steps.
    """
    tableau = getattr(flow.integrator, "tableau", None)
    if tableau is None or not hasattr(flow.integrator, "step_size"):
        return ()
    found: dict[Fraction, Scheme] = {}
    for times in pairwise(flow.times):
        targets = map(math.cos, count())
        start = torch.ones(1, 1, dtype=torch.float64)
        trajectory = flow.integrator(
            lambda t, z, u, s=targets: float(rate) * (next(s) - z), start, times
        )
        steps = max(1, trajectory.nfe // len(tableau.b))
        step = Fraction((times[1] - times[0]) / steps)
        scheme = found.setdefault(step, runge_kutta(tableau.a, tableau.b, rate, step))
        expected, targets = 1.0, map(math.cos, count())
        for _ in range(steps):
            moved = sum(float(w) * s for w, s in zip(scheme.weights, targets, strict=False))
            expected = float(scheme.kept) * expected + moved
        if not math.isclose(expected, float(trajectory.states[-1]), rel_tol=1e-6, abs_tol=1e-6):
            raise NotCoveredError("its integrator takes other steps than those of its tableau")
    return tuple(found.values())
