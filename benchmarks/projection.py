r"""The closed form of ``icnn`` beside differentiating it, and what projection and steps promise.

    python benchmarks/projection.py            # the full size, one thread, a few minutes
    python benchmarks/projection.py --quick    # small sizes, in seconds

*Times.* The closed form evaluates :math:`V` and :math:`\nabla V` in one call. *Differentiated* is
the formula as it stands, the smooth ReLU with its three cases, and
``torch.autograd.grad(create_graph=True)`` inside forward, as a field has to call it that knows no
gradient. *Tuned* is the same with the smooth ReLU of this package, which costs half. All give the
same numbers, which every run asserts. The forward pass alone is without gradients, where the
differentiated one must record a graph all the same; the backward pass is to all parameters.

*Promises.* Measured on random states: the largest violation of the descent condition, what is left
of value and field at the center after training, and how often a step raises the potential.

Times are medians, all in turn, of the one thread's time. Writes a table (Markdown) and everything
measured (JSON).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from measuring import Run, medians
from projection_report import markdown, verdicts
from stabnet_projection import ICNN, ProjectedField, StableStep, smooth_relu
from torch import Tensor

from stabnet.interfaces import Potential, VectorField

CPU = torch.device("cpu")
ALPHAS = (0.0, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Size:
    """A potential, and how many states it is evaluated at."""

    state: int = 64
    hidden: tuple[int, ...] = (64,)
    tangent: bool = False
    batch: int = 1024


def three_cases(x: Tensor, width: float) -> Tensor:
    """Return the smooth ReLU by its formula, [LyaDEQ] (12)."""
    curved = torch.where(x < width, x * x / (2 * width), x - width / 2)
    return torch.where(x <= 0, torch.zeros_like(x), curved)


@final
class Differentiated:
    """The value and gradient of an :class:`ICNN`, its gradient by autograd inside forward.

    Args:
        potential: the potential, whose parameters are used.
        activation: the smooth ReLU.
    """

    def __init__(self, potential: ICNN, activation: Callable[[Tensor, float], Tensor]) -> None:
        self.potential, self.activation = potential, activation

    def network(self, z: Tensor) -> Tensor:
        """Return ``g(z)``."""
        p = self.potential
        q = self.activation(p.direct[0](z), p.smoothing)
        for layer, raw in zip(p.direct[1:], p.positive, strict=True):
            q = self.activation(F.linear(q, F.softplus(raw) / raw.shape[1]) + layer(z), p.smoothing)
        return q[..., 0]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``V`` and its gradient, with a graph of both."""
        p, c = self.potential, self.potential.center
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            rise = self.network(z) - self.network(c)
            if p.tangent:
                at = c.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.network(at), at, create_graph=True)
                rise = rise - (z - c) @ slope
            value = self.activation(rise, p.smoothing) + p.eta * (z - c).square().sum(-1)
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        return value, gradient


def forms(potential: ICNN) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Return the ways to evaluate a potential and its gradient."""
    return {
        "closed": potential.value_and_gradient,
        "differentiated": Differentiated(potential, three_cases),
        "tuned": Differentiated(potential, lambda x, d: smooth_relu(x, d)[0]),
    }


def disagreement(size: Size) -> float:
    """Return how far the forms differ in double precision, relative: values and all gradients."""
    torch.manual_seed(0)
    potential = ICNN((size.state,), size.hidden, tangent=size.tangent).double()
    z = torch.randn(size.batch, size.state, dtype=torch.float64)
    found = []
    for form in forms(potential).values():
        value, gradient = form(z)
        weights = torch.autograd.grad(_total(value, gradient), tuple(potential.parameters()))
        all_weights = torch.cat([w.flatten() for w in weights])
        found.append((value.detach(), gradient.detach(), all_weights))
    errors = [
        (ours - theirs).norm() / theirs.norm()
        for other in found[1:]
        for ours, theirs in zip(found[0], other, strict=True)
    ]
    return torch.stack(errors).max().item()


def _total(value: Tensor, gradient: Tensor) -> Tensor:
    """Return what is differentiated: a loss of both."""
    return value.sum() + gradient.square().sum()


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Return the times of all forms, of the forward pass alone and with the backward pass."""
    torch.manual_seed(0)
    potential = ICNN((size.state,), size.hidden, tangent=size.tangent)
    z, leaves = torch.randn(size.batch, size.state), tuple(potential.parameters())
    runs: dict[str, Run] = {}
    for name, form in forms(potential).items():

        def forward(form: Any = form) -> None:
            with torch.no_grad():
                form(z)

        def both(form: Any = form) -> None:
            torch.autograd.grad(_total(*form(z)), leaves)

        runs[f"{name}, forward"], runs[f"{name}, both"] = forward, both
    return {**asdict(size), "seconds": medians(runs, CPU, rounds)}


@final
class Swirl(VectorField):
    """A field that turns, climbs here and descends there; the origin is an equilibrium."""

    def __init__(self, state_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = state_shape, ()

    def forward(self, t: float | Tensor, z: Tensor, u: Any = None) -> Tensor:
        """Evaluate the field."""
        return 3 * z.roll(1, -1) + z.square().clamp_max(100) - torch.sin(3 * z)


@final
class Wavy(Potential):
    """A potential that rises and falls along rays from the origin."""

    state_shape = (2,)

    def forward(self, z: Tensor, context: Any = None) -> Tensor:
        """Evaluate the potential."""
        return z.square().sum(-1) + 2 * torch.sin(3 * z[..., 0]).square()


def states(count: int, n: int, dtype: torch.dtype, decades: tuple[float, float]) -> Tensor:
    """Return random states whose sizes cover so many powers of ten."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.logspace(*decades, count, dtype=torch.float64)[:, None]
    return (scale * torch.randn(count, n, generator=generator, dtype=torch.float64)).to(dtype)


@torch.no_grad()
def violation(count: int, dtype: torch.dtype) -> float:
    """Return the largest relative violation of the descent condition, over depths and rates."""
    worst = -math.inf
    for depth in (1, 2, 3, 4):
        for alpha in ALPHAS:
            torch.manual_seed(depth)
            icnn = {"name": "icnn", "hidden": [16] * depth, "tangent": depth % 2 == 0}
            field = ProjectedField((4,), (), Swirl((4,)), icnn, alpha=alpha).to(dtype)
            z = states(count // 16, 4, dtype, (-12, 6))
            value, gradient = field.potential.value_and_gradient(z)
            out = field(0.0, z)
            scale = gradient.norm(dim=1) * out.norm(dim=1) + alpha * value
            excess = ((gradient * out).sum(1) + alpha * value) / scale
            worst = max(worst, excess[scale > 0].max().item())
    return worst


def after_training(steps: int) -> dict[str, float]:
    """Return value and field at the center after training all weights."""
    torch.manual_seed(0)
    options = {"name": "icnn", "center": [0.3, -1.7, 2.1, 0.9]}
    field = ProjectedField((4,), None, {"name": "mlp", "hidden": [16]}, options).double()
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    for _ in range(steps):
        z = torch.randn(16, 4, dtype=torch.float64)
        loss = (field(0.0, z) - torch.sin(3 * z) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        c = field.potential.center[None]
        return {
            "value": field.potential(c).abs().max().item(),
            "field": field(0.0, c).abs().max().item(),
            "base field": field.vector_field(0.0, c).abs().max().item(),
        }


@torch.no_grad()
def rises(count: int) -> list[dict[str, Any]]:
    """Return which shares of steps raise the potential: of plain Euler, and of both schemes."""
    found = []
    for name in ("icnn", "wavy"):
        torch.manual_seed(0)
        potential: Any = {"name": "icnn", "hidden": [8, 8]} if name == "icnn" else Wavy()
        field = ProjectedField((2,), (), Swirl((2,)), potential).double()
        z = states(count, 2, torch.float64, (-3, 1))
        for field.alpha in ALPHAS:
            velocity, value, _ = field.descent(0.0, z)
            for h in (0.01, 0.1, 0.5):
                row = {"potential": name, "alpha": field.alpha, "step_size": h, "states": count}
                ends = {"euler": z + h * velocity}
                for scheme in ("scaled", "shortened"):
                    ends[scheme] = StableStep(h, scheme)(field, z, (0.0, h)).states[-1]
                # What rounding may add to a value.
                bound = value * (1 + 16 * torch.finfo(value.dtype).eps)
                for scheme, end in ends.items():
                    row[scheme] = (field.potential(end) > bound).double().mean().item()
                found.append(row)
    return found


def sizes(quick: bool) -> list[Size]:
    """Return the sizes that are measured."""
    shapes = [(4, (64,)), (4, (64, 64)), (64, (64,)), (64, (64, 64)), (128, (128, 128))]
    if quick:
        shapes = [(3, (5,)), (3, (5, 5))]
    batches = (8, 16) if quick else (128, 1024)
    return [Size(n, h, t, b) for n, h in shapes for t in (False, True) for b in batches]


def main(arguments: list[str] | None = None) -> None:
    """Measure everything; write table and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    count = 1600 if args.quick else 10**5
    record: dict[str, Any] = {"results": []}
    for size in sizes(args.quick):
        record["results"].append(measure(size, 3 if args.quick else 51))
        record["results"][-1]["disagreement"] = disagreement(size)
        print(size, {n: f"{1e3 * t:.3g} ms" for n, t in record["results"][-1]["seconds"].items()})
    record["violation"] = {
        name: violation(count, dtype)
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32))
    }
    record["states"] = count
    record["training steps"] = 20 if args.quick else 1000
    record["center"] = after_training(record["training steps"])
    record["rises"] = rises(count)
    record["targets"] = verdicts(record)
    command = ["python", "benchmarks/projection.py", *(["--quick"] if args.quick else [])]
    record["setting"] = (
        f"Made with `{shlex.join(command)}`; torch {torch.__version__}, CPU, "
        f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread. Load average at the end: "
        f"{os.getloadavg()[0]:.1f}."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"projection-cpu{'-quick' if args.quick else ''}"
    (args.out / f"{stem}.md").write_text(markdown(record))
    (args.out / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {stem}.md and .json")


if __name__ == "__main__":
    main()
