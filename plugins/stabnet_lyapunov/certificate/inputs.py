"""Boxes of inputs: the ball around each of them, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stabnet.bounds import round_down, round_up

from .arithmetic import Box, enclosed
from .cover import DEEPEST, Question, Region, Verdict, decide
from .scheme import Scheme
from .system import System

__all__ = ["balls", "decide_balls", "region_of"]

_HALVINGS = 3
"""Halvings of states, along each dimension of the region, for parts of a ball: to halve these is
worth more than to halve states ever further."""

_SPLITTABLE = 8
"""Inputs of more numbers are not taken apart: it would take far too many parts to matter."""


def balls(
    x: Float[Tensor, "batch ..."], eps: Float[Tensor, " batch"], clip: tuple[float, float] | None
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    """Return the box of all inputs within ``eps`` of each input, each with a radius of its own.

    Args:
        x: inputs in float64.
        eps: radii, at least 0.
        clip: bounds of all inputs, if they have any.
    """
    size = eps.view(-1, *[1] * (x.ndim - 1))
    lower = torch.where(size > 0, round_down(x - size), x)
    upper = torch.where(size > 0, round_up(x + size), x)
    return (lower, upper) if clip is None else (lower.clamp(*clip), upper.clamp(*clip))


def region_of(
    system: System, schemes: Sequence[Scheme], least: Tensor, most: Tensor
) -> Region | None:
    """Return a region of states that no step leaves; ``None`` if none is known.

    Steps of several schemes may take turns: the largest of their cubes is one that none leaves.
    """
    start = max(abs(z) for z in system.start)
    half_width = start
    for scheme in schemes:
        own = scheme.half_width(start, system.corner)
        if own is None:
            return None
        half_width = max(half_width, own)
    first, last = system.sums()
    if all(0 <= scheme.kept <= 1 for scheme in schemes):
        # The sum goes straight to its limit, and not beyond it.
        low, high = min(first, last), max(first, last)
    else:
        low, high = last - abs(first - last), last + abs(first - last)
    return Region(least, most, enclosed(half_width)[1], (enclosed(low)[0], enclosed(high)[1]))


def decide_balls(
    questions: Sequence[Question],
    lower: Float[Tensor, "rows ..."],
    upper: Float[Tensor, "rows ..."],
    *,
    max_cells: int,
    max_boxes: int,
) -> tuple[Bool[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Answer questions for all inputs in boxes, taking the boxes apart where that may help.

    A box of inputs for which the bounds do not decide is halved, unless they do not decide for its
    middle either: then the row is given up, and so is one that needs more than ``max_boxes`` boxes.
    Of the halves only those states are asked that were not decided for the whole.

    Args:
        questions: one per scheme; their features are replaced by those of the boxes.
        lower: lower bounds of the inputs.
        upper: upper bounds of the inputs.
        max_cells: the most undecided cells of states per box of inputs.
        max_boxes: the most undecided boxes of inputs per row.

    Returns:
        For which rows all questions are answered in the affirmative; and for those the upper bounds
        of the level, and of the potential after a step from below the region.
    """
    count, box = len(lower), (lower, upper)
    if lower[0].numel() > _SPLITTABLE:
        max_boxes = 1
    owner, asked = torch.arange(count), list(questions)
    halvings = DEEPEST
    lost = torch.zeros(count, dtype=torch.bool)
    level, after = torch.full((2, count), -torch.inf, dtype=torch.float64)
    while len(owner):
        verdicts = _answers(asked, box, max_cells, halvings)
        halvings = _HALVINGS * asked[0].region.dimensions(asked[0].system.classes)
        for verdict in verdicts:
            level.scatter_reduce_(0, owner, verdict.level, "amax")
            after.scatter_reduce_(0, owner, verdict.after, "amax")
        proven = torch.stack([v.proven for v in verdicts]).all(0)
        asked = [replace(q, cells=v.left) for q, v in zip(asked, verdicts, strict=True)]
        lost |= 2 * owner[~proven].bincount(minlength=count) > max_boxes
        going = ~proven & ~lost[owner]
        owner, box, asked = owner[going], (box[0][going], box[1][going]), _of(asked, going)
        if len(owner):
            middle = torch.lerp(*box, 0.5)
            for verdict in _answers(asked, (middle, middle), max_cells, halvings):
                lost[owner[~verdict.proven]] = True
        going = ~lost[owner]
        owner, box = owner[going].repeat(2), _halves(box[0][going], box[1][going])
        asked = _of(asked, going.nonzero().flatten().repeat(2))
    return ~lost, level, after


def _answers(
    questions: Sequence[Question], box: Box, max_cells: int, halvings: int
) -> list[Verdict]:
    features = questions[0].system.features(*box)
    asked = [replace(question, features=features) for question in questions]
    return [decide(question, max_cells, halvings) for question in asked]


def _of(questions: Sequence[Question], rows: Tensor) -> list[Question]:
    return [question.of(rows) for question in questions]


def _halves(lower: Tensor, upper: Tensor) -> Box:
    """Return the two halves of each box, cut where it is widest; first all left ones."""
    shape = lower.shape
    low, high = lower.flatten(1), upper.flatten(1)
    if not len(low):
        return lower, upper
    axis = (high - low).argmax(1, keepdim=True)
    middle = torch.lerp(low, high, 0.5).gather(1, axis)
    lower = torch.cat([low, low.scatter(1, axis, middle)])
    upper = torch.cat([high.scatter(1, axis, middle), high])
    return lower.reshape(-1, *shape[1:]), upper.reshape(-1, *shape[1:])
