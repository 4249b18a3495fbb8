"""The orthogonal head."""

from __future__ import annotations

import math
from typing import final

import geotorch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError, StabnetError
from stabnet.interfaces import Guarantee, Status

__all__ = ["OrthogonalHead"]


@final
class OrthogonalHead(nn.Module):
    r"""A linear layer :math:`z \mapsto Wz + b` with orthonormal rows, :math:`WW^\top = I`.

    ``W`` is parametrized on the Stiefel manifold by the Cayley map, so it stays orthogonal through
    training. The layer cannot increase distances; it keeps those within its row space and loses
    the rest.

    Args:
        in_features: size of the state.
        num_outputs: number of outputs, at most ``in_features``.
        bias: whether to add ``b``.

    Raises:
        InvalidOptionError: if there are more outputs than features, whose rows cannot all be
            orthonormal.

    References:
        [LyaDEQ], the orthogonal fully connected layer; Lezcano-Casado 2019 for the
        parametrization.
    """

    def __init__(self, in_features: int, num_outputs: int, bias: bool = True) -> None:
        super().__init__()
        if not 1 <= num_outputs <= in_features:
            raise InvalidOptionError(
                f"an orthogonal head needs 1 <= num_outputs <= in_features for orthonormal rows; "
                f"got {num_outputs} outputs for {in_features} features. Use a wider state"
            )
        self.linear = nn.Linear(in_features, num_outputs, bias)
        geotorch.orthogonal(self.linear, "weight", triv="cayley")

    def forward(self, z: Float[Tensor, "batch n"]) -> Float[Tensor, "batch outputs"]:
        """Return the outputs for states ``(batch, in_features)``."""
        out: Tensor = self.linear(z)
        return out

    def affine(self) -> tuple[Tensor, Tensor | None]:
        """Return ``(W, b)``, so that boxes pass through; see :func:`stabnet.bounds.interval`."""
        return self.linear.weight, self.linear.bias

    @torch.no_grad()
    def orthogonality_error(self) -> float:
        """Return ``‖WWᵀ − I‖_F`` of the weight as it stands, computed in float64."""
        weight = self.linear.weight.double()
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return float(torch.linalg.matrix_norm(weight @ weight.T - identity))

    def lipschitz_bound(self) -> float:
        """Return an upper bound of ``‖W‖₂``, ``√(1 + ‖WWᵀ − I‖_F)``, computed in float64.

        Raises:
            StabnetError: if the weight holds NaN or infinite values.
        """
        # Each of the num_outputs² entries above rounds by less than in_features units.
        rows, columns = self.linear.weight.shape
        rounding = 4 * rows * columns * torch.finfo(torch.float64).eps
        bound = float((1 + self.orthogonality_error() + rounding) ** 0.5)
        if not math.isfinite(bound):
            raise StabnetError("the weight of the orthogonal head is not finite, so has no bound")
        return bound

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the head may increase distances between states."""
        status: Status = "verified"
        try:
            detail = f"L = {self.lipschitz_bound()!r} for the weights as they stand (float64)"
        except StabnetError as error:
            status, detail = "falsified", str(error)
        return [
            Guarantee(
                claim="the head increases no distance between states beyond the factor L, which "
                "is 1 up to rounding (it says nothing of inputs)",
                formula="‖h(z) − h(z′)‖₂ ≤ L ‖z − z′‖₂",
                source="WWᵀ = I by parametrization; L = √(1 + ‖WWᵀ − I‖_F)",
                status=status,
                assumptions=("the layer is evaluated without rounding",),
                detail=detail,
            )
        ]
