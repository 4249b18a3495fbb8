r"""A step of Monte Carlo Lyapunov training beside the same formulas as they stand.

    python benchmarks/lyapunov.py            # the full size, one thread, some minutes and 9 GB
    python benchmarks/lyapunov.py --quick    # small sizes, in seconds

A step is the loss of given features :math:`W(x)` and labels on given states, shared by the batch,
and its gradients in the features and all parameters of the field. The *expanded* step repeats
:math:`W(x)` for every sample, forms all corners ``(batch · samples, C, C)``, and differentiates
``V`` by autograd; both give one loss and one set of gradients, which every run asserts in double
precision. The *product* is what no step can do without: :math:`W(x) A` for all states at once,
forward and backward.

Times are medians, all in turn: on one thread time of that thread, which other processes do not
lengthen; on a GPU between events. Peak memory is the greatest sum of the storages that live at one
time, what is saved for the backward pass included, less what was there before; on a GPU it is the
allocator's.

Writes a table (Markdown), everything measured (JSON) and a plot (PNG).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from lyapunov_report import AGREEMENT, markdown, plot, verdicts
from measuring import Run, medians, peak_bytes
from stabnet_lyapunov import DataControlledField, SupervisedPotential
from torch import Tensor

import stabnet
from stabnet.interfaces import Context

KAPPA = 5.0
Form = Literal["simplex", "direction"]
FORMS: tuple[Form, ...] = ("simplex", "direction")


@dataclass(frozen=True)
class Size:
    """A form of the field, and how much of everything."""

    form: Form = "simplex"
    batch: int = 64
    samples: int = 512
    classes: int = 10
    width: int = 128

    @property
    def expanded_bytes(self) -> int:
        """What the expanded step takes at least: matrices, corners, and as much again."""
        pairs = self.batch * self.samples
        return 4 * pairs * (2 * self.width**2 + 2 * self.classes**2)


@final
class Problem:
    """A field with random weights, features, labels and states.

    Args:
        size: the size.
        device: where it is.
        dtype: its precision.
    """

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        n, h = size.classes, size.width
        self.field: Any = DataControlledField((n,), (h**2,), size.form, rate=KAPPA)
        self.field.to(device, dtype)
        like: Any = {"device": device, "dtype": dtype}
        self.u = torch.randn(size.batch, h**2, **like).div(h**0.5).requires_grad_()
        self.y = torch.randint(n, (size.batch,)).to(device)
        self.z = 10 * torch.rand(1, size.samples, n, **like) - 5
        self.potential = SupervisedPotential((n,))
        self.leaves = [self.u, *self.field.parameters()]

    def step(self, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """Return loss and gradients, as the objective computes them."""
        velocity = self.field(0.0, self.z, self.u[rows])
        context = Context(label=self.y[rows])
        value, rate = self.potential.value_and_rate(self.z, velocity, context)
        return self._differentiated(torch.relu(rate + KAPPA * value).mean())

    def expanded(self, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """Return loss and gradients by the formulas as they stand."""
        field, u, y = self.field, self.u[rows], self.y[rows]
        batch, samples, n, h = len(u), self.z.shape[1], self.z.shape[2], field.first.out_features
        W = u.view(batch, 1, h, h).expand(-1, samples, -1, -1).reshape(-1, h, h)
        z = self.z.expand(batch, -1, -1).reshape(-1, n).requires_grad_()
        hidden = field.activation(field.first(z.detach()))
        r = field.last(field.activation(torch.bmm(W, hidden.unsqueeze(-1)).squeeze(-1)))
        corners = field.corner * (2 * torch.eye(n, dtype=z.dtype, device=z.device) - 1)
        corners = corners.repeat(batch * samples, 1, 1)
        if field.form == "simplex":
            mean = torch.bmm(r.softmax(-1).unsqueeze(1), corners).squeeze(1)
            velocity = field.rate * field.gain / n * (mean - z.detach())
        else:
            d, towards = r / r.norm(dim=-1, keepdim=True), corners - z.detach().unsqueeze(1)
            share = torch.bmm(towards, d.unsqueeze(-1)).squeeze(-1).softmax(-1)
            w = (towards.norm(dim=-1) * share).mean(-1, keepdim=True)
            velocity = field.rate * field.gain * w * d
        losses = F.cross_entropy(z, y.repeat_interleave(samples), reduction="none")
        value = torch.relu(losses - self.potential.truncation)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        rate = (gradient * velocity).sum(-1)
        return self._differentiated(torch.relu(rate + KAPPA * value.detach()).mean())

    def product(self) -> Run:
        """Return the product of all matrices with all hidden states, forward and backward."""
        h = self.field.first.out_features
        W = self.u.detach().reshape(-1, h).requires_grad_()
        A = torch.randn(self.z.shape[1], h, dtype=W.dtype, device=W.device, requires_grad=True)
        weight = torch.randn(len(A), len(W), dtype=W.dtype, device=W.device)
        return lambda: torch.autograd.grad(F.linear(A, W), (W, A), weight)

    def _differentiated(self, loss: Tensor) -> tuple[Tensor, ...]:
        return (loss.detach(), *torch.autograd.grad(loss, self.leaves))


def disagreement(size: Size, device: torch.device, chunk: int = 8) -> float:
    """Return how far the two steps differ in double precision: relative, of loss and gradients.

    The expanded one is taken over a few inputs at a time, whose mean is that of the batch.
    """
    problem = Problem(size, device, torch.float64)
    total = [torch.zeros_like(part) for part in problem.step()]
    for start in range(0, size.batch, chunk):
        rows = slice(start, min(start + chunk, size.batch))
        for sums, part in zip(total, problem.expanded(rows), strict=True):
            sums += part * ((rows.stop - rows.start) / size.batch)
    errors = [
        (ours - theirs).norm() / theirs.norm()
        for ours, theirs in zip(problem.step(), total, strict=True)
    ]
    return torch.stack(errors).max().item()


def measure(size: Size, device: torch.device, rounds: int, limit: float) -> dict[str, Any]:
    """Return times and peaks of the step, the product and, where it fits, the expanded step."""
    problem = Problem(size, device, torch.float32)
    runs: dict[str, Run] = {"step": problem.step, "product": problem.product()}
    if size.expanded_bytes <= limit:
        runs["expanded"] = problem.expanded
    peaks = {name: peak_bytes(run, device) for name, run in runs.items()}
    times = medians(runs, device, rounds)
    return {**asdict(size), "seconds": times, "bytes": peaks}


def integration(device: torch.device, rounds: int, size: Size) -> dict[str, float]:
    """Return how much longer ``rk4`` takes than a loop written by hand, on two fields."""
    problem, rk4 = Problem(size, device, torch.float32), stabnet.build("rk4", kind="integrator")
    matrix = torch.randn(size.classes, size.classes, device=device)
    z, steps = torch.zeros(size.batch, size.classes, device=device), 10

    def loop(f: Any, u: Any) -> Tensor:
        state, h = z, 1 / steps
        for k in range(steps):
            t = k * h
            k1 = f(t, state, u)
            k2 = f(t + h / 2, state + h / 2 * k1, u)
            k3 = f(t + h / 2, state + h / 2 * k2, u)
            k4 = f(t + h, state + h * k3, u)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state

    fields = {
        "tanh(Mz), of almost no cost": lambda t, z, u: torch.tanh(z @ matrix),
        "data_controlled": problem.field,
    }
    found = {}
    for name, f in fields.items():
        u = problem.u.detach() if f is problem.field else None
        torch.testing.assert_close(rk4(f, z, (0.0, 1.0), u).states[-1], loop(f, u))
        with torch.no_grad():
            ours, hand = (lambda f=f, u=u: rk4(f, z, (0.0, 1.0), u)), (lambda f=f, u=u: loop(f, u))
            times = medians({"ours": ours, "hand": hand}, device, 10 * rounds)
        found[name] = times["ours"] / times["hand"]
    return found


def training(device: torch.device, rounds: int, size: Size) -> dict[str, float]:
    """Return the times of a training step of one model, and of its encoder alone."""
    torch.manual_seed(0)
    backbone = {"name": "convnet", "channels": [16, 32], "width": size.width**2}
    model = stabnet.build("lyanet", in_shape=(1, 28, 28), backbone=backbone).to(device)
    x, y = torch.rand(size.batch, 1, 28, 28, device=device), torch.arange(size.batch) % 10
    objectives = {
        "lyapunov": stabnet.build("lyapunov_monte_carlo", kind="objective", samples=size.samples),
        "back-propagated": stabnet.build("cross_entropy", kind="objective"),
    }

    def train(objective: Any) -> None:
        model.zero_grad()
        objective(model, x, y.to(device))[0].backward()

    runs: dict[str, Run] = {n: functools.partial(train, o) for n, o in objectives.items()}
    runs["encoder alone"] = lambda: model.features(x).sum().backward()
    return medians(runs, device, rounds)


def sizes(form: Form, full: Size) -> dict[str, list[Size]]:
    """Return the sizes that are measured: by samples, by batch and by classes around the full."""
    counts = (full.samples // 4, full.samples, full.samples * 4)
    batches = (full.batch // 4, full.batch, full.batch * 4)
    return {
        "samples": [replace(full, form=form, samples=n) for n in counts],
        "batch": [replace(full, form=form, batch=n) for n in batches],
        "classes": [replace(full, form=form, classes=n) for n in (2, 10, 30, 100)],
    }


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    command = ["python", "benchmarks/lyapunov.py", *(["--quick"] if args.quick else [])]
    command += ["--threads", str(args.threads), "--device", str(args.device)]
    cuda = args.device.type == "cuda"
    name = torch.cuda.get_device_name(args.device) if cuda else f"CPU, {platform.machine()}"
    text = (
        f"Made with `{shlex.join(command)}`; torch {torch.__version__}, {name}, {os.cpu_count()} "
        f"CPUs, {args.threads} thread(s); float32. Load average at the end: {_load()}."
    )
    return {
        "command": shlex.join(command),
        "torch": torch.__version__,
        "device": name,
        "text": text,
    }


def _load() -> str:
    """Return how busy the machine is: other processes take caches and memory bandwidth."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def main(arguments: list[str] | None = None) -> None:
    """Measure everything; write table, record and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--memory", type=float, default=5.0, help="GB for the expanded step")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else 5
    full = Size("simplex", 8, 16, 10, 8) if args.quick else Size()
    record: dict[str, Any] = {"disagreement": {}, "results": []}
    measured: dict[Size, int] = {}
    record["by"] = {"samples": [], "batch": [], "classes": []}
    for form in FORMS:
        error = disagreement(replace(full, form=form), args.device)
        assert error <= AGREEMENT, f"{form}: the steps differ by {error:.2e}"
        record["disagreement"][form] = error
        for by, chosen in sizes(form, full).items():
            for size in chosen:
                if size not in measured:
                    measured[size] = len(measured)
                    found = measure(size, args.device, rounds, 1e9 * args.memory)
                    record["results"].append(found)
                    print(size, {n: f"{t:.4g} s" for n, t in found["seconds"].items()})
                record["by"][by].append(measured[size])
    record["rk4"] = integration(args.device, rounds, full)
    record["training"] = training(args.device, rounds, full)
    record["targets"] = verdicts(record)
    record["setting"] = setting(args)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"lyapunov-{args.device.type}{'-quick' if args.quick else ''}"
    (args.out / f"{stem}.md").write_text(markdown(record))
    (args.out / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(record, args.out / f"{stem}.png")
    print(f"wrote {stem}.md, .json and .png")


if __name__ == "__main__":
    main()
