"""Checks of what every module promises when it is called."""

from __future__ import annotations

from typing import Any

import torch

from ...interfaces import Cell
from ...plugin import Entry
from .._numbers import difference, gradient_fault, identical, tensors_of
from .._outcome import SkipCheck, require
from .._specimen import TIMES, Specimen, specimen

__all__ = [
    "check_batch_independence",
    "check_determinism",
    "check_dtype",
    "check_gradients",
    "check_no_grad",
    "check_shapes",
]

_COUPLING = 1e-5
"""Relative difference that an adaptive method may make between a sample alone and in a batch."""

_ROUNDING = 1e-9


def check_shapes(entry: Entry) -> None:
    """Outputs have the shapes that the kind promises, for a batch and for one sample."""
    s = specimen(entry)
    example = entry.example or {}
    for name in ("in_shape", "state_shape", "feature_shape"):
        if example.get(name) is not None and (entry.kind, name) != ("block", "feature_shape"):
            wanted, found = tuple(example[name]), getattr(s.part, name, None)
            require(found == wanted, entry, f"the attribute {name} = {wanted}", found)
    for batch in (3, 1):
        out = s(*s.rows(0, batch))
        shapes = tuple(tuple(t.shape) for t in out)
        if entry.kind == "block":
            fits = all(shape[:1] == (batch,) for shape in shapes)
            require(fits, entry, f"next states with the batch {batch} first", shapes)
        else:
            wanted_shapes = _promised(s, batch)
            require(shapes == wanted_shapes, entry, f"outputs of shapes {wanted_shapes}", shapes)
        require(all(bool(t.isfinite().all()) for t in out), entry, "finite outputs", out)


def _promised(s: Specimen, batch: int) -> tuple[tuple[int, ...], ...]:
    part: Any = s.part
    match s.entry.kind:
        case "model":
            return ((batch, part.num_outputs),)
        case "backbone":
            return ((batch, *part.out_shape),)
        case "head":
            return ((batch, (s.entry.example or {})["num_outputs"]),)
        case "potential":
            return ((batch,), (batch, *part.state_shape))
        case "integrator":
            return ((batch, len(TIMES), *s.inputs[0].shape[1:]),)
        case "solver":
            return ((batch, *s.inputs[0].shape[1:]),)
        case "objective":
            return ((),)
    shapes = part.state_shape if isinstance(part.state_shape[0], tuple) else (part.state_shape,)
    return tuple((batch, *shape) for shape in shapes)


def check_dtype(entry: Entry) -> None:
    """Outputs have the precision of the part and its inputs."""
    for dtype in (torch.float32, torch.float64):
        found = {t.dtype for t in specimen(entry, dtype=dtype)()}
        require(
            found == {dtype}, entry, f"outputs of {dtype} for parameters and inputs of it", found
        )


def check_determinism(entry: Entry) -> None:
    """A seed determines the weights and the outputs; in eval mode nothing is random at all.

    An objective may draw samples in eval mode too; a seed determines them.
    """
    runs = []
    for _ in range(2):
        s = specimen(entry)  # seeds the generator
        state = [t.clone() for t in tensors_of(s.part).values()]
        s.part.train()
        runs.append((state, s()))
    require(
        identical(runs[0][0], runs[1][0]), entry, "equal weights from equal seeds", "other weights"
    )
    gap = difference(runs[0][1], runs[1][1])
    require(
        identical(runs[0][1], runs[1][1]),
        entry,
        "equal outputs in training mode from equal seeds",
        f"outputs that differ by {gap:.3g}",
    )
    if entry.kind != "objective":
        s.part.eval()
        generator = torch.get_rng_state()
        one, other = s(), s()
        require(
            identical(one, other),
            entry,
            "the same outputs in eval mode at every call",
            f"outputs that differ by {difference(one, other):.3g}",
        )
        drawn = not torch.equal(generator, torch.get_rng_state())
        require(not drawn, entry, "no random numbers drawn in eval mode", "a generator advanced")


def check_batch_independence(entry: Entry) -> None:
    """In eval mode a sample's output does not depend on the other samples of its batch."""
    s = specimen(entry, dtype=torch.float64)
    if any(isinstance(m, Cell) and not m.per_sample for m in s.part.modules()):
        raise SkipCheck("it declares that its samples are coupled (per_sample is false)")
    together = s()
    for i in range(3):
        alone = s(*s.rows(i, i + 1))
        gap = difference(alone, [t[i : i + 1] for t in together])
        require(
            gap <= _COUPLING,
            entry,
            f"a sample's output alone to be that within a batch, up to {_COUPLING:g}",
            f"a relative difference of {gap:.3g}",
        )


def check_no_grad(entry: Entry) -> None:
    """Outputs are the same without gradients, and in inference mode."""
    s = specimen(entry, dtype=torch.float64)
    torch.default_generator.manual_seed(0)
    expected = s()
    for mode in (torch.no_grad(), torch.inference_mode()):
        torch.default_generator.manual_seed(0)
        with mode:
            found = s()
        gap = difference(found, expected)
        require(
            gap <= _ROUNDING,
            entry,
            f"the same outputs under {type(mode).__name__} as with gradients",
            f"a relative difference of {gap:.3g}",
        )
        free = not any(t.requires_grad for t in found)
        require(free, entry, f"no gradients under {type(mode).__name__}", "outputs that have them")


def check_gradients(entry: Entry) -> None:
    """Gradients with respect to inputs and parameters agree with differences, in float64."""
    s = specimen(entry, dtype=torch.float64, batch=2)

    def call(part: torch.nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.default_generator.manual_seed(0)
        return s(*inputs, part=part)

    fault = gradient_fault(s.part, call, s.inputs)
    require(fault is None, entry, "gradients that agree with central differences", fault)
