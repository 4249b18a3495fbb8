"""Energies, and their gradients: one layer with a closed gradient, or any potential."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Potential, check_field_state
from stabnet.values import shape, whole

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Energy",
    "LayerEnergy",
    "Part",
    "check_used",
    "energy",
    "gradient",
    "value",
]

Part: TypeAlias = str | Mapping[str, Any] | nn.Module


@final
@dataclass(frozen=True)
class Activation:
    """An activation and its antiderivative.

    Attributes:
        sigma: ``σ``.
        gamma: ``γ`` with ``γ' = σ``.
    """

    sigma: Callable[[Tensor], Tensor]
    gamma: Callable[[Tensor], Tensor]


def _log_cosh(x: Tensor) -> Tensor:
    """Return ``log cosh x``, which neither overflows nor, near zero, cancels."""
    size = x.abs()
    near = torch.where(size < 1, x, 0.0)
    far = torch.where(size < 1, 1.0, size)
    # cosh x = 1 + 2 sinh²(x/2) = exp|x| (1 + exp(−2|x|)) / 2.
    small = torch.log1p(2 * torch.sinh(near / 2).square())
    large = far + torch.log1p(torch.exp(-2 * far)) - math.log(2)
    return torch.where(size < 1, small, large)


def _softplus(x: Tensor) -> Tensor:
    """Return ``log(1 + exp x)``; torch's own jumps at its threshold."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _half_square(x: Tensor) -> Tensor:
    """Return ``x²/2``."""
    return x.square() / 2


def _half_square_of_relu(x: Tensor) -> Tensor:
    """Return ``max(x, 0)²/2``."""
    return F.relu(x).square() / 2


def _one_minus_cos(x: Tensor) -> Tensor:
    """Return ``1 − cos x``, which does not cancel near zero."""
    return 2 * torch.sin(x / 2).square()


def _identity(x: Tensor) -> Tensor:
    return x


# Functions with names: a module that holds one can be pickled.
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "tanh": Activation(torch.tanh, _log_cosh),
        "sigmoid": Activation(torch.sigmoid, _softplus),
        "relu": Activation(F.relu, _half_square_of_relu),
        "sin": Activation(torch.sin, _one_minus_cos),
        "identity": Activation(_identity, _half_square),
    }
)
"""Activations whose antiderivative is known in closed form, by name."""


@final
class LayerEnergy(nn.Module):
    r"""The energy of one layer, whose gradient is a closed form.

    .. math:: E(x) = \mathbf{1}^\top \gamma(Ax + b), \qquad
              \nabla E(x) = A^\top \sigma(Ax + b), \qquad \gamma' = \sigma

    with a matrix ``A`` for vectors ``(n,)``, and a zero-padded convolution for images ``(channels,
    height, width)``, whose adjoint is the transposed convolution.

    Args:
        state_shape: shape of one ``x``.
        hidden: rows of ``A``, or channels of ``Ax``; those of ``x`` if ``None``.
        kernel_size: of a convolution; odd.
        activation: ``σ``: tanh, sigmoid, relu, sin or identity.

    Attributes:
        weight: the weights of ``A``, Gaussian at first, with a norm of about one.
        bias: ``b``, one number per hidden feature or channel, zero at first.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        [SNN] (27)–(28).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        hidden: int | None = None,
        kernel_size: int = 3,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        if len(self.state_shape) not in (1, 3):
            raise InvalidOptionError(
                f"the energy of one layer takes vectors (n,) or images (channels, height, width); "
                f"got {self.state_shape}. For others choose potentials of the registry"
            )
        if whole("kernel_size", kernel_size, 1) % 2 == 0:
            raise InvalidOptionError(
                f"kernel_size={kernel_size} must be odd, so that the image keeps its size"
            )
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise InvalidOptionError(
                f"activation={activation!r} is unknown here, where its antiderivative is needed; "
                f"it is one of {', '.join(ACTIVATIONS)}"
            )
        self.activation = activation
        self._functions = ACTIVATIONS[activation]  # older compilers can't look it up
        features = self.state_shape[0]
        rows = features if hidden is None else whole("hidden", hidden, 1)
        kernel = () if len(self.state_shape) == 1 else (kernel_size, kernel_size)
        columns = features * math.prod(kernel)
        scale = math.sqrt(rows) + math.sqrt(columns)
        self.weight = nn.Parameter(torch.randn(rows, features, *kernel) / scale)
        self.bias = nn.Parameter(torch.zeros(rows))

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Evaluate ``E``, one value per state."""
        check_field_state(x, self.state_shape)
        return self._functions.gamma(self._hidden(x)).flatten(-len(self.state_shape)).sum(-1)

    def gradient(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Evaluate ``∇E``."""
        check_field_state(x, self.state_shape)
        y = self._functions.sigma(self._hidden(x))
        if self.weight.ndim == 2:
            return y @ self.weight
        flat = y.reshape(-1, *y.shape[-3:])
        adjoint = F.conv_transpose2d(flat, self.weight, padding=self.weight.shape[-1] // 2)
        return adjoint.reshape(x.shape)

    def extra_repr(self) -> str:
        """Return the options that matter."""
        return f"weight={tuple(self.weight.shape)}, activation={self.activation!r}"

    def _hidden(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch hidden"]:
        """Return ``Ax + b``."""
        if self.weight.ndim == 2:
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, *self.state_shape)
        y = F.conv2d(flat, self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        return y.reshape(*x.shape[:-3], *y.shape[-3:])


Energy: TypeAlias = LayerEnergy | Potential


def energy(
    part: Part | None,
    state_shape: tuple[int, ...],
    hidden: int | None,
    kernel_size: int,
    activation: str,
) -> Energy:
    """Return a potential of the registry or, if there is no part, the energy of one layer.

    Raises:
        InvalidOptionError: for an option out of range, or a module that is no potential of states
            of this shape.
    """
    if part is None:
        return LayerEnergy(state_shape, hidden, kernel_size, activation)
    built = stabnet.build(part, kind="potential", state_shape=state_shape)
    own = tuple(getattr(built, "state_shape", state_shape))
    if not isinstance(built, (LayerEnergy, Potential)) or own != state_shape:
        raise InvalidOptionError(
            f"the field needs a potential (stabnet.interfaces.Potential) of states {state_shape}; "
            f"got {type(built).__name__}{'' if own == state_shape else f' of states {own}'}"
        )
    return built


def check_used(hidden: int | None, *parts: Part | None) -> None:
    """Check that ``hidden`` belongs to an energy of one layer, which there is if a part is not.

    Raises:
        InvalidOptionError: otherwise.
    """
    if hidden is not None and None not in parts:
        raise InvalidOptionError(
            f"hidden={hidden} is for energies of one layer, of which the field has none. Give it "
            "to the potential, as in {'name': …, 'hidden': …}, if that has such an option"
        )


def gradient(
    energy: Energy, x: Float[Tensor, "..."], u: Tensor | None, state_ndim: int
) -> Float[Tensor, "..."]:
    """Return the gradient of an energy.

    Args:
        energy: the energy.
        x: states ``(batch, …)``, or ``(batch or 1, samples, …)``.
        u: features, for a field that has them.
        state_ndim: number of dimensions of one state.
    """
    if isinstance(energy, LayerEnergy):
        return energy.gradient(x)
    return energy.value_and_gradient(_matched(x, u, state_ndim), Context(features=u))[1]


def value(
    energy: Energy, x: Float[Tensor, "..."], u: Tensor | None, state_ndim: int
) -> Float[Tensor, "..."]:
    """Return the values of an energy, one per state; see :func:`gradient`."""
    if isinstance(energy, LayerEnergy):
        return cast("Tensor", energy(x))
    return cast("Tensor", energy(_matched(x, u, state_ndim), Context(features=u)))


def _matched(x: Tensor, u: Tensor | None, state_ndim: int) -> Tensor:
    """Return states of which each has features of its own: gradients at it depend on them."""
    if u is None or x.ndim != state_ndim + 2 or len(u) in (1, len(x)):
        return x
    return x.expand(len(u), *x.shape[1:])
