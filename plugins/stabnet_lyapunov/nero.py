"""Nero: every neuron turns by an angle of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError

__all__ = ["Constrained", "Nero"]

Constrained = Literal["all", "convolutions", "none"]
"""Which tensors are kept balanced and of unit norm: of two dimensions or more, three, or none."""

_LEAST_DIMENSIONS = {"all": 2, "convolutions": 3, "none": math.inf}

_SCALE_OF_ZEROS = 0.01
"""The scale of a tensor that starts at zero, as biases do."""


@final
class Nero(torch.optim.Optimizer):
    r"""Nero, the neuronal rotator: one relative step for every neuron.

    A neuron is what one index of a tensor's first dimension holds, such as the weights into one
    output; in a tensor of fewer than two dimensions every entry is a neuron. With :math:`g_i` the
    gradient of neuron ``i``, in step ``k``

    .. math:: v_i \leftarrow β v_i + (1 - β) \|g_i\|_2^2, \qquad
        w_i \leftarrow w_i - \mathrm{lr} \cdot s \, \frac{g_i}{\sqrt{v_i / (1 - β^k)}}

    where the scale ``s`` is the mean norm of the tensor's neurons at the start, or 0.01 if that is
    zero. A neuron whose gradients have all been zero stays. Where the gradient is not finite, the
    neuron stays for that step and its :math:`v_i` too.

    The weights of constrained tensors are balanced and lie on the sphere,

    .. math:: \sum_j w_{ij} = 0, \qquad \|w_i\|_2 = 1

    from construction on: they are projected then, and after every step. Their scale is 1.

    Steps don't change when the loss is multiplied by a constant, and no step looks at the device.

    Args:
        params: tensors, or groups: dicts of ``"params"`` and options of the group (``lr``,
            ``beta``, ``constrained``), which take precedence.
        lr: learning rate, at least 0: about the angle in radians by which a constrained neuron
            turns in a step.
        beta: decay of the average of squared norms, in [0, 1).
        constrained: ``"all"`` constrains tensors of two dimensions or more, as the paper does;
            ``"convolutions"`` those of three or more, so that weights of linear layers are left
            alone, as the released code of [LyaNet] does, with ``beta=0.9``; ``"none"`` none.

    Raises:
        InvalidOptionError: for an option out of range, or if a constrained neuron's weights are all
            equal, as with a single input, so that balancing leaves nothing to bring to unit norm.

    References:
        Liu, Bernstein, Meister, Yue 2021, "Learning by turning", algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.01,
        beta: float = 0.999,
        constrained: Constrained = "all",
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "constrained": constrained})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of tensors; those to be constrained are projected at once.

        Args:
            param_group: ``"params"`` and options of the group.

        Raises:
            InvalidOptionError: as at construction; the group is not added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
            starts = {p: _start(p, group) for p in group["params"] if p.requires_grad}
        except InvalidOptionError:
            self.param_groups.pop()
            raise
        for p, (weights, scale) in starts.items():
            self._admit(p, weights, scale)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: evaluates the loss anew and its gradient.

        Returns:
            The loss, if there is a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._turn(p, p.grad, group)
        return loss

    def _admit(self, p: Tensor, weights: Tensor, scale: float) -> None:
        """Let a tensor start from these weights."""
        with torch.no_grad():
            p.copy_(weights)
        self.state[p].update(step=0, scale=scale)

    def _turn(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Take one step of one tensor."""
        if not self.state[p]:  # it required no gradient when it came
            self._admit(p, *_start(p, group))
        state, beta = self.state[p], group["beta"]
        squared = _norms(gradient).square()
        if "exp_avg_sq" not in state:  # made here, on the device where the tensor is by now
            state["exp_avg_sq"] = torch.zeros_like(squared)
        finite = squared.isfinite()
        average = state["exp_avg_sq"]
        average.copy_(torch.where(finite, average.lerp(squared, 1 - beta), average))
        state["step"] += 1
        rate = group["lr"] * state["scale"] * math.sqrt(1 - beta ** state["step"])
        turns = finite & (average > 0)
        p.sub_(torch.where(turns, gradient * (rate / average.sqrt()), 0))
        if _is_constrained(p, group):
            _project(p)


def _is_constrained(p: Tensor, group: dict[str, Any]) -> bool:
    return p.ndim >= _LEAST_DIMENSIONS[group["constrained"]]


def _norms(x: Float[Tensor, "neurons ..."]) -> Float[Tensor, "neurons ..."]:
    """Return the norm of every neuron, in a shape that broadcasts against the tensor."""
    if x.ndim < 2:
        return x.abs()
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return norms


def _means(x: Float[Tensor, "neurons ..."]) -> Float[Tensor, "neurons ..."]:
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def _project(x: Float[Tensor, "neurons ..."]) -> None:
    """Give every neuron mean zero and unit norm, in place."""
    x.sub_(_means(x))
    x.div_(_norms(x))


@torch.no_grad()
def _start(p: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
    """Return the weights that a tensor starts from, and its scale.

    Weights that already satisfy their constraint to rounding are kept bit by bit, so that a run
    that is taken up again goes on as it would have.

    Raises:
        InvalidOptionError: if a constrained neuron cannot be brought to unit norm.
    """
    if not _is_constrained(p, group):
        return p, float(_norms(p).mean()) or _SCALE_OF_ZEROS
    exact = p.detach().to(torch.float64, copy=True)
    mean, inputs = _means(exact), p[:1].numel()
    before, after = _norms(exact), _norms(exact - mean)
    rounding = 8 * torch.finfo(p.dtype).eps * math.sqrt(inputs)
    equal = (after <= rounding * before).flatten().nonzero().flatten().tolist()
    if equal:
        raise InvalidOptionError(
            f"in a parameter of shape {tuple(p.shape)} the weights of {len(equal)} neurons (first: "
            f"{equal[:5]}) are all equal, as with a single input, and balancing would make them "
            "zero: initialize them otherwise, or leave them unconstrained, by constrained="
            "'convolutions' for linear layers, or in a group {'params': …, 'constrained': 'none'}"
        )
    off = torch.maximum(mean.abs() * math.sqrt(inputs), (after - 1).abs())
    if not bool((off <= rounding).all()):
        _project(exact)
        return exact.to(p.dtype), 1.0
    return p, 1.0


def _check(group: dict[str, Any]) -> None:
    """Raise :class:`InvalidOptionError` unless a group's options are in range."""
    lr, beta, constrained = group["lr"], group["beta"], group["constrained"]
    if not (isinstance(lr, (int, float)) and 0 <= lr < math.inf):
        raise InvalidOptionError(f"lr is a finite number, at least 0; got {lr!r}")
    if not (isinstance(beta, (int, float)) and 0 <= beta < 1):
        raise InvalidOptionError(f"beta lies in [0, 1); got {beta!r}")
    if constrained not in _LEAST_DIMENSIONS:
        raise InvalidOptionError(
            f"constrained is one of {', '.join(map(repr, _LEAST_DIMENSIONS))}; got {constrained!r}"
        )
