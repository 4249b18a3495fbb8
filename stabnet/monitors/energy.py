"""Energies along the trajectory of a flow, and along the layers of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..flow import Flow
from ..interfaces import Block, Features, HasEnergy, VectorField
from ..model import StabilityModel
from .layers import Layer, inspected

__all__ = ["energies", "energy_changes"]


def energies(
    model: StabilityModel,
    x: Float[Tensor, "batch ..."],
    times: Sequence[float] | Float[Tensor, " times"] | None = None,
) -> Float[Tensor, "times batch"]:
    """Return the energy along the trajectories of a flow.

    Args:
        model: a model whose dynamics is a :class:`stabnet.Flow` of a field with an energy.
        x: inputs ``(batch, *in_shape)``.
        times: when, at least two times; the flow's own if ``None``.

    Returns:
        ``H(z(t), u)`` for each time and sample.

    Raises:
        InvalidInputError: for another model, or inputs or times that it does not take.
    """
    flow = model.dynamics if isinstance(model, StabilityModel) else None
    if not isinstance(flow, Flow):
        raise InvalidInputError(
            f"energies are those of a model whose dynamics is a Flow; got {_described(model)}. Use "
            "energy_changes for a model of blocks"
        )
    field = flow.vector_field
    if not isinstance(field, HasEnergy):
        raise InvalidInputError(
            f"the field {type(field).__name__} has no energy(z, u); fields such as "
            "'separable_hamiltonian' have one"
        )
    with inspected(model, x, None) as (*_, u):
        states = flow(u, times).states
        driving = None if flow.initial == "features" else u
        return torch.stack([field.energy(z, driving) for z in states])


def energy_changes(
    model: nn.Module, x: Float[Tensor, "batch ..."], *, u: Features = None
) -> Float[Tensor, "layers batch"]:
    r"""Return by how much each layer changes the energy of its own field.

    .. math:: H_i(z_{i+1}, u) - H_i(z_i, u)

    Args:
        model: a :class:`stabnet.StabilityModel` or a :class:`stabnet.interfaces.Block`.
        x: inputs ``(batch, *in_shape)`` of the model, or states of the block.
        u: features, for a block that depends on them; a model computes its own.

    Returns:
        One change for each layer and sample; NaN for layers that are no blocks with a
        ``vector_field`` that has an energy.

    Raises:
        InvalidInputError: for a model without layers, one of which none has an energy, or inputs
            that it does not take.
    """
    with inspected(model, x, u) as (layers, z, features):
        if not any(_energy(layer) for layer in layers):
            raise InvalidInputError(
                f"no layer of {_described(model)} is a block whose vector_field has an energy; "
                "blocks such as 'hamiltonian' are. Use energies for the trajectory of a flow"
            )
        changes = []
        for layer in layers:
            before, z = z, layer(z, features)
            field = _energy(layer)
            if field is None:
                changes.append(before.new_full((len(before),), torch.nan))
                continue
            driving = features if getattr(field, "feature_shape", ()) else None
            changes.append(field.energy(z, driving) - field.energy(before, driving))
    return torch.stack(changes)


def _energy(layer: Layer) -> HasEnergy | None:
    """Return the field of a layer that is a block with an energy, ``None`` of any other."""
    field = getattr(layer.module, "vector_field", None)
    blocklike = isinstance(layer.module, Block) and isinstance(field, VectorField)
    return field if blocklike and isinstance(field, HasEnergy) else None


def _described(model: nn.Module) -> str:
    if not isinstance(model, StabilityModel):
        return f"a {type(model).__name__}"
    return f"a model whose dynamics is a {type(model.dynamics).__name__}"
