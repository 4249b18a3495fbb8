"""The path that a model takes an input along: states, and how each is read where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from stabnet import Flow, InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block, Features, State

from ..blocks import Stitch
from ..forward_mode import jvp

__all__ = ["Leg", "Path", "follow"]


@final
@dataclass(frozen=True)
class Leg:
    """States within one space: along a flow, or before and after a block that keeps their shape.

    Attributes:
        stage: index of the flow or block in the stack; ``None`` if the dynamics is the flow.
        states: at least two states.
        times: their times, for a flow.
        driving: what drives the flow.
        carries: whether the stage carries on the state that comes in, and so is the identity at
            depth zero. A flow that starts at zero or at a learned state does not.
    """

    stage: int | None
    states: tuple[Float[Tensor, "batch ..."], ...]
    times: tuple[float, ...] | None
    driving: Features
    carries: bool


@final
@dataclass(frozen=True)
class Path:
    """What one run of a model passes through.

    Attributes:
        model: the model.
        features: the features of the inputs.
        legs: the stretches of the path, in order. Between them are stages that change the space.
        outputs: the outputs at its end.
        nfe: evaluations of vector fields.
    """

    model: StabilityModel
    features: Features
    legs: tuple[Leg, ...]
    outputs: Float[Tensor, "batch outputs"]
    nfe: int

    def decode(self, leg: Leg, z: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        """Return the outputs that a state stands for, read where it is.

        It passes through the later stages that change its space, and the head. Those that carry
        it on are left out: through them every state of the path would lead to the same outputs.
        """
        if leg.stage is None:
            return self.model.decode(z)
        later = [other.stage for other in self.legs if other.carries]
        skip = [index for index in later if index is not None and index > leg.stage]
        return self.model.decode(z, leg.stage, self.features, skip=skip)

    def decode_and_rate(
        self, leg: Leg, t: float, z: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, "batch outputs"]]:
        """Return the outputs that a state of a flow stands for, and how fast the flow moves them.

        The rate is one forward-mode product. Where batch normalization couples the samples of a
        batch, it is that of all of them moving at once.
        """
        velocity = self.model.velocity(t, z, leg.stage, leg.driving).to(z.dtype)
        return jvp(lambda z: self.decode(leg, z), z, velocity)


def follow(model: nn.Module, x: Float[Tensor, "batch ..."], points: int | None) -> Path:
    """Run a model once, as a plain forward would, and keep the states on the way.

    Args:
        model: a model whose dynamics is a flow, or a stack of flows and blocks.
        x: inputs.
        points: number of evenly spaced times at which the states of a flow are kept; ``None`` for
            the flow's own times, or for four if those are a start and an end only.

    Raises:
        InvalidOptionError: for a model with another dynamics, which has no path.
    """
    if not isinstance(model, StabilityModel):
        raise InvalidOptionError(
            f"a Lyapunov path integral needs a StabilityModel; got {type(model).__name__}"
        )
    dynamics = model.dynamics
    stages = list(dynamics.stages) if isinstance(dynamics, Stack) else [dynamics]
    wrong = [type(stage).__name__ for stage in stages if not isinstance(stage, (Flow, Block))]
    if wrong:
        raise InvalidOptionError(
            "a Lyapunov path integral needs a model whose dynamics is a Flow, or a Stack of flows "
            f"and blocks; this one has {', '.join(wrong)}, without a path from state to state"
        )
    u = model.features(x)
    state: State | None = u
    legs: list[Leg] = []
    nfe = 0
    for index, stage in enumerate(stages):
        times = _times(stage, points) if isinstance(stage, Flow) else None
        if isinstance(dynamics, Stack):
            solution = dynamics.advance(state, index, u, times)
        else:
            solution = dynamics(u, times)
        if isinstance(stage, Flow):
            assert isinstance(solution.states, Tensor)
            position = index if isinstance(dynamics, Stack) else None
            states, carries = tuple(solution.states), stage.initial == "features"
            legs.append(Leg(position, states, times, state, carries))
        elif (
            not isinstance(stage, Stitch)  # it joins two spaces, even where they are of one shape
            and isinstance(state, Tensor)
            and isinstance(solution.state, Tensor)
            and state.shape == solution.state.shape
        ):
            legs.append(Leg(index, (state, solution.state), None, None, carries=True))
        state, nfe = solution.state, nfe + solution.nfe
    assert state is not None
    return Path(model, u, tuple(legs), model.read(state), nfe)


def _times(flow: Flow, points: int | None) -> tuple[float, ...]:
    """Return the times at which the states of a flow are kept."""
    if points is None and len(flow.times) > 2:
        return flow.times
    return _spaced(flow.times, points or 4)


def _spaced(times: Sequence[float], points: int) -> tuple[float, ...]:
    start, end = times[0], times[-1]
    within = (start + (end - start) * (k / (points - 1)) for k in range(1, points - 1))
    return (start, *within, end)
