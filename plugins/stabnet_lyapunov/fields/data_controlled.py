"""The data-controlled vector field of LyaNet: a choice among corners of a hypercube."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Features, Guarantee, VectorField
from stabnet.values import number

from ..samplers import hypercube_size

__all__ = ["DataControlledField", "least_gain"]

Activation = Literal["prelu", "softplus", "tanh"]


@final
class DataControlledField(VectorField):
    r"""A field that steers the state towards the corner of the class it sees in the features.

    The features of an input are a matrix :math:`W(x)` inside a small network of the state,

    .. math:: r = W_2\, P(W(x)\, P(W_1 z + b_1)) + b_2, \qquad W(x) \in \mathbb R^{h \times h},

    with one shared activation :math:`P`. Each of the ``C`` entries of the state stands for a class,
    whose corner :math:`c_k` is ``corner`` at entry :math:`k` and ``-corner`` elsewhere. The network
    chooses among the corners, in one of two forms:

    - ``simplex`` (smooth where :math:`P` is, Lipschitz in any case): towards their average,
      :math:`F = \tfrac{\mathrm{rate} \cdot \mathrm{gain}}{C} (\sum_k p_k c_k - z)` with
      :math:`p = \mathrm{softmax}(r)`. States never leave the cube that the corners span.
    - ``direction`` (the released one; discontinuous at :math:`r = 0`): along :math:`d = r/\|r\|`,
      :math:`F = \mathrm{rate} \cdot \mathrm{gain} \cdot w\, d` with
      :math:`w = \tfrac1C \sum_k \|c_k - z\|\, \mathrm{softmax}_k((c_k - z)^\top d)`.

    States shared by the batch, ``(1, samples, C)``, go through the first layer once, and then
    through one matrix product with all :math:`W(x)`; no corner is ever formed.

    Args:
        state_shape: ``(C,)``, one entry per class.
        feature_shape: shape of one input's features: ``h²`` numbers.
        form: which of the two.
        rate: the rate of convergence that the field is to reach, :math:`\kappa` of its loss.
        gain: start value of the buffer ``gain``, which a gain schedule may change. ``None`` for
            :func:`least_gain` in simplex form, and for the released 100 in direction form.
        corner: half the side of the cube.
        dropout: probability of dropout before each activation, in training. Shared states share
            the first of its masks.
        activation: :math:`P`; ``"prelu"`` has one learned slope, 0.25 at first.

    Attributes:
        gain: the gain, a scalar buffer.

    Raises:
        InvalidOptionError: if the state is not a vector of at least two entries, the features are
            not a square number, or an option is out of range.

    References:
        [LyaNet] section 5 and its released code; the simplex form is the code's alternative.
    """

    gain: Tensor

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int],
        form: Literal["simplex", "direction"] = "simplex",
        rate: float = 5.0,
        gain: float | None = None,
        corner: float = 15.0,
        dropout: float = 0.0,
        activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape or ())
        self.form, self.rate, self.corner = form, rate, corner
        self.activation_name = activation
        _check(self, gain, dropout)
        classes, width = self.state_shape[0], math.isqrt(math.prod(self.feature_shape))
        if gain is None:
            gain = least_gain(rate, classes, corner) if form == "simplex" else 100.0
        self.register_buffer("gain", torch.tensor(float(gain)))
        self.first = nn.Linear(classes, width)
        self.last = nn.Linear(width, classes)
        self.activation = {"prelu": nn.PReLU, "softplus": nn.Softplus, "tanh": nn.Tanh}[
            activation
        ]()
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Evaluate ``F(z, u)``; time does not enter.

        Args:
            t: ignored.
            z: states ``(batch, C)`` or ``(batch or 1, samples, C)``.
            u: features ``(batch, *feature_shape)``.

        Returns:
            ``dz/dt``, ``(batch, C)`` or ``(batch, samples, C)``.

        Raises:
            InvalidInputError: if a shape does not fit.
        """
        r = self.choice(z, u)
        if self.form == "simplex":
            # Σ_k p_k c_k = corner (2p − 1), since the entries of p add up to one.
            target = self.corner * (2 * r.softmax(-1) - 1)
            return (self.gain * (self.rate / self.state_shape[0])) * (target - z)
        return self._along(F.normalize(r, dim=-1), z)

    def choice(self, z: Float[Tensor, "batch ..."], u: Features) -> Float[Tensor, "batch ..."]:
        """Return ``r(z, u)``, from which the corners are chosen; shapes as in :meth:`forward`."""
        matrices = self._matrices(z, u)
        hidden = self.activation(self.dropout(self.first(z)))
        batch, width = matrices.shape[:2]
        if hidden.ndim == 3 and len(hidden) == 1:
            # One product of all shared states with all matrices: (samples, h) by (h, batch · h).
            mixed = F.linear(hidden[0], matrices.reshape(batch * width, width))
            mixed = mixed.unflatten(-1, (batch, width))
            return self._read(mixed).transpose(0, 1)
        if hidden.ndim == 2:
            return self._read(torch.bmm(matrices, hidden.unsqueeze(-1)).squeeze(-1))
        return self._read(torch.bmm(hidden, matrices.mT))

    def guarantees(self) -> tuple[Guarantee, ...]:
        """Return that states of the simplex form stay within the cube; nothing for the other."""
        if self.form != "simplex" or not bool(self.gain >= 0):
            return ()
        return (
            Guarantee(
                claim="a state that starts within the cube of the corners never leaves it; this "
                "speaks of the state, for any input",
                formula="|z_k(0)| ≤ corner ⇒ |z_k(t)| ≤ corner",
                source="[LyaNet] released code, simplex restriction",
                status="by construction",
                assumptions=("the exact flow: a numerical step may leave the cube by its error",),
            ),
        )

    def _read(self, mixed: Tensor) -> Tensor:
        r: Tensor = self.last(self.activation(self.dropout(mixed)))
        return r

    def _along(self, d: Tensor, z: Tensor) -> Tensor:
        """Return the direction form along unit directions ``d``."""
        s, classes = self.corner, self.state_shape[0]
        # ‖c_k − z‖² = (z_k − s)² + Σ_{j≠k} (z_j + s)², summed from both sides of k, since taking
        # one term off the whole sum would cancel near the corner; there the clamp makes the
        # gradient 0. And (c_k − z)ᵀd is 2 s d_k up to what k does not change.
        low = (z + s).square()
        before = F.pad(low[..., :-1].cumsum(-1), (1, 0))
        after = F.pad(low[..., 1:].flip(-1).cumsum(-1).flip(-1), (0, 1))
        squared = (z - s).square() + before + after
        distances = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
        w = ((2 * s * d).softmax(-1) * distances).sum(-1, keepdim=True) / classes
        return (self.gain * self.rate) * w * d

    def _matrices(self, z: Tensor, u: Features) -> Float[Tensor, "batch h h"]:
        """Return the features as matrices, having checked all shapes."""
        if z.ndim not in (2, 3) or z.shape[-1:] != self.state_shape:
            n = self.state_shape[0]
            raise InvalidInputError(
                f"the field takes states (batch, {n}) or (batch, samples, {n}); "
                f"got {tuple(z.shape)}"
            )
        if not isinstance(u, Tensor) or u.shape[1:] != self.feature_shape:
            wanted = ", ".join(map(str, self.feature_shape))
            given = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise InvalidInputError(
                f"the field is driven by features (batch, {wanted}); got {given}"
            )
        shared = z.ndim == 3 and len(z) == 1
        if not shared and len(z) != len(u):
            raise InvalidInputError(
                f"{len(z)} rows of states do not fit {len(u)} rows of features; states have as "
                "many rows, or (1, samples, …) where the batch shares them"
            )
        width = math.isqrt(math.prod(self.feature_shape))
        return u.reshape(len(u), width, width)

    def extra_repr(self) -> str:
        """Return form, rate and corner."""
        return f"form={self.form!r}, rate={self.rate:g}, corner={self.corner:g}"


def least_gain(rate: float, classes: int, corner: float) -> float:
    r"""Return the least gain at which the simplex form can converge at its rate all over the cube.

    Where the field chooses rightly, :math:`p = e_y`, its speed
    :math:`\rho = \mathrm{rate} \cdot \mathrm{gain} / C` gives
    :math:`\dot V = -\rho \sum_{k \ne y} q_k (2 \cdot \mathrm{corner} + z_k - z_y)` with the softmax
    :math:`q` of the state. The hardest states that a search over the cube found (2 to 100 classes)
    are those where all wrong classes are alike, :math:`z_k - z_y = d`; there
    :math:`\dot V \le -\kappa V` takes

    .. math:: \mathrm{gain} \ge C\, \max_{|d| \le 2s}
              \frac{V}{(1 - e^{-V})(2 \cdot \mathrm{corner} + d)}, \qquad
              V = \log(1 + (C - 1) e^d).

    With a greater gain the loss is content with an undecided choice; with a smaller one no choice
    satisfies it.

    Args:
        rate: :math:`\kappa`, positive.
        classes: ``C``, at least 2.
        corner: half the side of the field's cube, positive.

    Raises:
        InvalidOptionError: if the sampled cube reaches the corners, where no field is fast.

    References:
        ``s`` is that of [LyaNet] (49), or 0 where it is not defined.
    """
    try:
        size = hypercube_size(rate, classes)
    except InvalidOptionError:
        size = 0.0
    if size >= corner:
        raise InvalidOptionError(
            f"corner={corner:g} must be greater than the half side {size:.3g} of the cube that "
            f"rate={rate:g} is asked for in; give a greater corner, or a gain"
        )

    def needed(d: float) -> float:
        x = d + math.log(classes - 1)
        V = max(x, 0.0) + math.log1p(math.exp(-abs(x)))
        quotient = V / -math.expm1(-V) if V else 1.0  # where a great rate lets V underflow
        return quotient / (2 * corner + d)

    return classes * max(needed(2 * size * i / 500) for i in range(-500, 501))


def _check(field: DataControlledField, gain: float | None, dropout: float) -> None:
    """Raise :class:`InvalidOptionError` for options that cannot be."""
    if len(field.state_shape) != 1 or field.state_shape[0] < 2:
        raise InvalidOptionError(
            f"state_shape={field.state_shape}: the state of a data-controlled field is a vector "
            "of at least two entries, one per class"
        )
    numbers = math.prod(field.feature_shape)
    if not field.feature_shape or math.isqrt(numbers) ** 2 != numbers:
        raise InvalidOptionError(
            f"feature_shape={field.feature_shape}: the features are a square matrix, so many "
            "numbers as 64 = 8² or 16384 = 128²; give the backbone such a width"
        )
    if field.form not in ("simplex", "direction"):
        raise InvalidOptionError(f"form={field.form!r} is unknown; it is 'simplex' or 'direction'")
    if field.activation_name not in ("prelu", "softplus", "tanh"):
        raise InvalidOptionError(
            f"activation={field.activation_name!r} is unknown; it is 'prelu', 'softplus' or 'tanh'"
        )
    for name, value in (("rate", field.rate), ("corner", field.corner), ("gain", gain)):
        if value is not None:
            number(name, value, above=0)
    number("dropout", dropout, least=0, below=1)
