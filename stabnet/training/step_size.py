"""Step-size sensitivity: whether a result is the flow's, or an artefact of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import modes_restored
from ..errors import InvalidInputError, InvalidOptionError
from ..interfaces import FixedStep, Integrator
from ..model import StabilityModel

__all__ = ["StepSizeSensitivity", "step_size_sensitivity"]

_NOTABLE = 0.01
"""From this difference on, a result is said to depend on the step."""


@final
@dataclass(frozen=True)
class StepSizeSensitivity:
    """What changes when the steps of a model's integrators are divided by a factor.

    A change of the outputs is the Euclidean norm of their difference, relative to the root mean
    square, over the samples, of the norm of the outputs at the finer step; infinite where outputs
    are not finite.

    Attributes:
        step_sizes: the longest step of each fixed-step integrator, by its name in the model.
        factor: what they were divided by.
        samples: how many samples both evaluations had, the same ones.
        accuracy: at these steps; ``None`` for regression.
        refined_accuracy: at the steps divided by ``factor``; ``None`` for regression.
        changed: share of the predicted classes that changed; ``None`` for regression.
        mean_change: mean change of the outputs.
        largest_change: largest change of the outputs.
        nfe: evaluations of the field per batch, at these steps; ``None`` if the model is no
            :class:`stabnet.StabilityModel` and does not tell.
        refined_nfe: likewise, at the finer steps. It is less than ``factor`` times ``nfe`` where
            integrations were shorter than ``step_size``, or their length no multiple of it.
    """

    step_sizes: Mapping[str, float]
    factor: float
    samples: int
    accuracy: float | None
    refined_accuracy: float | None
    changed: float | None
    mean_change: float
    largest_change: float
    nfe: float | None
    refined_nfe: float | None

    @property
    def depends_on_step(self) -> bool:
        """Whether the accuracy (for regression, the mean output) differs by 1 % or more.

        Outputs that are not finite depend on it too: then the steps are too long to say anything.
        """
        if math.isinf(self.largest_change):
            return True
        if self.accuracy is None or self.refined_accuracy is None:
            return self.mean_change >= _NOTABLE
        # Accuracies are counts over a count, up to rounding.
        return abs(self.accuracy - self.refined_accuracy) >= _NOTABLE - 1e-9


def step_size_sensitivity(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    factor: float = 10,
    samples: int = 2000,
    accelerator: Accelerator | None = None,
) -> StepSizeSensitivity | None:
    """Evaluate a model at its steps and at finer ones, on the same samples.

    Only integrators with a fixed step (:class:`stabnet.interfaces.FixedStep`) within the model are
    refined. Adaptive integrators, and steps that a block or a cell takes by itself, stay as they
    are. The model is evaluated in eval mode and without gradients; modes and step sizes are as
    before afterward.

    Args:
        model: the model.
        loader: batches ``(x, y)``, the same ones in all processes; integer ``y`` are class labels,
            floating-point ones values.
        factor: what the step sizes are divided by, above 1.
        samples: the first so many are used, at least 1.
        accelerator: shares the batches among its processes, in its precision; without one, the
            work is done where the model is.

    Returns:
        Both results and their difference; ``None`` if the model has no integrator with a fixed
        step, so that there is nothing to refine.

    Raises:
        InvalidOptionError: for a ``factor`` or ``samples`` out of range.
        InvalidInputError: if the loader has no batch.
    """
    if not 1 < factor < math.inf or samples < 1:
        raise InvalidOptionError(
            f"factor={factor!r} and samples={samples!r}; they must be a number above 1 and an "
            "integer of at least 1"
        )
    integrators = _fixed_step_integrators(model)
    if not integrators:
        return None
    tensor = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    device = tensor.device if accelerator is None else accelerator.device
    precision = nullcontext() if accelerator is None else accelerator.autocast()
    rows = [torch.empty(0, len(_COLUMNS), dtype=torch.float64)]
    # Not inference_mode: fields and potentials may differentiate inside their forward.
    with modes_restored(model), torch.no_grad(), precision:
        model.eval()
        for x, y in _share(loader, samples, accelerator):
            outputs, nfe = _run(model, x.to(device))
            with _finer(integrators.values(), factor):
                refined, refined_nfe = _run(model, x.to(device))
            rows.append(_compared(outputs, refined, y, nfe, refined_nfe))
    gathered = torch.cat(rows if accelerator is None else gather_object([torch.cat(rows)]))
    if not len(gathered):
        raise InvalidInputError("the loader has no batch; give at least one sample")
    return _summarized(gathered, {n: m.step_size for n, m in integrators.items()}, factor)


def _fixed_step_integrators(model: nn.Module) -> dict[str, FixedStep]:
    """Return them by name; other parts, such as attacks, may have a ``step_size`` of their own."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Integrator) and isinstance(module, FixedStep)
    }


@contextmanager
def _finer(integrators: Iterable[FixedStep], factor: float) -> Iterator[None]:
    """Divide the step sizes within the block."""
    # All are read before any is assigned: one may be a view of another.
    before = [(integrator, integrator.step_size) for integrator in integrators]
    try:
        for integrator, size in before:
            integrator.step_size = size / factor
        yield
    finally:
        for integrator, size in before:
            integrator.step_size = size


def _share(
    loader: Iterable[tuple[Tensor, Tensor]], samples: int, accelerator: Accelerator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of the batches of the first so many samples."""
    processes = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    for index, (x, y) in enumerate(loader):
        if index % processes == rank:
            yield x[:samples], y[:samples]
        samples -= len(x)
        if samples <= 0:
            return


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """Return the outputs, and the evaluations they took, NaN where the model does not tell."""
    if isinstance(model, StabilityModel):
        outputs, solution = model.run(x)
        return outputs, float(solution.nfe)
    return model(x), math.nan


_COLUMNS = ("change", "size", "right", "refined_right", "changed", "nfe", "refined_nfe")


def _compared(
    outputs: Float[Tensor, "batch ..."],
    refined: Float[Tensor, "batch ..."],
    y: Tensor,
    nfe: float,
    refined_nfe: float,
) -> Float[Tensor, "batch columns"]:
    """Return one row of figures per sample, NaN where there is none."""
    # On the CPU first: float64 does not exist on Apple's devices.
    outputs, refined, y = outputs.cpu().double(), refined.cpu().double(), y.cpu()
    one = torch.ones(len(outputs), dtype=torch.float64)
    columns = [(refined - outputs).flatten(1).norm(dim=1), refined.flatten(1).norm(dim=1)]
    if y.is_floating_point():
        columns += [math.nan * one] * 3
    else:
        classes, refined_classes = _classes(outputs), _classes(refined)
        pairs = ((classes, y), (refined_classes, y))
        columns += [(a == b).double() for a, b in pairs]
        columns.append((classes != refined_classes).double())
    return torch.stack([*columns, nfe * one, refined_nfe * one], 1)


def _classes(outputs: Float[Tensor, "batch classes"]) -> Tensor:
    """Return the predicted classes, −1 for outputs that are not finite."""
    return torch.where(outputs.isfinite().all(1), outputs.argmax(1), -1)


def _summarized(
    rows: Float[Tensor, "samples columns"], step_sizes: Mapping[str, float], factor: float
) -> StepSizeSensitivity:
    means = dict(zip(_COLUMNS, rows.mean(0).tolist(), strict=True))
    known = {n: None if math.isnan(value) else value for n, value in means.items()}
    change, size = rows[:, 0], rows[:, 1].square().mean().sqrt()
    # Nothing changed where there is nothing: 0/0 is no change, ∞/∞ is.
    relative = torch.where(change == 0, 0.0, change / size).nan_to_num(
        nan=math.inf, posinf=math.inf
    )
    return StepSizeSensitivity(
        step_sizes=step_sizes,
        factor=factor,
        samples=len(rows),
        accuracy=known["right"],
        refined_accuracy=known["refined_right"],
        changed=known["changed"],
        mean_change=float(relative.mean()),
        largest_change=float(relative.max()),
        nfe=known["nfe"],
        refined_nfe=known["refined_nfe"],
    )
