"""Jacobian regularization: an objective that keeps the cell of an equilibrium contracting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import Equilibrium, InvalidInputError, InvalidOptionError
from stabnet.interfaces import Cell, Features, Objective, Solution, State

from .equilibria import flatten, transposed_jacobian

__all__ = ["JacobianRegularized", "jacobian_penalty"]


@final
class JacobianRegularized(Objective):
    r"""An objective, and the size of the cell's Jacobian at the equilibria it led to.

    .. math:: \ell(x, y) + \lambda\,\frac{\|J\|_F^2}{n}, \qquad
              J = \frac{\partial f}{\partial z}(z^*, u),

    averaged over the batch, with Hutchinson's unbiased estimate
    :math:`\|J\|_F^2 = \mathbb E\,\|J^\top \varepsilon\|^2` over random signs :math:`\varepsilon`.
    Nothing is solved twice: the equilibria are those that the base objective's last run of the
    model found, one term per equilibrium of the model.

    The gradient is that of the estimate itself. It flows through the cell's parameters and
    features, and through :math:`z^*` as far as the equilibrium's own gradient goes, at no further
    adjoint solve; the authors' released code holds :math:`z^*` fixed in this term.

    Where the cell couples the samples (batch normalization in training mode), ``J`` is the
    Jacobian of the whole batch, cross terms and all, divided by the batch's number of entries; no
    running statistics are updated. Dropout in the cell draws a mask of its own for this term.
    Under ``torch.compile`` the graph breaks around the run of the model.

    Args:
        base_objective: what is minimized besides.
        weight: :math:`\lambda`, at least 0.
        samples: random vectors per step, one vector–Jacobian product each.

    Raises:
        InvalidOptionError: for a weight or a number of samples out of range, or a base objective
            that needs a flow.

    References:
        Bai, Koltun, Kolter: "Stabilizing Equilibrium Models by Jacobian Regularization", 2021,
        section 4; with signs in place of normal vectors, since they never have more variance.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "equilibrium"

    def __init__(
        self,
        base_objective: str | Mapping[str, Any] | nn.Module = "cross_entropy",
        weight: float = 0.1,
        samples: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise InvalidOptionError(f"weight is finite and at least 0; got {weight!r}")
        if samples < 1:
            raise InvalidOptionError(f"samples must be at least 1; got {samples!r}")
        self.base: Objective = stabnet.build(base_objective, kind="objective")
        if self.base.dynamics == "flow":
            raise InvalidOptionError(
                f"the Jacobian is regularized at an equilibrium, but the base objective "
                f"{type(self.base).__name__} needs a flow; choose another, such as 'cross_entropy'"
            )
        self.task = self.base.task
        self.weight = weight
        self.samples = samples

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: a model with at least one :class:`stabnet.Equilibrium` in it.
            x: inputs ``(batch, *in_shape)``.
            y: targets, as the base objective takes them.

        Returns:
            The loss; and ``loss``, ``jacobian`` (the estimate of ``‖J‖_F²/n``) and what the base
            objective logs, its loss as ``base_loss``.

        Raises:
            InvalidInputError: if the base objective's run reached no equilibrium.
        """
        solves: dict[Equilibrium, tuple[Features, Solution]] = {}

        def record(
            module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Solution
        ) -> None:
            assert isinstance(module, Equilibrium)
            solves[module] = (given[0] if given else named["u"], out)

        hooks = [
            m.register_forward_hook(record, with_kwargs=True)
            for m in model.modules()
            if isinstance(m, Equilibrium)
        ]
        try:
            base, logs = self.base(model, x, y)
        finally:
            for hook in hooks:
                hook.remove()
        if not solves:
            raise InvalidInputError(
                f"no equilibrium of {type(model).__name__} was solved while the base objective "
                "ran it; the Jacobian is regularized at an equilibrium. Give a model that has one "
                "as its dynamics or as a stage"
            )
        terms = []
        for equilibrium, (u, solution) in solves.items():
            like = flatten(solution.state)
            signs = torch.randint(0, 2, (self.samples, *like.shape), device=like.device)
            probes = (2 * signs - 1).to(like.dtype)
            terms.append(jacobian_penalty(equilibrium.cell, solution.state, u, probes))
        penalty = torch.stack(terms).sum()
        loss = base + self.weight * penalty
        logged = {"loss": loss.detach(), "base_loss": base.detach(), "jacobian": penalty.detach()}
        return loss, {**logs, **logged}


def jacobian_penalty(
    cell: Cell, z: State, u: Features, probes: Float[Tensor, "samples batch n"]
) -> Float[Tensor, ""]:
    r"""Return the mean of :math:`\|J^\top \varepsilon\|^2/n` over a batch and its probes.

    Its expectation is the mean of :math:`\|J\|_F^2/n` for independent probes with unit covariance;
    it is that exactly for the ``n`` probes :math:`\sqrt n\,e_i` with orthonormal :math:`e_i`.

    Args:
        cell: the cell ``f``.
        z: where its Jacobian ``J`` in the state is taken.
        u: the features there.
        probes: the vectors ``ε``.

    Returns:
        The mean, differentiable in ``z``, ``u`` and the cell's parameters.
    """
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        # Older torch records nothing there, not even for torch.func, and the product is zero.
        with torch.inference_mode(False), torch.no_grad():
            copied = pytree.tree_map_only(Tensor, torch.clone, (z, u, probes))
            return jacobian_penalty(cell, *copied)
    product = transposed_jacobian(cell, z, u)
    return torch.stack([product(probe).square().mean() for probe in probes]).mean()
