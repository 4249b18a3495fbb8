"""The potential of a supervised loss: how wrong the prediction is that a state stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Context, Potential
from stabnet.values import number

from .forward_mode import jvp

__all__ = ["Loss", "SupervisedPotential"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)``: outputs ``(N, C)`` and targets ``(N, …)`` to one value each."""

Name = Literal["cross_entropy", "squared_error"]


@final
class SupervisedPotential(Potential):
    r"""The truncated loss of the prediction that a state stands for.

    .. math:: V_y(z) = \max(0,\; \mathrm{loss}(\psi(z), y) - \gamma)

    for any differentiable head :math:`\psi`. It vanishes on a set of states, not at a point: cross
    entropy does not change when all logits are shifted. That :math:`V` decays thus says that the
    prediction converges, never that the state does.

    Head and target come with the :class:`stabnet.interfaces.Context` of every call; the potential
    owns neither. Gradient and rate are closed forms for cross entropy and squared error behind the
    identity or a linear layer; otherwise the rate is one forward-mode product through the head, and
    the gradient one reverse-mode product.

    With samples ``z`` of shape ``(1, samples, …)`` that all targets share, the softmax is computed
    once per state, and nothing of size ``batch × samples × classes²`` is made.

    Args:
        state_shape: shape of one state.
        loss: ``"cross_entropy"`` of class labels; ``"squared_error"``, half the squared distance
            to target values; or a function ``loss(outputs, targets)`` of outputs ``(N, C)`` that
            gives one nonnegative value each; objectives take its targets for class labels.
        truncation: :math:`\gamma \ge 0`. Cross entropy vanishes nowhere, so that without it no
            state is ever right enough.

    Raises:
        InvalidOptionError: for an unknown loss, or a truncation that is negative or not finite.

    References:
        [LyaNet] (11).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        loss: Name | Loss = "cross_entropy",
        truncation: float = 1e-6,
    ) -> None:
        super().__init__()
        self.state_shape = tuple(state_shape)
        if not callable(loss) and loss not in ("cross_entropy", "squared_error"):
            raise InvalidOptionError(
                f"loss={loss!r} is unknown; it is 'cross_entropy', 'squared_error', or a function "
                "of outputs and targets"
            )
        self.loss = loss
        self.truncation = number("truncation", truncation, least=0)

    def forward(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> Float[Tensor, "*batch"]:
        """Evaluate ``V_y(z)``.

        Args:
            z: states ``(batch, *state_shape)``, or ``(batch or 1, samples, *state_shape)``.
            context: its ``label``: class labels ``(batch,)``, or target values ``(batch, C)``; and
                its ``head``: maps states ``(N, *state_shape)`` to outputs ``(N, C)``, or, if it is
                a linear layer, raveled states; ``None`` for the identity.

        Returns:
            ``V``, ``(batch,)`` or ``(batch, samples)``.

        Raises:
            InvalidInputError: if there is no label, or it does not fit.
        """
        outputs, target = self._outputs(z, context), _target(context)
        return self._truncated(self._losses(outputs, target))

    def value_and_gradient(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        r"""Evaluate ``V_y(z)`` and its gradient in ``z``.

        Behind a linear head :math:`\psi(z) = Wz + b` it is :math:`W^\top(\mathrm{softmax} - e_y)`
        for cross entropy and :math:`W^\top (\psi(z) - y)` for squared error, and 0 where the loss
        is below the truncation.

        Args:
            z: states, as in :meth:`forward`; those shared by the batch are taken once per target.
            context: as in :meth:`forward`.

        Returns:
            ``V``, and ``∇V`` for each of its values.
        """
        target = _target(context)
        if len(z) == 1 and z.ndim == len(self.state_shape) + 2:
            z = z.expand(len(target), *z.shape[1:])
        weight = _affine(context)
        if weight is None or callable(self.loss):
            return super().value_and_gradient(z, context)
        outputs = self._outputs(z, context)
        losses = self._losses(outputs, target)
        if self.loss == "cross_entropy":
            classes = torch.arange(outputs.shape[-1], device=outputs.device)
            chosen = _aligned(target.long(), outputs.ndim) == classes
            others = outputs.softmax(-1).masked_fill(chosen, 0.0)
            # softmax − 1 of the target is minus all the others, whose sum does not cancel.
            gradient = torch.where(chosen, -others.sum(-1, keepdim=True), others)
        else:
            gradient = outputs - _aligned(target, outputs.ndim)
        gradient = gradient * (losses > self.truncation).unsqueeze(-1)
        if isinstance(weight, Tensor):
            gradient = gradient @ weight
        return self._truncated(losses), gradient.reshape(z.shape)

    def value_and_rate(
        self,
        z: Float[Tensor, "*batch n"],
        velocity: Float[Tensor, "*batch n"],
        context: Context | None = None,
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        r"""Evaluate ``V_y(z)`` and how fast it changes where the state moves with a velocity.

        For cross entropy :math:`\dot V = \sum_k \mathrm{softmax}(\psi)_k (\dot\psi_k -
        \dot\psi_y)`, whose terms do not cancel near the target; for squared error
        :math:`\dot V = (\psi - y)^\top \dot\psi`; with :math:`\dot\psi = \psi'(z)\, \dot z`.

        Args:
            z: states, as in :meth:`forward`.
            velocity: ``dz/dt``, ``(batch, *state_shape)`` or ``(batch, samples, *state_shape)``.
            context: as in :meth:`forward`.

        Returns:
            ``V`` and ``dV/dt``, ``(batch,)`` or ``(batch, samples)``.
        """
        weight, target = _affine(context), _target(context)
        if len(velocity) == 1 and velocity.ndim == len(self.state_shape) + 2:
            velocity = velocity.expand(len(target), *velocity.shape[1:])
        _check_rows(len(velocity), target)
        if weight is None or callable(self.loss):
            return self._rate_by_jvp(z, velocity, context)
        outputs = self._outputs(z, context)
        moved = velocity.flatten(-len(self.state_shape))
        if isinstance(weight, Tensor):
            moved = moved @ weight.mT
        losses = self._losses(outputs, target)
        if self.loss == "cross_entropy":
            index = _aligned(target.long(), moved.ndim).expand(*moved.shape[:-1], 1)
            relative = moved - moved.gather(-1, index)
            rate = (outputs.softmax(-1) * relative).sum(-1)
        else:
            rate = ((outputs - _aligned(target, outputs.ndim)) * moved).sum(-1)
        return self._truncated(losses), rate * (losses > self.truncation)

    def _rate_by_jvp(
        self, z: Tensor, velocity: Tensor, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        def value(states: Tensor) -> Tensor:
            v: Tensor = self(states, context)
            return v

        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            # Nothing is differentiated there, forward mode included.
            with torch.inference_mode(False), torch.no_grad():
                copied = pytree.tree_map_only(Tensor, torch.clone, (z, velocity, context))
                return self._rate_by_jvp(*copied)
        return jvp(value, z.expand_as(velocity), velocity)

    def _outputs(self, z: Tensor, context: Context | None) -> Tensor:
        """Return ``ψ(z)``, with the leading dimensions of ``z``, at least in single precision."""
        ndim = len(self.state_shape)
        if tuple(z.shape[-ndim:]) != self.state_shape or z.ndim - ndim not in (1, 2):
            wanted = ", ".join(map(str, self.state_shape))
            raise InvalidInputError(
                f"the potential takes states (batch, {wanted}) or (batch, samples, {wanted}); "
                f"got {tuple(z.shape)}"
            )
        head = None if context is None else context.head
        outputs = z.flatten(-ndim)
        if head is not None and _affine(context) is not None:
            outputs = head(outputs)
        elif head is not None:
            outputs = head(z.reshape(-1, *self.state_shape))
            outputs = outputs.reshape(*z.shape[:-ndim], *outputs.shape[1:])
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each output against its target."""
        shared = outputs.ndim == 3 and len(outputs) == 1
        if not shared:
            _check_rows(len(outputs), target)
        if self.loss == "cross_entropy":
            _check_labels(outputs, target)
            logs = _log_softmax(outputs)
            if shared:
                return -logs[0].index_select(-1, target.long()).mT
            index = _aligned(target.long(), outputs.ndim).expand(*outputs.shape[:-1], 1)
            return -logs.gather(-1, index).squeeze(-1)
        lead = (len(target), *outputs.shape[1:-1])
        if callable(self.loss):
            wide = target.unsqueeze(1) if outputs.ndim == 3 else target
            wide = wide.expand(*lead, *target.shape[1:]).flatten(0, len(lead) - 1)
            losses = self.loss(outputs.expand(*lead, -1).flatten(0, -2), wide)
            return losses.reshape(lead)
        _check_values(outputs, target)
        return 0.5 * (outputs - _aligned(target, outputs.ndim)).square().sum(-1)

    def _truncated(self, losses: Tensor) -> Tensor:
        return F.relu(losses - self.truncation) if self.truncation else losses


def _log_softmax(outputs: Tensor) -> Tensor:
    """Return the logarithm of the softmax, also of the greatest entry to full relative precision.

    Near the target that entry is all of the loss, and ``log Σ exp`` would round it to units of 1.
    """
    top = outputs.argmax(-1, keepdim=True)
    shifted = outputs - outputs.gather(-1, top)
    rest = shifted.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return shifted - rest.log1p()


def _affine(context: Context | None) -> Tensor | Literal["identity"] | None:
    """Return the weight of the head if it is linear, ``"identity"``, or ``None`` for any other."""
    head = None if context is None else context.head
    if head is None or type(head) is nn.Identity:
        return "identity"
    if not isinstance(head, nn.Linear) or getattr(head.forward, "__func__", None) is not _LINEAR:
        return None
    # A hook may change what the layer computes.
    return None if head._forward_hooks or head._forward_pre_hooks else head.weight


_LINEAR = nn.Linear.forward


def _aligned(target: Tensor, ndim: int) -> Tensor:
    """Give targets the dimensions of the samples, and labels one for the classes too."""
    if target.ndim == 1:
        return target.view(-1, *[1] * (ndim - 1))
    return target.unsqueeze(1) if ndim == 3 else target


def _target(context: Context | None) -> Tensor:
    if context is None or context.label is None or context.label.ndim == 0:
        raise InvalidInputError(
            "a supervised potential needs targets, one per input; pass "
            "context=Context(label=y, head=model.head)"
        )
    return context.label


def _check_rows(rows: int, target: Tensor) -> None:
    if rows != len(target):
        raise InvalidInputError(
            f"{rows} rows of states or velocities do not fit {len(target)} targets; they have as "
            "many rows, or (1, samples, …) where the targets share them"
        )


def _check_labels(outputs: Tensor, label: Tensor) -> None:
    wrong_type = label.is_floating_point() or label.is_complex() or label.dtype == torch.bool
    if label.ndim != 1 or wrong_type:
        raise InvalidInputError(
            f"class labels are whole numbers ({len(label)},), one per input; got "
            f"{tuple(label.shape)} of {label.dtype}. For target values use "
            "potential={'name': 'supervised', 'loss': 'squared_error'}"
        )
    if label.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(label):
        return
    wrong = label[(label < 0) | (label >= outputs.shape[-1])]
    if len(wrong):
        raise InvalidInputError(
            f"label {wrong[0].item()}, but there are {outputs.shape[-1]} outputs; labels are 0 to "
            f"{outputs.shape[-1] - 1}"
        )


def _check_values(outputs: Tensor, target: Tensor) -> None:
    if not target.is_floating_point() or target.shape[1:] != outputs.shape[-1:]:
        raise InvalidInputError(
            f"target values are floating-point numbers (batch, {outputs.shape[-1]}); got "
            f"{tuple(target.shape)} of {target.dtype}. For class labels use loss='cross_entropy'"
        )
