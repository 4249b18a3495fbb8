"""Phase portraits and violations of the Lyapunov condition [LyaNet, Figures 1 and 2].

LyaNet and the neural ODE of the same architecture learn which of two circles a point is on. For one
such point their fields move states of the plane, which is cut into the regions of the two classes:
trajectories from a grid of initial states show where they lead, and a map over the level sets of
the potential V shows where the condition dV/dt + kappa V <= 0 fails, before and after training:

    python examples/phase_portrait.py

Writes one figure per model and map (PNG) and a table (Markdown, JSON) into the output folder.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import make_circles
from torch import Tensor

import stabnet
from stabnet.interfaces import Context

KAPPA = 2.0
REACH = 4.0  # the part of the plane that is shown
# The field moves states at the speed rate * gain / 2 = 3: enough to satisfy the condition all over.
FIELD = {"name": "data_controlled", "rate": 3.0, "gain": 2.0, "corner": 5.0}
OBJECTIVES = {
    "LyaNet": {
        "name": "lyapunov_monte_carlo",
        "kappa": KAPPA,
        "samples": 256,
        "sampler": {"name": "hypercube", "size": REACH},
    },
    "neural ODE": "cross_entropy",
}


def circles(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points on two circles, of radius 1 (class 0) and 1/2 (class 1), with noise."""
    x, y = make_circles(count, noise=0.05, factor=0.5, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def make(seed: int) -> stabnet.StabilityModel:
    """Return an untrained model; both have this architecture."""
    torch.manual_seed(seed)
    return stabnet.build(
        "lyanet",
        in_shape=(2,),
        num_outputs=2,
        backbone={"name": "mlp", "hidden": [64, 64], "width": 8 * 8},
        vector_field=FIELD,
    )


class Portrait:
    """What the field of a model does in the plane of its states, for one input and its class."""

    def __init__(self, model: stabnet.StabilityModel, x: Tensor, y: Tensor) -> None:
        self.model, self.y = model.eval(), y
        self.u = model.features(x).detach()
        self.potential = stabnet.build("supervised", kind="potential", state_shape=(2,))

    def velocity(self, z: Tensor) -> Tensor:
        """Return dz/dt at states."""
        return self.model.velocity(0.0, z.unsqueeze(0), u=self.u).squeeze(0)

    def value(self, z: Tensor) -> Tensor:
        """Return V at states."""
        return self.potential(z.unsqueeze(0), Context(label=self.y)).squeeze(0)

    def excess(self, z: Tensor) -> Tensor:
        """Return dV/dt + kappa V at states: where it is positive, the condition is violated."""
        z = z.unsqueeze(0)
        velocity = self.model.velocity(0.0, z, u=self.u)
        value, rate = self.potential.value_and_rate(z, velocity, Context(label=self.y))
        return (rate + KAPPA * value).squeeze(0)

    @torch.no_grad()
    def trajectories(self, starts: Tensor) -> Tensor:
        """Return states at 41 times from 0 to 1, from each start."""
        flow, times = self.model.dynamics, torch.linspace(0, 1, 41)
        u = self.u.expand(len(starts), -1)
        return flow.integrator(flow.vector_field, starts, times, u).states


def grid(side: int) -> Tensor:
    """Return a grid of states in the part of the plane that is shown."""
    ticks = torch.linspace(-0.85 * REACH, 0.85 * REACH, side)
    return torch.cartesian_prod(ticks, ticks)


def draw(label: str, portrait: Portrait, trained: bool, out: Path) -> None:
    """Save the figures of one model."""
    extent, name = (-REACH, REACH, -REACH, REACH), label.lower().replace(" ", "-")
    stage = "after" if trained else "before"
    shown = stabnet.plots.violation_map(portrait.excess, portrait.value, extent)
    stabnet.plots.save_figure(shown, out / f"violation-{name}-{stage}.png", dpi=80)
    if trained:
        shown = stabnet.plots.phase_portrait(
            portrait.velocity,
            extent,
            trajectories=portrait.trajectories(grid(5)),
            classes=portrait.model.decode,
            class_names=("outer circle", "inner circle"),
        )
        stabnet.plots.save_figure(shown, out / f"phase-{name}.png", dpi=80)


def measure(label: str, portrait: Portrait) -> dict:
    """Return what the figures show, in numbers."""
    with torch.no_grad():
        excess, starts = portrait.excess(grid(101)), grid(21)
        along = torch.stack([portrait.value(z) for z in portrait.trajectories(starts)])
    bound = 1.01 * along[0] * torch.exp(-KAPPA * torch.linspace(0, 1, 41)).unsqueeze(1)
    right = portrait.trajectories(starts)[-1].argmax(1) == portrait.y
    return {
        "model": label,
        "states that violate": (excess > 0).double().mean().item(),
        "largest violation": excess.max().clamp(min=0).item(),
        "starts that end in the class": right.double().mean().item(),
        "decay from these starts": (along <= bound)[1:].double().mean().item(),
    }


def markdown(rows: list[dict], args: argparse.Namespace) -> str:
    """Return the table and the figures."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    names = list(rows[0])
    lines = ["| " + " | ".join(c) + " |" for c in (names, ["---"] * len(names), *cells)]
    figures = ["phase-lyanet", "phase-neural-ode", "violation-lyanet-before",
               "violation-lyanet-after", "violation-neural-ode-after"]  # fmt: skip
    return "\n".join([
        "# Phase portraits",
        "",
        f"One point of the {'inner' if args.label else 'outer'} circle; {args.epochs} epochs, seed "
        f"{args.seed}, kappa = {KAPPA:g}, states up to {0.85 * REACH:g}: 101 x 101 for the "
        "condition, 21 x 21 as starts of trajectories, 40 times after each for V(t) <= 1.01 V(0) "
        "exp(-kappa t). Both models have one architecture and one start.",
        "",
        *lines,
        "",
        *(f"![{name}]({name}.png)" for name in figures),
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--label", type=int, default=0, choices=(0, 1), help="class of the input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/phase-portrait"))
    args = parser.parse_args(argv)
    x, y = circles(1000, args.seed + 1000)
    data = stabnet.data.from_tensors(*circles(1000, args.seed), x, y, name="two circles")
    index = int((y == args.label).nonzero()[0])
    x, y = x[index : index + 1], y[index : index + 1]
    start = make(args.seed)
    rows = [measure("both, before training", Portrait(start, x, y))]
    draw("LyaNet", Portrait(start, x, y), False, args.out)
    for label, objective in OBJECTIVES.items():
        fitted = stabnet.training.fit(
            copy.deepcopy(start),
            stabnet.data.split(data, seed=args.seed),
            objective=objective,
            epochs=args.epochs,
            batch_size=64,
            learning_rate=1e-2,
            run_dir=args.out / label.replace(" ", "-"),
            seed=args.seed,
            device="cpu",
            progress=False,
        )
        portrait = Portrait(fitted.model, x, y)
        draw(label, portrait, True, args.out)
        rows.append(measure(label, portrait))
    (args.out / "phase-portrait.md").write_text(markdown(rows, args))
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": rows}
    (args.out / "phase-portrait.json").write_text(json.dumps(record, indent=2) + "\n")
    print(markdown(rows, args))


if __name__ == "__main__":
    main()
