"""Reconstruction from noisy measurements by networks of a given Lipschitz constant [SNN, 6.1].

Points x of the plane are measured as y = Ax + noise, A = [[1+e, 1], [1, 1+e]] with e = 1/4: the
noise is Gaussian, and the inverse of A amplifies it along (1, -1). The points lie on one period of
a sine, x = (t, sin t) with t uniform in [-pi, pi], which no linear reconstruction can make use of:

    python examples/inverse_problem.py

- Tikhonov: (A'A + tau I)^-1 A'y, with tau from a grid search on the training set. Its Lipschitz
  constant L* = max s/(s^2 + tau), over the singular values s of A, is what the networks may have.
- InvNet_L: non-expansive blocks and a learned factor within [-L, L], for L*/3, L* and 3 L*.

Writes tables (Markdown, JSON) and figures (PNG) into the output folder.
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
from inverse_problem_figures import draw_data, draw_errors, draw_maps, draw_reconstructions
from torch import Tensor
from torch.func import functional_call, jacrev, stack_module_state, vmap

import stabnet

A = torch.tensor([[1.25, 1.0], [1.0, 1.25]], dtype=torch.float64)
SINGULAR = torch.linalg.svdvals(A)
TAUS = torch.logspace(-4, 1, 501, dtype=torch.float64)
FACTORS = {"L*/3": 1 / 3, "L*": 1.0, "3 L*": 3.0}
BLOCK = {"name": "gradient_flow", "activation": "tanh"}  # smooth, as the reconstruction is
BATCH = 100  # measurements of one step
REACH = 6.0  # Lipschitz constants are looked for up to here; data have entries up to 4.5 or so


def curve(t: Tensor) -> Tensor:
    """Return points of the curve."""
    return torch.stack([t, t.sin()], -1)


def sample(count: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return measurements of random points, and the points."""
    t = torch.rand(count, generator=generator, dtype=torch.float64)
    x = curve(math.pi * (2 * t - 1))
    return x @ A.T + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype), x


def error(found: Tensor, x: Tensor) -> float:
    """Return the mean squared distance of reconstructions from the points."""
    return (found - x).square().sum(-1).mean().item()


def inverse(tau: float) -> Tensor:
    """Return the matrix of the Tikhonov reconstruction; of the naive one for 0."""
    return torch.linalg.solve(A.T @ A + tau * torch.eye(2, dtype=A.dtype), A.T)


def best_tau(y: Tensor, x: Tensor) -> float:
    """Return the tau of the grid with the least error."""
    return min(TAUS.tolist(), key=lambda tau: error(y @ inverse(tau).T, x))


def tikhonov_constant(tau: float) -> float:
    """Return the Lipschitz constant of the Tikhonov reconstruction."""
    return (SINGULAR / (SINGULAR**2 + tau)).max().item()


def posterior_mean(y: Tensor, noise: float) -> Tensor:
    """Return the reconstruction of the least expected error, by who knows curve and noise."""
    x = curve(math.pi * torch.linspace(-1, 1, 4001, dtype=y.dtype))
    weights = torch.softmax(-torch.cdist(y, x @ A.T).square() / (2 * noise**2), 1)
    return weights @ x


def shuffled(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return the rows of a set for each step: the set shuffled again and again, in batches."""
    rounds = math.ceil(steps * BATCH / count)
    rows = [torch.randperm(count, generator=generator) for _ in range(rounds)]
    return torch.cat(rows)[: steps * BATCH].view(steps, BATCH)


def train(
    models: Sequence[stabnet.StabilityModel],
    sets: Sequence[tuple[Tensor, Tensor]],
    steps: int,
    generator: torch.Generator,
) -> None:
    """Train networks side by side with Adam, as many on the first set as on every other.

    The tensors are so small that a step of nine stacked networks takes about as long as three steps
    of one. Backbone and head are identities, so that a network is its dynamics.
    """
    networks = [model.dynamics.train() for model in models]
    weights, buffers = stack_module_state(networks)

    def reconstruct(weights: dict, buffers: dict, y: Tensor) -> Tensor:
        return functional_call(networks[0], (weights, buffers), (y,)).state

    rows = [shuffled(len(y), steps, generator) for y, _ in sets]
    y, x = (
        torch.stack([points[r] for points, r in zip(part, rows, strict=True)]).float()
        for part in zip(*sets, strict=True)
    )
    copies = len(models) // len(sets)
    optimizer = torch.optim.Adam(weights.values(), lr=1e-3, fused=True)
    for k in range(steps):
        target = x[:, k].repeat_interleave(copies, 0)
        found = vmap(reconstruct)(weights, buffers, y[:, k].repeat_interleave(copies, 0))
        optimizer.zero_grad()
        (found - target).square().sum(2).mean(1).sum().backward()
        optimizer.step()
    state = weights | buffers
    for i, network in enumerate(networks):
        network.load_state_dict({name: state[name][i].detach() for name in network.state_dict()})


def certify(model: stabnet.StabilityModel) -> dict[str, float]:
    """Return the certified Lipschitz constant as trained, and re-normalize for one of at most L."""
    model.double().eval().requires_grad_(False)
    trained = stabnet.certify.lipschitz_bound(model).outputs
    stabnet.renormalize(model)
    return {"bound as trained": trained, "bound": stabnet.certify.lipschitz_bound(model).outputs}


def measure(model: stabnet.StabilityModel, y: Tensor, generator: torch.Generator) -> dict:
    """Return the largest Lipschitz constants found, at points and between far ones."""
    ticks = torch.linspace(-REACH, REACH, 101, dtype=y.dtype)
    points = torch.cat([y, torch.cartesian_prod(ticks, ticks)])
    jacobians = vmap(jacrev(lambda point: model.dynamics(point[None]).state[0]))(points)
    one, other = (
        points[torch.randint(len(points), (100_000,), generator=generator)] for _ in range(2)
    )
    apart = (one - other).norm(dim=1)
    far = apart > 1
    quotients = (model(one) - model(other)).norm(dim=1)[far] / apart[far]
    return {
        "Jacobians": torch.linalg.svdvals(jacobians)[:, 0].max().item(),
        "far pairs": quotients.max().item(),
    }


def reconstruct(args: argparse.Namespace) -> tuple[list[dict], list[dict], dict]:
    """Return errors per training set, the networks in numbers, and what the figures show."""
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    y, x = sample(args.test, args.noise, generator)
    sets = [sample(count, args.noise, generator) for count in args.sizes]
    taus, best = [best_tau(*data) for data in sets], error(y @ inverse(best_tau(y, x)).T, x)
    models = {
        (count, name): stabnet.build(
            "invnet", lipschitz=factor * tikhonov_constant(tau), block=BLOCK
        )
        for count, tau in zip(args.sizes, taus, strict=True)
        for name, factor in FACTORS.items()
    }
    train(list(models.values()), sets, args.steps, generator)
    errors, networks, shown = [], [], {}
    for count, tau, data in zip(args.sizes, taus, sets, strict=True):
        tikhonov = inverse(tau)
        shown[count] = {"naive": y @ inverse(0.0).T, "Tikhonov": y @ tikhonov.T}
        for name, factor in FACTORS.items():
            model = models[count, name]
            row = {"training set": count, "network": name, "L": factor * tikhonov_constant(tau)}
            row |= certify(model) | measure(model, y, generator)
            shown[count][f"InvNet, {name}"] = model(y)
            row |= {"training error": error(model(data[0]), data[1]), "error": error(model(y), x)}
            networks.append(row | {"of best Tikhonov": row["error"] / best})
        found = {name: error(points, x) for name, points in shown[count].items()}
        errors.append(
            {"training set": count, "tau": tau, "L*": tikhonov_constant(tau)}
            | found
            | {"best Tikhonov": best, "least possible": error(posterior_mean(y, args.noise), x)}
        )
    return errors, networks, {"test": (y, x), "sets": sets, "found": shown, "models": models}


def table(rows: list[dict]) -> list[str]:
    """Return rows as a Markdown table."""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    names = list(rows[0])
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]


def verdict(networks: list[dict]) -> list[str]:
    """Return what came out, in sentences."""
    lines = []
    for name in FACTORS:
        shares = ", ".join(
            f"{100 * row['of best Tikhonov']:.0f} % ({row['training set']})"
            for row in networks
            if row["network"] == name
        )
        lines.append(f"- InvNet at {name}: {shares} of the error of the best Tikhonov.")
    below = sum(max(r["Jacobians"], r["far pairs"]) <= r["bound"] for r in networks)
    share = min(r["Jacobians"] / r["bound"] for r in networks)
    excess = max(r["bound as trained"] / r["bound"] for r in networks)
    return [
        *lines,
        f"- Measured Lipschitz constants are below the certified bound for {below} of "
        f"{len(networks)} networks, and reach {100 * share:.0f} % of it or more.",
        f"- Before re-normalization the certified bounds were larger, up to {excess:.4g} times.",
    ]


def markdown(
    errors: list[dict], networks: list[dict], command: str, seconds: float, args: argparse.Namespace
) -> str:
    """Return the tables and figures, and how to read them."""
    return "\n".join([
        "# An inverse problem, solved by networks of a given Lipschitz constant\n",
        f"Made with `{command}` in {seconds:.0f} CPU seconds; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s).\n",
        "Points x = (t, sin t), t uniform in [-pi, pi], are measured as y = Ax + noise, with "
        f"A = [[1.25, 1], [1, 1.25]] and standard deviation {args.noise:g}. Errors are mean "
        f"squared distances from the points, over {args.test} test measurements. Each network has "
        f"five blocks of width 10, and {args.steps} Adam steps with batches of {BATCH} (all there "
        "is, for smaller sets).\n",
        "## Errors\n",
        *table(errors),
        "\n*Tikhonov* has its tau, and L*, from the training set; *best Tikhonov* has that of the "
        "least error on the test set, which no one knows. *Least possible* is the error of the "
        "mean of x given y, by who knows the curve and the noise.\n",
        "## Lipschitz constants\n",
        *table(networks),
        "\n*Bound* is certified, of the network that was tested, after re-normalization; "
        "*Jacobians* is their largest norm at the test measurements and on a grid up to "
        f"{REACH:g}, *far pairs* the largest difference quotient of pairs of these that are more "
        "than 1 apart. A training error far below the least possible is noise that was learned.\n",
        *verdict(networks),
        "\n## Figures\n",
        "![points and measurements](inverse-problem-data.png)\n",
        "![reconstructions](inverse-problem-reconstructions.png)\n",
        "Reconstructions of the test measurements, over the curve.\n",
        "![maps](inverse-problem-maps.png)\n",
        f"What becomes of a grid of measurements, after training on {max(args.sizes)} of them, "
        "and level sets of the distance from y to its reconstruction, with test measurements.\n",
        "![errors against L](inverse-problem-errors.png)",
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Solve the problem, with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100, 500], help="of sets")
    parser.add_argument("--test", type=int, default=1000, help="measurements to test with")
    parser.add_argument("--noise", type=float, default=0.15, help="standard deviation")
    parser.add_argument("--steps", type=int, default=10_000, help="of Adam")
    parser.add_argument("--seed", type=int, default=0, help="of data and networks")
    parser.add_argument("--out", type=Path, default=Path("runs/inverse-problem"))
    args = parser.parse_args(argv)
    args.sizes = list(dict.fromkeys(args.sizes))
    torch.set_num_threads(1)  # the tensors are too small for more
    errors, networks, shown = reconstruct(args)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / "inverse-problem"
    draw_data(shown["test"], shown["sets"], f"{stem}-data.png")
    draw_reconstructions(shown["found"], shown["test"][1], f"{stem}-reconstructions.png")
    largest = max(args.sizes)
    maps = {"Tikhonov": inverse(next(r["tau"] for r in errors if r["training set"] == largest))}
    maps |= {f"InvNet, {n}": shown["models"][largest, n] for n in FACTORS}
    draw_maps(maps, shown["test"][0], f"{stem}-maps.png")
    draw_errors(errors, networks, f"{stem}-errors.png")
    seconds = time.process_time()
    text = markdown(errors, networks, command_of(__file__, parser, args), seconds, args)
    stem.with_suffix(".md").write_text(text)
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__}
    record |= {"CPU seconds": round(seconds, 1), "errors": errors, "networks": networks}
    stem.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
