"""The model: normalization, backbone, dynamics and head, assembled."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .bounds import normalize_interval
from .checks import check_finite, frozen_batch_statistics
from .errors import InvalidInputError, InvalidOptionError, UndescribedPartError
from .flow import Flow
from .interfaces import Backbone, Dynamics, Features, Guarantee, Guaranteed, Solution, State
from .plugin import CONFIG_ATTRIBUTE
from .stack import Stack

__all__ = ["Normalize", "StabilityModel"]


@final
class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, per channel.

    Args:
        mean: one number per channel, in the units of the input.
        std: likewise, positive.
        channels: number of channels.

    Raises:
        InvalidOptionError: if the numbers are not one per channel, or ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        if len(mean) != channels or len(std) != channels:
            raise InvalidOptionError(
                f"mean has {len(mean)} and std {len(std)} numbers; inputs have {channels} channels"
            )
        if not (all(map(math.isfinite, mean)) and all(0 < s < math.inf for s in std)):
            raise InvalidOptionError(
                f"mean must be finite and std must be positive; got {list(mean)} and {list(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()))

    def forward(self, x: Float[Tensor, "batch c ..."]) -> Float[Tensor, "batch c ..."]:
        """Return ``(x − mean) / std``."""
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def interval(
        self, lower: Tensor, upper: Tensor, *, sound: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the normalized inputs in a box; see :mod:`stabnet.bounds`."""
        shape = (-1, *[1] * (lower.ndim - 2))
        mean, std = self.mean.view(shape), self.std.view(shape)
        return normalize_interval(lower, upper, mean, std, sound=sound)

    def lipschitz_bound(self) -> float:
        """Return ``1 / min |std|``, the Lipschitz constant in l2, in float64 and rounded up.

        Raises:
            InvalidInputError: if a number in ``std`` is zero, NaN or infinite.
        """
        least = float(self.std.abs().min())
        if not (bool(self.std.isfinite().all()) and least > 0 and math.isfinite(1 / least)):
            raise InvalidInputError(
                f"inputs are divided by std={self.std.tolist()}, which has no Lipschitz bound"
            )
        return math.nextafter(1 / least, math.inf)


@final
class StabilityModel(nn.Module):
    r"""A network as a dynamical system: ``x → normalize → backbone → u → dynamics → z → head``.

    Normalization is part of the model, so attacks and certificates act on inputs in [0, 1].

    Args:
        in_shape: shape of one input, channels first.
        num_outputs: number of classes or values.
        backbone: computes the features ``u``, once per input.
        dynamics: turns features into a state.
        head: maps flattened states to outputs.
        mean: mean per channel, for normalization; none if ``None``.
        std: standard deviation per channel; given together with ``mean``.

    Raises:
        InvalidOptionError: for a shape or number of outputs that cannot be, or one of ``mean`` and
            ``std`` alone.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        backbone: Backbone,
        dynamics: Dynamics,
        head: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = tuple(int(n) for n in in_shape)
        self.num_outputs = int(num_outputs)
        if not self.in_shape or min(self.in_shape) < 1 or self.num_outputs < 1:
            raise InvalidOptionError(
                f"in_shape={tuple(in_shape)} and num_outputs={num_outputs} must be positive"
            )
        if (mean is None) != (std is None):
            raise InvalidOptionError("give mean and std together, or neither")
        self.normalize = (
            nn.Identity() if mean is None or std is None else Normalize(mean, std, self.in_shape[0])
        )
        self.backbone = backbone
        self.dynamics = dynamics
        self.head = head

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Return the outputs (logits or values) for inputs ``(batch, *in_shape)``.

        Raises:
            InvalidInputError: for inputs of another shape, of integers, or with NaN or infinite
                values.
        """
        return self.run(x)[0]

    def run(
        self, x: Float[Tensor, "batch ..."], times: Sequence[float] | Tensor | None = None
    ) -> tuple[Float[Tensor, "batch outputs"], Solution]:
        """Return the outputs, and what the dynamics did to get there."""
        solution = self.solve(x, times)
        return self.read(solution.state), solution

    def features(self, x: Float[Tensor, "batch ..."]) -> Features:
        """Return the features ``u`` of inputs ``(batch, *in_shape)``."""
        self._check(x)
        u: Features = self.backbone(self.normalize(x))
        return u

    def solve(
        self, x: Float[Tensor, "batch ..."], times: Sequence[float] | Tensor | None = None
    ) -> Solution:
        """Run backbone and dynamics; ``times`` are where a flow's trajectory is wanted."""
        solution: Solution = self.dynamics(self.features(x), times)
        return solution

    def read(self, state: State) -> Float[Tensor, "batch outputs"]:
        """Return the outputs that the head reads off a final state."""
        parts = state if isinstance(state, tuple) else (state,)
        outputs: Tensor = self.head(torch.cat([p.flatten(1) for p in parts], 1))
        return outputs

    def decode(
        self,
        z: State,
        stage: int | None = None,
        u: Features = None,
        *,
        skip: Collection[int] = (),
    ) -> Float[Tensor, "batch outputs"]:
        """Return the outputs that a state leads to, leaving batch-norm statistics alone.

        Args:
            z: a state of the dynamics, or of one stage of a stack.
            stage: the stage after which ``z`` is the state; the last if ``None``.
            u: the features, where the remaining stages need them.
            skip: later stages to leave out. Without those that carry a state on in its own space
                (flows, residual blocks) what remains reads the state where it is.

        Raises:
            InvalidInputError: if there is no such stage, or a stage to skip is not after it.
        """
        after = self._index(stage)
        stack = self.dynamics if isinstance(self.dynamics, Stack) else None
        if stack is None and skip:
            raise InvalidInputError(f"stages {list(skip)} cannot be skipped: there is no stack")
        with frozen_batch_statistics(self):
            if stack is not None:
                z = stack.resume(z, after + 1, u, skip=skip).state
            return self.read(z)

    def velocity(
        self,
        t: float | Tensor,
        z: Float[Tensor, "..."],
        stage: int | None = None,
        u: Features = None,
    ) -> Float[Tensor, "..."]:
        """Return how fast a flow moves a state, leaving batch-norm statistics alone.

        Args:
            t: time.
            z: a state of the flow.
            stage: the flow's index in a stack; the last if ``None``.
            u: what the flow is driven by: the features, or in a stack the state before it. A flow
                that starts there is driven by nothing else.

        Raises:
            InvalidInputError: if there is no such stage, or it is no flow.
        """
        index = self._index(stage)
        flow = self.dynamics.stages[index] if isinstance(self.dynamics, Stack) else self.dynamics
        if not isinstance(flow, Flow):
            raise InvalidInputError(
                f"stage {index} is a {type(flow).__name__} and has no velocity; only a flow does"
            )
        with frozen_batch_statistics(flow):
            velocity: Tensor = flow.vector_field(t, z, None if flow.initial == "features" else u)
            return velocity

    def guarantees(self) -> list[Guarantee]:
        """Return the guarantees of all parts, as the model stands.

        A part that speaks for the parts inside it (``covers_parts``) does so alone.
        """
        found: list[Guarantee] = []
        covered: tuple[str, ...] = ()
        for name, module in self.named_modules():  # a part before those inside it
            if module is self or name.startswith(covered) or not isinstance(module, Guaranteed):
                continue
            found += [guarantee.of(name) for guarantee in module.guarantees()]
            if getattr(module, "covers_parts", False):
                covered += (f"{name}.",)
        return found

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which :func:`stabnet.build` rebuilds the model.

        Raises:
            UndescribedPartError: if the model was assembled by hand.
        """
        config = getattr(self, CONFIG_ATTRIBUTE, None)
        if config is None:
            raise UndescribedPartError(
                "this model was assembled by hand and has no description; "
                "register a function that returns it and build it by name"
            )
        copied: dict[str, Any] = copy.deepcopy(config)
        return copied

    def extra_repr(self) -> str:
        """Return shape and outputs, and the model's name where it has one."""
        config = getattr(self, CONFIG_ATTRIBUTE, {})
        name = f"{json.dumps(config['name'])}, " if "name" in config else ""
        return f"{name}in_shape={self.in_shape}, num_outputs={self.num_outputs}"

    def _index(self, stage: int | None) -> int:
        """Return the index of a stage, counted from 0; the dynamics itself is one if no stack."""
        count = len(self.dynamics.stages) if isinstance(self.dynamics, Stack) else 1
        index = -1 if stage is None else stage
        if not -count <= index < count:
            raise InvalidInputError(f"there is no stage {stage}; there are {count}")
        return index % count

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.in_shape:
            raise InvalidInputError(
                f"inputs have shape {tuple(x.shape)}; expected (batch, "
                f"{', '.join(map(str, self.in_shape))}). Build the model for your inputs with "
                "in_shape=(channels, height, width)"
            )
        if not x.is_floating_point():
            raise InvalidInputError(
                f"inputs have dtype {x.dtype}; expected floating point, images in [0, 1]. "
                "Divide 8-bit images by 255"
            )
        # Not next(…, default), which torch 2.6 does not compile.
        dtypes = [p.dtype for p in self.parameters() if p.is_floating_point()]
        own = dtypes[0] if dtypes else x.dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise InvalidInputError(
                f"inputs have dtype {x.dtype} and the model {own}; convert the inputs with "
                f"x.to({own}), or the model with model.to({x.dtype})"
            )
        check_finite(x, "the input batch")
