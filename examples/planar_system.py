"""A damped nonlinear oscillator, learned with three constraints on its stability and with none.

The system dx1/dt = x2, dx2/dt = -x1 - x1^3 - 0.2 x2 is learned from noisy derivatives in the square
|x1|, |x2| <= 2 and looked at in one three times as wide:

    python examples/planar_system.py

All its states go to the origin: V = x1^2/2 + x1^4/4 + x2^2/2 + x1 x2/10 is convex, and
dV/dt + V/10 = -(x1^2 + x2^2)/20 - 3 x1^4/40 - x1 x2/100 <= 0. So the system is one of those that
`projected` can represent at the rate 0.1. It is none of those that `negative_definite` and
`negative_gradient` can: |x| rises where x1^3 x2 + 0.2 x2^2 < 0, and it rotates. How much error that
leaves at least can be computed, see `least_error`. An `mlp` can represent it, and anything else.

Writes a table (Markdown, JSON) and phase portraits (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from command_line import command_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from stabnet_projection import NegativeGradientField
from torch import Tensor
from torch.nn.functional import relu

import stabnet

REACH, FAR = 2.0, 6.0  # training states have entries up to REACH; it is tested up to FAR
CLOSE = 0.5  # a state this close to the origin has returned
POTENTIAL = {"name": "icnn", "hidden": [64], "tangent": True}
MLP = {"name": "mlp", "hidden": [64, 64]}
FIELDS = {
    "projected": {"vector_field": MLP, "potential": POTENTIAL, "alpha": 0.1},
    "negative_definite": {"hidden": [64, 64], "rate": 0.01},
    "negative_gradient": {"potential": POTENTIAL},
    "mlp": {"hidden": [64, 64]},
}


def system(x: Tensor) -> Tensor:
    """Return the derivatives at states."""
    x1, x2 = x.unbind(-1)
    return torch.stack([x2, -x1 - x1**3 - 0.2 * x2], -1)


def height(x: Tensor) -> Tensor:
    """Return the Lyapunov function of the system at states."""
    x1, x2 = x.unbind(-1)
    return x1**2 / 2 + x1**4 / 4 + x2**2 / 2 + x1 * x2 / 10


def grid(side: int, reach: float) -> Tensor:
    """Return the midpoints of the cells of a square, in double precision."""
    ticks = (2 * torch.arange(side, dtype=torch.float64) + 1 - side) * (reach / side)
    return torch.cartesian_prod(ticks, ticks)


def sample(count: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return random states of the square, and their derivatives with Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)
    x = REACH * (2 * torch.rand(count, 2, generator=generator) - 1)
    return x, system(x) + noise * torch.randn(count, 2, generator=generator)


def train(name: str, args: argparse.Namespace, seed: int) -> stabnet.StabilityModel:
    """Return a field that was fitted to the data, as a model in double precision."""
    test = sample(100, 0.0, seed + 1000)
    data = stabnet.data.from_tensors(*sample(args.train, args.noise, seed), *test, name="planar")
    torch.manual_seed(seed)
    model = stabnet.build(
        "stable_dynamics", in_shape=(2,), vector_field={"name": name} | FIELDS[name]
    )
    stabnet.training.fit(
        model,
        stabnet.data.split(data, seed=seed),
        objective="derivative_matching",
        epochs=args.epochs,
        batch_size=50,
        learning_rate=1e-2,
        run_dir=args.out / f"{name}-{seed}",
        seed=seed,
        device="cpu",
        progress=False,
    )
    return model.double().eval().requires_grad_(False)


def rms(vectors: Tensor) -> float:
    """Return the root of the mean squared length."""
    return vectors.square().sum(-1).mean().sqrt().item()


def least_error(field: stabnet.interfaces.VectorField, x: Tensor) -> float | None:
    """Return a lower bound of the error at states, given the kind of field and its potential.

    All F with dV/dt = grad V . F <= -alpha V are at least (grad V . f + alpha V)^+ / |grad V| away
    from f. All gradients are orthogonal to w = (d psi/dx2, -d psi/dx1) for functions psi that
    vanish on the border of the square, so their distance from f is at least the length of the
    projection of f onto some such w (to the accuracy of the integral as a sum over states).
    """
    if not stabnet.interfaces.is_descending(field):
        return None
    f = system(x)
    value, slope = field.potential.value_and_gradient(x)
    if not isinstance(field, NegativeGradientField):
        along = (slope * f).sum(-1) + field.alpha * value
        return rms((relu(along) / slope.norm(dim=-1)).unsqueeze(-1))

    def psi(point: Tensor) -> Tensor:
        a, b = point
        powers = torch.stack([a**i * b**j for i in range(5) for j in range(5 - i)])
        return (REACH**2 - a**2) * (REACH**2 - b**2) * powers

    slopes = torch.func.vmap(torch.func.jacrev(psi))(x)
    w = torch.stack([slopes[..., 1], -slopes[..., 0]], 1).flatten(0, 1)
    share = torch.linalg.lstsq(w, f.flatten()[:, None]).solution
    return rms((w @ share).reshape(-1, 2))


def rises(velocity: Tensor, slope: Tensor) -> float:
    """Return at which share of states a potential rises, by more than rounding."""
    lengths = slope.norm(dim=-1) * velocity.norm(dim=-1)
    return ((slope * velocity).sum(-1) > 1e-12 * lengths).double().mean().item()


@torch.no_grad()
def measure(model: stabnet.StabilityModel, args: argparse.Namespace) -> dict:
    """Return the errors of a field, what its constraint leaves of them, and where states go."""
    field = model.dynamics.vector_field
    near, far = grid(80, REACH), grid(120, FAR)
    far = far[far.abs().amax(1) > REACH]
    bound, velocity = least_error(field, near), model.velocity(0.0, far)
    own = None
    if stabnet.interfaces.is_descending(field):
        own = rises(velocity, field.potential.value_and_gradient(far)[1])
    ends = model.solve(grid(args.starts, FAR), times=(0.0, args.time)).state.norm(dim=1)
    ends = ends.nan_to_num(nan=torch.inf)
    return {
        "error inside": rms(model.velocity(0.0, near) - system(near)) / rms(system(near)),
        "at least": None if bound is None else bound / rms(system(near)),
        "error outside": rms(velocity - system(far)) / rms(system(far)),
        "own V rises": own,
        "system's V rises": rises(velocity, torch.func.grad(lambda x: height(x).sum())(far)),
        "not returned": (ends > CLOSE).double().mean().item(),
        "farthest end": ends.max().item(),
    }


@torch.no_grad()
def portrait(
    panel: Axes,
    velocity: Callable[[Tensor], Tensor],
    potential: Callable[[Tensor], Tensor] | None,
    reach: float,
) -> None:
    """Draw a field, two of its trajectories and the level sets of its potential."""
    starts = reach * torch.tensor([[-0.8, 0.7], [0.85, -0.6]], dtype=torch.float64)
    times = torch.linspace(0, 12, 241, dtype=torch.float64)
    rk4 = stabnet.build("rk4", kind="integrator", step_size=0.05)
    stabnet.plots.phase_portrait(
        lambda x: velocity(x.double()),
        (-reach, reach, -reach, reach),
        trajectories=rk4(lambda t, x, u: velocity(x), starts, times).states,
        potential=potential,
        levels=7,
        equilibria=None if potential is None else torch.zeros(1, 2),
        axis_labels=("", ""),
        panel=panel,
    )


def draw(models: dict[str, stabnet.StabilityModel], path: Path) -> None:
    """Save phase portraits of the system and the models, in the square of the data and beyond."""
    figure = Figure(figsize=(2.6 * (1 + len(models)), 5.7), layout="constrained")
    panels = figure.subplots(2, 1 + len(models), sharex="row", sharey="row")
    columns = {"the system": (system, height)}
    for name, model in models.items():
        potential = getattr(model.dynamics.vector_field, "potential", None)
        columns[name] = (partial(model.velocity, 0.0), potential)
    for (above, below), (name, parts) in zip(panels.T, columns.items(), strict=True):
        portrait(above, *parts, REACH)
        portrait(below, *parts, FAR)
        above.set_title(name)
        square = Rectangle((-REACH, -REACH), 2 * REACH, 2 * REACH, fill=False, linestyle="--")
        below.add_patch(square)
        below.set_xlabel("$x_1$")
    for panel in panels[:, 0]:
        panel.set_ylabel("$x_2$")
    stabnet.plots.save_figure(figure, path, dpi=90)


def table(rows: list[dict]) -> list[str]:
    """Return rows as a Markdown table."""
    cells = [
        ["-" if v is None else f"{v:.3g}" if isinstance(v, float) else v for v in row.values()]
        for row in rows
    ]
    names = list(rows[0])
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]


def verdict(rows: list[dict]) -> list[str]:
    """Return what came out, field by field, over the seeds."""
    plain = {row["seed"]: row["error inside"] for row in rows if row["field"] == "mlp"}
    lines = []
    for name in FIELDS:
        own = [row for row in rows if row["field"] == name]
        span = {
            key: " to ".join(dict.fromkeys(f"{end(r[key] for r in own):.3g}" for end in (min, max)))
            for key in ("error inside", "error outside", "not returned", "farthest end")
        }
        closer = sum(row["error inside"] < plain[row["seed"]] for row in own)
        against = "" if name == "mlp" else f", below the `mlp` for {closer} of {len(own)} seeds"
        lines.append(
            f"- `{name}`: error {span['error inside']} inside{against}; {span['error outside']} "
            f"outside; the share not returned is {span['not returned']}, the farthest end at "
            f"{span['farthest end']}."
        )
    return lines


def markdown(rows: list[dict], command: str, args: argparse.Namespace) -> str:
    """Return the table, and how to read it."""
    return "\n".join([
        "# A nonlinear system of the plane\n",
        f"Made with `{command}`; torch {torch.__version__}, {torch.get_num_threads()} thread(s).\n",
        f"{args.train} states with entries up to {REACH:g}, their derivatives with noise of "
        f"standard deviation {args.noise:g}, {args.epochs} epochs. Errors are root mean squares of "
        "the derivative, relative to that of the system's, over that square, and over the one up "
        f"to {FAR:g} without it. *At least* is a lower bound of the error inside: for every field "
        "that descends the same potential at the same rate, or for every gradient field. The next "
        "two columns are shares of states outside: where the field raises its own potential (it "
        "never may), and where it raises the Lyapunov function of the system, which it does not "
        f"know. Of {args.starts**2} starts up to {FAR:g}, a share has *not returned* to within "
        f"{CLOSE:g} of the origin by time {args.time:g}; *farthest end* is the largest distance.\n",
        *table(rows),
        "\n![phase portraits](planar-system.png)\n",
        "Above the square of the training states, below all that is looked at, with the level sets "
        "of the potential that comes with each field.\n",
        "How to read it. *At least* is what the constraint costs inside the square, and what the "
        "error is above it is left to fitting. The bound of `projected` is that of the potential "
        "it learned, and a better one may lower it; the system is not of the kind of "
        "`negative_definite` and `negative_gradient`, and nothing takes their bounds away. This "
        "buys what no data can: the potentials of these three fall at every state, also where "
        "there were no data, and along the exact flow all states tend to the origin. The `mlp` has "
        "no bound, and promises nothing: whether its states return, and how far from the origin "
        "they end, is as the run had it. Stability says where states go, not how they get there: "
        "the errors outside tell how accurate a field is where it saw nothing.",
        "",
        *verdict(rows),
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Learn the system, with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--train", type=int, default=500, help="states")
    parser.add_argument("--noise", type=float, default=0.1, help="of the derivatives")
    parser.add_argument("--starts", type=int, default=11, help="of trajectories, per side")
    parser.add_argument("--time", type=float, default=100.0, help="when they should have returned")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of data and models")
    parser.add_argument("--out", type=Path, default=Path("runs/planar-system"))
    args = parser.parse_args(argv)
    rows, shown = [], {}
    for seed in args.seeds:
        for name in FIELDS:
            cpu = time.process_time()
            model = train(name, args, seed)
            row = {"field": name, "seed": str(seed), **measure(model, args)}
            rows.append(row | {"CPU seconds": round(time.process_time() - cpu, 1)})
            shown.setdefault(name, model)
    draw(shown, args.out / "planar-system.png")
    text = markdown(rows, command_of(__file__, parser, args), args)
    (args.out / "planar-system.md").write_text(text)
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": rows}
    (args.out / "planar-system.json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
