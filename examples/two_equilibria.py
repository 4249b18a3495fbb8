"""A system with a second equilibrium: no stable field fits it everywhere, but one does on a region.

The system dx1/dt = x2, dx2/dt = -x1 + x1^2 - x2 has a stable focus at the origin and a saddle at
p = (1, 0), beyond which states run away. This is in the spirit of Exercise 11 of [SNN], which asks
the same of a system of its own. `projected` is fitted to states from a whole window around both
equilibria, and to states of a region about the origin alone:

    python examples/two_equilibria.py

**What must fail.** A field F with grad V . F <= -alpha V has a norm of at least alpha V / |grad V|
at p, where the system is at rest: that much is its error there. This depends on V, but no V helps:
on every circle around p that leaves out the origin, F differs from the system f by at least the
smallest |f| on it. For F has no equilibrium inside, so its index along the circle is 0, and that of
f around a saddle is -1; if F were nowhere opposite to f, the fields (1 - s) f + s F would have no
zero on the circle, and the two indices would be the same. Where they are opposite, |F - f| >= |f|.

**What works.** The energy E = x1^2/2 - x1^3/3 + x2^2/2 falls at the rate x2^2, so that the region
E <= c, x1 < 1 is never left if c < E(p) = 1/6, and all of it goes to the origin. Fitted there, the
learned potential also says something of the system: where it falls along f, on a sublevel set, all
states go to the origin. This is looked for on a grid, which is evidence and no proof.

Writes a table (Markdown, JSON) and phase portraits (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from command_line import command_of
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import relu

import stabnet
from stabnet.interfaces import Guarantee

WINDOW = (-1.0, 2.0, -1.5, 1.5)  # left, right, bottom, top
SADDLE = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
BRIM = 1 / 6  # the energy of the saddle
REGION = 0.8 * BRIM
FIELD = {
    "name": "projected",
    "vector_field": {"name": "mlp", "hidden": [64, 64]},
    "potential": {"name": "icnn", "hidden": [64], "tangent": True},
    "alpha": 0.1,
}


def system(x: Tensor) -> Tensor:
    """Return the derivatives at states."""
    x1, x2 = x.unbind(-1)
    return torch.stack([x2, -x1 + x1**2 - x2], -1)


def inside(x: Tensor, level: float) -> Tensor:
    """Return which states are in the well around the origin, below a level of the energy."""
    x1, x2 = x.unbind(-1)
    return (x1**2 / 2 - x1**3 / 3 + x2**2 / 2 <= level) & (x1 < 1)


def window(side: int) -> Tensor:
    """Return the midpoints of the cells of the window, in double precision."""
    share = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    left, right, bottom, top = WINDOW
    return torch.cartesian_prod(left + (right - left) * share, bottom + (top - bottom) * share)


def sample(count: int, seed: int, region: bool) -> Tensor:
    """Return random states of the window, or of the region."""
    generator = torch.Generator().manual_seed(seed)
    left, right, bottom, top = WINDOW
    x = torch.rand(40 * count, 2, generator=generator)
    x = torch.tensor([left, bottom]) + x * torch.tensor([right - left, top - bottom])
    return x[inside(x, REGION)][:count] if region else x[:count]


def train(where: str, args: argparse.Namespace) -> stabnet.StabilityModel:
    """Return a field that was fitted to the system, as a model in double precision."""
    x = sample(args.train, args.seed, where == "region")
    test = sample(100, args.seed + 1000, where == "region")
    data = stabnet.data.from_tensors(x, system(x), test, system(test), name=where)
    torch.manual_seed(args.seed)
    model = stabnet.build("stable_dynamics", in_shape=(2,), vector_field=FIELD)
    stabnet.training.fit(
        model,
        stabnet.data.split(data, seed=args.seed),
        objective="derivative_matching",
        epochs=args.epochs,
        batch_size=100,
        learning_rate=1e-2,
        run_dir=args.out / where,
        seed=args.seed,
        device="cpu",
        progress=False,
    )
    return model.double().eval().requires_grad_(False)


def directions(count: int) -> Tensor:
    """Return unit vectors, evenly around the circle."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def unavoidable(circles: int = 200, points: int = 3600) -> tuple[float, float]:
    """Return the radius of a circle around the saddle, and the error that every V leaves on it.

    The Jacobian [[0, 1], [2 x1 - 1, -1]] of the system is at most sqrt(11) in norm for x1 in
    [0, 2], which bounds how far |f| falls between the points that are looked at.
    """
    radius = torch.linspace(0, 1, circles + 1, dtype=torch.float64)[1:-1, None]
    x = SADDLE + radius[..., None] * directions(points)
    least = system(x).norm(dim=-1).amin(1) - math.sqrt(11) * math.pi / points * radius[:, 0]
    return radius[least.argmax(), 0].item(), least.max().item()


def measure(model: stabnet.StabilityModel, side: int) -> tuple[dict, Guarantee | None]:
    """Return the errors of a field and their lower bounds, and what its potential says."""
    potential, alpha = model.dynamics.vector_field.potential, FIELD["alpha"]
    x = window(side)
    f, within = system(x), inside(x, REGION)
    scale = f[within].square().sum(1).mean().sqrt()
    error = (model.velocity(0.0, x) - f).norm(dim=1)
    value, slope = potential.value_and_gradient(x)
    least = relu((slope * f).sum(1) + alpha * value) / slope.norm(dim=1)
    at_saddle, slope_there = potential.value_and_gradient(SADDLE)
    ring = SADDLE + unavoidable()[0] * directions(3600)
    off = model.velocity(0.0, ring) - system(ring)
    row = {
        "error in the region": (error[within].square().mean().sqrt() / scale).item(),
        "at least (this V)": (least[within].square().mean().sqrt() / scale).item(),
        "error outside": (error[~within].square().mean().sqrt() / scale).item(),
        "outside, at least (this V)": (least[~within].square().mean().sqrt() / scale).item(),
        "error at the saddle": model.velocity(0.0, SADDLE).norm().item(),
        "at the saddle, at least (this V)": (alpha * at_saddle / slope_there.norm()).item(),
        "largest on the circle": off.norm(dim=1).max().item(),
    }
    falls = (slope * f).sum(1) < 0
    row["V falls in the region"] = falls[within].double().mean().item()
    level, found = certificate(potential, x, value, falls)
    row["sublevel set / well"] = ((value < level).sum() / inside(x, BRIM).sum()).item()
    return row, found


def certificate(
    potential: stabnet.interfaces.Potential, x: Tensor, value: Tensor, falls: Tensor
) -> tuple[float, Guarantee | None]:
    """Return the highest level below which the potential falls at all states looked at.

    It is below the potential on the border, so that the sublevel set, which is convex, does not
    leave the window; and below that of the saddle, where nothing falls. Without a state below it
    nothing was looked at, and there is no guarantee.
    """
    left, right, bottom, top = WINDOW
    corners = torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]])
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None, None]
    border = torch.lerp(corners.double(), corners.double().roll(-1, 0), share).flatten(0, 1)
    level = torch.cat([potential(border), potential(SADDLE), value[~falls]]).min().item()
    count = int((value < level).sum())
    if count == 0:
        return level, None
    return level, Guarantee(
        claim="all states of a sublevel set of the learned potential go to the origin, along the "
        "system itself",
        formula=f"∇V(x)ᵀf(x) < 0 for all x ≠ 0 with V(x) < {level:.4g}",
        source="Lyapunov's theorem, with V from the fit",
        status="sampled",
        detail=f"looked at {count} states of a grid; nothing is known between them",
    )


def outline(level: float) -> tuple[Tensor, Tensor]:
    """Return the border of the well below a level of the energy, as a closed curve."""
    x1 = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    square = 2 * level - x1**2 + 2 * x1**3 / 3
    x1, x2 = x1[square >= 0], square[square >= 0].sqrt()
    return torch.cat([x1, x1.flip(0), x1[:1]]), torch.cat([x2, -x2.flip(0), x2[:1]])


def draw(models: dict[str, stabnet.StabilityModel], path: Path) -> None:
    """Save phase portraits of the system and of both fits."""
    figure = Figure(figsize=(3.4 * (1 + len(models)), 4.0), layout="constrained")
    panels = figure.subplots(1, 1 + len(models), sharey=True)
    origin = torch.zeros(1, 2)
    both = torch.cat([origin, SADDLE])
    shown = {"axis_labels": ("$x_1$", ""), "potential": None}
    stabnet.plots.phase_portrait(system, WINDOW, equilibria=both, panel=panels[0], **shown)
    panels[0].set_title("the system")
    for panel, (where, model) in zip(panels[1:], models.items(), strict=True):
        shown["potential"] = model.dynamics.vector_field.potential
        stabnet.plots.phase_portrait(
            lambda x, model=model: model.velocity(0.0, x.double()),
            WINDOW,
            **shown | {"equilibria": origin, "levels": 9, "panel": panel},
        )
        panel.set_title(f"fitted to the {where}")
    for panel in panels:
        panel.plot(*outline(REGION), color="black", linewidth=1.2, linestyle="--", zorder=3)
    panels[0].set_ylabel("$x_2$")
    stabnet.plots.save_figure(figure, path, dpi=90)


def markdown(
    rows: list[dict], guarantees: list[Guarantee | None], command: str, args: argparse.Namespace
) -> str:
    """Return the table, and how to read it."""
    names = [name for name in rows[0] if name != "fitted to"]
    cells = [
        [name, *(f"{row[name]:.3g}" if name != "CPU seconds" else str(row[name]) for row in rows)]
        for name in names
    ]
    header = ["", *(f"fitted to the {row['fitted to']}" for row in rows)]
    lines = ["| " + " | ".join(c) + " |" for c in (header, ["---"] * len(header), *cells)]
    radius, least = unavoidable()
    return "\n".join([
        "# A system with two equilibria\n",
        f"Made with `{command}`; torch {torch.__version__}, {torch.get_num_threads()} thread(s).\n",
        f"The field `projected`, at the rate {FIELD['alpha']:g}, was fitted to {args.train} states "
        "and derivatives without noise, from the whole window or from the region (dashed), which "
        f"is the well around the origin up to {REGION / BRIM:.0%} of the energy of the saddle; "
        f"{args.epochs} epochs, seed {args.seed}. "
        "Errors in the region and outside are root mean squares, relative to that of the "
        "system's derivative in the region; the other errors are absolute. *At least (this V)* is "
        "the least error of any field that descends the same potential at the same rate.\n",
        *lines,
        f"\nWhatever the potential, the largest error on the circle of radius {radius:.3g} around "
        f"the saddle is at least {least:.3g}: the system has index -1 along it, and a field "
        "without an equilibrium inside has index 0.\n",
        "![phase portraits](two-equilibria.png)\n",
        *reading(rows, guarantees),
        "",
    ])  # fmt: skip


def reading(rows: list[dict], guarantees: list[Guarantee | None]) -> list[str]:
    """Return how to read the table, and what the potentials say of the system."""
    window, region = rows
    none = "no such set; its potential rises, or leaves the window, too near the origin."
    sets = [f"{g.formula}. Status: {g.status}; {g.detail}." if g else none for g in guarantees]
    return [
        "How to read it. *At least* is what the constraint costs with the potential that was "
        "learned; what an error is above it is left to fitting. Outside the region there are "
        "states that run away, which no field of this kind follows, so no fit is right "
        "everywhere, and one to the region alone must not be believed outside of it: where the "
        "system runs away, it goes to the origin. The fit to the window is wrong by "
        f"{window['error outside']:.3g} outside, of which its potential alone costs "
        f"{window['outside, at least (this V)']:.3g}, and by {window['error in the region']:.3g} "
        f"in the region; the fit to the region by {region['error in the region']:.3g} there.\n",
        "A potential may also say something of the system. *V falls in the region* is the share of "
        "states of the region at which it falls along the system itself, and *sublevel set / well* "
        "the area of the largest sublevel set on which it does so everywhere that was looked at, "
        "over the area of the whole well:\n",
        *(f"- fitted to the {r['fitted to']}: {s}" for r, s in zip(rows, sets, strict=True)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the system twice, with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--train", type=int, default=1000, help="states")
    parser.add_argument("--side", type=int, default=200, help="of the grid of states looked at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/two-equilibria"))
    args = parser.parse_args(argv)
    rows, guarantees, models = [], [], {}
    for where in ("window", "region"):
        cpu = time.process_time()
        models[where] = train(where, args)
        row, guarantee = measure(models[where], args.side)
        row["CPU seconds"] = round(time.process_time() - cpu, 1)
        rows.append({"fitted to": where} | row)
        guarantees.append(guarantee)
    draw(models, args.out / "two-equilibria.png")
    text = markdown(rows, guarantees, command_of(__file__, parser, args), args)
    (args.out / "two-equilibria.md").write_text(text)
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": rows}
    record["unavoidable"] = dict(zip(("radius", "error"), unavoidable(), strict=True))
    record["guarantees"] = [g and g.to_dict() for g in guarantees]
    (args.out / "two-equilibria.json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
