"""The gradients that reach the states along the layers of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..interfaces import Features
from ..model import StabilityModel
from .layers import inspected, usable
from .lengths import lengths

__all__ = ["gradient_norms"]


def gradient_norms(
    model: nn.Module,
    x: Float[Tensor, "batch ..."],
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    *,
    u: Features = None,
) -> Float[Tensor, " states"]:
    r"""Return the norm of the gradient of a loss in every state that inputs go through.

    .. math:: \left\| \frac{\partial \ell}{\partial z_i} \right\|_2, \qquad i = 0, \dots, L

    over all entries of all samples: of a loss that is a mean, gradients are smaller the larger the
    batch. States are stored, also those within chains that recompute theirs.

    Args:
        model: a :class:`stabnet.StabilityModel` or a :class:`stabnet.interfaces.Block`.
        x: inputs ``(batch, *in_shape)`` of the model, or states of the block.
        y: what the loss compares outputs with.
        loss: ``(outputs, y)`` to a scalar; the outputs of a block are its states.
        u: features, for a block that depends on them; a model computes its own. They are fixed:
            gradients do not flow through them.

    Returns:
        One norm before the first layer and one behind each, the last being behind the last layer.

    Raises:
        InvalidInputError: for a model without layers, inputs that it does not take, or a loss that
            is no scalar that depends on the outputs.
    """
    with inspected(model, x, u) as (layers, z, features), torch.enable_grad():
        states = [z.detach().requires_grad_()]
        for layer in layers:
            z = layer(states[-1], features)
            # A layer that ignores its state cuts the gradient off, but not that behind it.
            states.append(z if z.requires_grad else z.detach().requires_grad_())
        outputs = model.read(states[-1]) if isinstance(model, StabilityModel) else states[-1]
        value = loss(outputs, usable(y))
        if not (isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(
                f"the loss should be a scalar tensor that can be differentiated; got {shape}"
            )
        gradients = torch.autograd.grad(value, states, materialize_grads=True)
    return torch.stack([lengths(g.reshape(1, -1))[0] for g in gradients])
