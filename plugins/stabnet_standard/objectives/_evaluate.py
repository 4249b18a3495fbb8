"""What the standard objectives share: a call of the model, and what to log of it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.interfaces import Solution

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module, x: Float[Tensor, "batch ..."]
) -> tuple[Float[Tensor, "batch outputs"], dict[str, Tensor]]:
    """Evaluate the model, and collect what its dynamics did.

    Args:
        model: a module with a method ``run(x) -> (outputs, Solution)``, or any other module.
        x: inputs.

    Returns:
        The outputs, and detached scalars: ``nfe``, and for a solve the share of ``converged``
        samples and the largest ``residual``; nothing for a module without ``run``.
    """
    run: Any = getattr(model, "run", None)
    if run is None:
        return model(x), {}
    outputs: Tensor
    solution: Solution
    outputs, solution = run(x)
    # Filled on the device: a copy of a Python number would wait for it.
    logs = {"nfe": torch.full((), float(solution.nfe), device=outputs.device)}
    if solution.converged is not None:
        logs["converged"] = solution.converged.detach().float().mean()
    if solution.residual is not None:
        logs["residual"] = solution.residual.detach().amax()
    return outputs, logs
