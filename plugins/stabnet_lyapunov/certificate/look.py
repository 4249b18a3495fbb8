"""Looking at inputs for which nothing was proven: for a counterexample, and for evidence."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .cover import grid
from .evidence import Observer, Witnesses, bisect, directions, seems_to_hold, witnesses
from .inputs import region_of
from .proof import Effort, Proof
from .system import System
from .theorem import Decay

__all__ = ["refute", "seen_radius"]


def refute(
    observer: Observer,
    system: System | None,
    proof: Proof,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    decay: Decay,
    slack: float,
) -> Witnesses:
    """Return the worst states found at which the decrease fails at the input itself.

    Looked at are the states of the inputs' own trajectories; and, where there is a covering, the
    middles of its first cells, and of a cell that could not be decided.

    Args:
        observer: the model.
        system: the system that is covered, if there is one.
        proof: what could be proven.
        x: inputs.
        y: labels.
        decay: what is to decay.
        slack: how much the decrease may fail.
    """
    times, states = observer.trajectory(x)
    if system is None:
        found = Witnesses.none(len(x), observer.flow.vector_field.state_shape)
        for t, z in zip(times, states, strict=True):
            found = found.or_worse(witnesses(observer, t, z[:, None], x, y, decay, slack))
        return found
    region = region_of(system, [system.flow], decay.least, decay.start)
    assert region is not None
    framed = grid(system, region, False).middles.lower
    if proof.suspect is not None:
        framed = torch.cat([framed, proof.suspect[:, None]], 1)
    z = torch.cat([states.movedim(0, 1), system.states(framed, y)], 1)
    # Margins as they should be may still belong to a state that no trajectory comes to; and long
    # steps may leave the region that the hypothesis speaks of.
    beyond = z.abs().amax(-1, keepdim=True) > region.half_width
    z = z.masked_fill(beyond, torch.nan)
    return witnesses(observer, times[0], z, x, y, decay, slack)


def seen_radius(
    observer: Observer,
    x: Float[Tensor, "batch ..."],
    y: Int[Tensor, " batch"],
    decay: Decay,
    effort: Effort,
    candidates: Bool[Tensor, " batch"],
    seed: int,
) -> Float[Tensor, " batch"]:
    """Return the radius within which nothing that is looked at speaks against the certificate.

    Looked at are trajectories of inputs perturbed up the gradient of the final loss, and at random.

    Args:
        observer: the model.
        x: inputs.
        y: labels.
        decay: what is to decay.
        effort: which radii are tried.
        candidates: the inputs that are looked at.
        seed: seed of the random perturbations.

    Returns:
        The radius; NaN for inputs that are not looked at.
    """
    if not bool(candidates.any()):
        return torch.full_like(decay.start, torch.nan)
    ways = directions(observer, x, y, seed)

    def holds(rows: Tensor, eps: Tensor) -> Tensor:
        size = eps.view(-1, *[1] * (x.ndim - 1))
        moved = (x[rows] + size * ways[:, rows]).flatten(0, 1)
        if effort.clip is not None:
            moved = moved.clamp(*effort.clip)
        rows = rows.repeat(len(ways))
        return seems_to_hold(observer, moved, y[rows], decay.of(rows)).view(len(ways), -1).all(0)

    radius = bisect(holds, candidates, effort.eps_max, effort.steps)
    return radius.masked_fill(~candidates, torch.nan)
