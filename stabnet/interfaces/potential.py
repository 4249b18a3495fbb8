"""Potentials: the scalar functions that a stable system descends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Context", "Potential"]


@dataclass(frozen=True)
class Context:
    """What a potential may depend on besides the state.

    Attributes:
        features: features ``u`` of the input, ``(batch, *feature_shape)``.
        label: class labels ``(batch,)`` or target values ``(batch, num_outputs)``, for a supervised
            potential.
        center: the point where the potential vanishes, ``(batch, *state_shape)`` or broadcastable
            to it; ``None`` for the potential's own center.
        head: the map from states to predictions, for a supervised potential, which owns none.
    """

    features: Tensor | None = None
    label: Tensor | None = None
    center: Tensor | None = None
    head: Callable[[Tensor], Tensor] | None = None


_LEAVES = tuple(f.name for f in fields(Context) if f.name != "head")


def _flatten(context: Context) -> tuple[list[Any], tuple[Any, ...]]:
    # What is absent is no leaf: torch.vmap, for one, takes tensors only.
    present = tuple(n for n in _LEAVES if getattr(context, n) is not None)
    return [getattr(context, n) for n in present], (present, context.head)


def _unflatten(leaves: Any, static: Any) -> Context:
    present, head = static
    return Context(**dict(zip(present, leaves, strict=True)), head=head)


pytree.register_pytree_node(Context, _flatten, _unflatten, serialized_type_name="stabnet.Context")


class Potential(nn.Module, ABC):
    r"""A scalar function :math:`V(z) \ge 0` of the state that vanishes at a center.

    A potential recomputes its center: ``V(center) = 0`` after any number of training steps.

    A potential whose own center is not the origin has it as ``center``, a tensor of the shape of a
    state.

    Attributes:
        state_shape: shape of one state, without the batch.
        convex: whether it is convex in the state, for every value of its parameters. Then
            ``V(z) ≤ ∇V(z)ᵀ(z − c)``, and states that are scaled towards the center descend.
    """

    state_shape: tuple[int, ...]
    convex: bool = False

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> Float[Tensor, "*batch"]:
        """Evaluate ``V(z)``.

        Args:
            z: states ``(batch, *state_shape)``, with any further leading dimensions.
            context: what else the potential depends on.

        Returns:
            ``V``, one value per state.
        """

    def value_and_gradient(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        """Evaluate ``V(z)`` and its gradient in ``z``.

        This default differentiates :meth:`forward` with ``torch.func``, which composes with
        ``vmap`` and compiles but does not export. Override it with a closed form where one exists.

        Args:
            z: states, as in :meth:`forward`.
            context: as in :meth:`forward`.

        Returns:
            ``V``, one value per state, and ``∇V`` with the shape of ``z``.
        """

        def total(z: Tensor) -> tuple[Tensor, Tensor]:
            value = self(z, context)
            return value.sum(), value

        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            # Older torch records nothing there, not even for torch.func, and the gradient is zero.
            with torch.inference_mode(False), torch.no_grad():
                copied = pytree.tree_map_only(Tensor, torch.clone, (z, context))
                return self.value_and_gradient(*copied)
        gradient, value = torch.func.grad(total, has_aux=True)(z)
        return value, gradient

    def value_and_rate(
        self,
        z: Float[Tensor, "*batch n"],
        velocity: Float[Tensor, "*batch n"],
        context: Context | None = None,
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        r"""Evaluate ``V(z)`` and how fast it changes where the state moves with a velocity.

        .. math:: \dot V = \nabla V(z)^\top \dot z

        With the velocity ``F(t, z, u)`` of a vector field this is the Lie derivative of ``V`` along
        the field. Override it where it can be had without the whole gradient.

        Args:
            z: states, as in :meth:`forward`; dimensions of one broadcast.
            velocity: ``dz/dt``, with the shape of ``z`` after broadcasting.
            context: as in :meth:`forward`.

        Returns:
            ``V`` and ``dV/dt``, one value per velocity.
        """
        value, gradient = self.value_and_gradient(z, context)
        ndim = len(self.state_shape)
        rate = (gradient * velocity).flatten(-ndim).sum(-1)
        return value.expand_as(rate), rate
