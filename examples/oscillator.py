"""The energy of a harmonic oscillator under Euler's method and symplectic ones [SNN, Exercise 3].

The oscillator dq/dt = p, dp/dt = -q moves on circles, on which its energy E = (q^2 + p^2) / 2 is
constant. A step of a method of length h is a 2 x 2 matrix, so that what becomes of the energy is
known exactly:

- Euler's method multiplies it by 1 + h^2 in every step;
- symplectic Euler keeps q^2 + p^2 + h q p, so that for 0 < h < 2 the energy stays within
  [(2 - h) / (2 + h), (2 + h) / (2 - h)] of what it was;
- leapfrog keeps (1 - h^2/4) q^2 + p^2, so that it stays within [1 - h^2/4, 1 / (1 - h^2/4)].

    python examples/oscillator.py

The oscillator is written here as anybody's physical system would be: a class with the methods
`velocity` and `force`, which the integrators take by name. Writes a table (Markdown, JSON) and a
plot (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from command_line import command_of
from matplotlib.figure import Figure
from torch import Tensor

import stabnet

STEP_SIZES = (0.125, 0.5, 1.5)  # whose multiples are exact, so that all steps have one length
METHODS = {"euler": "Euler", "symplectic_euler": "symplectic Euler", "leapfrog": "leapfrog"}


class Oscillator(stabnet.interfaces.VectorField):
    """The harmonic oscillator, with states (q, p)."""

    state_shape, feature_shape = (2,), ()

    def velocity(self, t: float | Tensor, p: Tensor, u: Tensor | None = None) -> Tensor:
        """Return dq/dt."""
        return p

    def force(self, t: float | Tensor, q: Tensor, u: Tensor | None = None) -> Tensor:
        """Return dp/dt."""
        return -q

    def forward(self, t: float | Tensor, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return both."""
        q, p = z.chunk(2, -1)
        return torch.cat([self.velocity(t, p), self.force(t, q)], -1)


def starts(count: int = 16) -> Tensor:
    """Return states evenly on the unit circle."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def energies(method: str, h: float, steps: int) -> tuple[Tensor, Tensor]:
    """Return the states of a method, and their energy over that at the start."""
    integrator = stabnet.build(method, kind="integrator", step_size=h)
    with torch.no_grad():
        z0 = starts()
        states = integrator(Oscillator(), z0, [h * k for k in range(steps + 1)]).states
    return states, states.square().sum(-1) / z0.square().sum(-1)


def bounds(method: str, h: float, steps: int) -> tuple[float, float]:
    """Return what the least and the largest energy can be, by the formulas above."""
    if method == "euler":
        return 1.0, (1 + h**2) ** steps
    largest = (2 + h) / (2 - h) if method == "symplectic_euler" else 1 / (1 - h**2 / 4)
    return 1 / largest, largest


def measure(method: str, h: float, steps: int) -> dict:
    """Return one row of the table."""
    _, energy = energies(method, h, steps)
    least, largest = bounds(method, h, steps)
    within = energy.min() >= least * (1 - 1e-9) and energy.max() <= largest * (1 + 1e-9)
    return {
        "method": METHODS[method],
        "step size": h,
        "steps": steps,
        "least": energy.min().item(),
        "largest": energy.max().item(),
        "least possible": least,
        "largest possible": largest,
        "within": bool(within),
    }


def draw(h: float, path: Path, time: float = 30.0) -> None:
    """Save orbits and energies of all methods at one step size."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    orbit, energy_panel = figure.subplots(1, 2, width_ratios=(1, 1.5))
    steps = round(time / h)
    for method, label in METHODS.items():
        states, energy = energies(method, h, steps)
        q, p = states[:, 0].unbind(-1)
        orbit.plot(q, p, ".", markersize=4, label=label)
        energy_panel.plot([h * k for k in range(steps + 1)], energy[:, 0], label=label)
    orbit.set(xlabel="$q$", ylabel="$p$", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    energy_panel.set(xlabel="time", ylabel="energy over that at the start", yscale="log")
    energy_panel.set_ylim(0.3, 30)
    energy_panel.legend(title=f"step size {h:g}")
    stabnet.plots.save_figure(figure, path, dpi=90)


def markdown(rows: Sequence[dict], command: str) -> str:
    """Return the table, and how to read it."""
    cells = [
        [
            row["method"],
            f"{row['step size']:g}",
            f"{row['steps']:,}",
            *(f"{row[name]:.10g}" for name in ("least", "least possible")),
            *(f"{row[name]:.10g}" for name in ("largest", "largest possible")),
        ]
        for row in rows
    ]
    names = ["method", "h", "steps", "least energy", "by formula", "largest energy", "by formula"]
    lines = ["| " + " | ".join(c) + " |" for c in (names, ["---"] * len(names), *cells)]
    outside = [f"{row['method']} at h = {row['step size']:g}" for row in rows if not row["within"]]
    verdict = (
        f"Outside by more than 1e-9 of the formula: {', '.join(outside)}."
        if outside
        else "All energies are within their formulas, to 1e-9."
    )
    return "\n".join([
        "# The harmonic oscillator",
        "",
        f"Made with `{command}`; torch {torch.__version__}, float64.",
        "",
        "The least and the largest energy along the way, over that at the start, of "
        f"{len(starts())} states on a circle, and what they can be by the formulas:",
        "",
        *lines,
        "",
        verdict,
        "",
        "![orbits and energies](oscillator.png)",
        "",
        "How to read it. Euler's method gains energy in every step, however short. The symplectic "
        "methods keep a quadratic form near the energy exactly, so that the energy oscillates "
        "between bounds for ever and never drifts; those of leapfrog, of order 2, approach 1 as "
        "h², those of symplectic Euler as h. This is so for 0 < h < 2: beyond, the form is no "
        "longer positive, and bounds nothing.",
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and draw, with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="of the symplectic methods")
    parser.add_argument("--euler-steps", type=int, default=100, help="of Euler's method")
    parser.add_argument("--out", type=Path, default=Path("runs/oscillator"))
    args = parser.parse_args(argv)
    rows = [
        measure(method, h, args.euler_steps if method == "euler" else args.steps)
        for method in METHODS
        for h in STEP_SIZES
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    draw(0.5, args.out / "oscillator.png")
    text = markdown(rows, command_of(__file__, parser, args))
    (args.out / "oscillator.md").write_text(text)
    record = {
        "command": command_of(__file__, parser, args),
        "options": vars(args) | {"out": None},
        "torch": torch.__version__,
        "rows": rows,
    }
    (args.out / "oscillator.json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
