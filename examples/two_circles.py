"""Two circles: decision boundaries, decay and certified radii of LyaNet [LyaNet, Figure 4].

An MLP, a neural ODE trained through its solve, and LyaNet (smooth field, Monte Carlo Lyapunov loss)
learn which of two concentric circles a point is on; the flows have one architecture, and all have
one optimizer and as many epochs:

    python examples/two_circles.py

Does V(t) stay below 1.01 V(0) exp(-kappa t), within what radius is the class proven, does an attack
succeed there, and does the certificate notice a field slowed down until it breaks the condition?

Writes tables (Markdown, JSON) and the decision boundaries (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import make_circles
from stabnet_lyapunov import decay_share, lyapunov_certificate
from torch import Tensor, nn

import stabnet

ENCODER = {"name": "mlp", "hidden": [64, 64], "width": 8 * 8}
# Half as fast again as the decay that is asked for, so that the condition can hold with room.
FIELD = {"name": "data_controlled", "form": "simplex", "rate": 3.0, "corner": 5.0}
KAPPA = 2.0
LYAPUNOV = {
    "name": "lyapunov_monte_carlo",
    "kappa": KAPPA,
    "samples": 256,
    # Larger than the cube of [LyaNet] (49), 0.97, which trajectories leave before time 1.
    "sampler": {"name": "hypercube", "size": 2.0},
}
OBJECTIVES = {"MLP": "cross_entropy", "neural ODE": "cross_entropy", "LyaNet": LYAPUNOV}


def circles(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points on two circles, of radius 1 (class 0) and 1/2 (class 1), with noise."""
    x, y = make_circles(count, noise=0.05, factor=0.5, random_state=seed)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def make(label: str) -> nn.Module:
    """Return an untrained model."""
    if label == "MLP":
        layers = [nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)]
        return nn.Sequential(*layers)
    name = "lyanet" if label == "LyaNet" else "neural_ode"
    return stabnet.build(name, in_shape=(2,), num_outputs=2, backbone=ENCODER, vector_field=FIELD)


def train(
    label: str, data: stabnet.data.Dataset, args: argparse.Namespace, seed: int
) -> tuple[nn.Module, dict]:
    """Train one model; return it and its row of the table."""
    torch.manual_seed(seed)
    model = make(label)
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        model,
        stabnet.data.split(data, seed=seed),
        objective=OBJECTIVES[label],
        epochs=args.epochs,
        batch_size=64,
        learning_rate=1e-2,
        run_dir=args.out / f"{label.replace(' ', '-')}-{seed}",
        seed=seed,
        device="cpu",
        progress=False,
    )
    cpu = time.process_time() - cpu
    x, y = data.train.x, data.train.y
    row = {
        "model": label,
        "seed": seed,
        "training accuracy": (model.eval()(x).argmax(1) == y).double().mean().item(),
        "test accuracy": fitted.test["accuracy"],
        "seconds": round(fitted.seconds, 2),
        "CPU seconds": round(cpu, 2),
    }
    if label != "MLP":
        decay = decay_share(model, x, y, KAPPA, times=[k / 100 for k in range(101)])
        row |= {"decay share": decay.share, "worst ratio": decay.worst_ratio}
        row |= {"change at finer steps": fitted.step_size.mean_change}
    return model, row


def attack(model: nn.Module, x: Tensor, y: Tensor, radius: Tensor, starts: int = 5) -> Tensor:
    """Return which points projected gradient ascent gets misclassified within their radii."""
    x, y, radius = x.repeat(starts, 1), y.repeat(starts), radius.repeat(starts, 1)
    shift = radius * (2 * torch.rand_like(x) - 1)
    for _ in range(40):
        shift.requires_grad_()
        loss = F.cross_entropy(model(x + shift), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, shift)
        shift = (shift.detach() + radius / 8 * gradient.sign()).clamp(-radius, radius)
    return (model(x + shift).argmax(1) != y).view(starts, -1).any(0)


def certify(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict:
    """Prove radii, attack within them and beyond, and examine a model with a planted violation."""
    found = lyapunov_certificate(model, x, y, KAPPA, eps_max=eps, max_boxes=16)
    radius, proven = found.radius.float().unsqueeze(1), found.radius > 0
    slow = copy.deepcopy(model)
    slow.dynamics.vector_field.gain /= 4  # still right, but slower than kappa asks for
    planted = lyapunov_certificate(slow, x, y, KAPPA, eps_max=eps, steps=0)
    return {
        "points": len(x),
        "verified": found.count("verified"),
        "falsified": found.count("falsified"),
        "radius > 0": proven.double().mean().item(),
        "median radius": found.radius.median().item(),
        "least radius": found.radius.min().item(),
        "median by the theorem": found.radius_theorem.median().item(),
        "fooled within": int((attack(model, x, y, radius) & proven).sum()),
        "fooled within twice": int((attack(model, x, y, 2 * radius) & proven).sum()),
        "slowed: accuracy": (slow(x).argmax(1) == y).double().mean().item(),
        "slowed: verified": planted.count("verified"),
        "seconds": round(found.seconds, 1),
    }


def table(rows: list[dict]) -> list[str]:
    """Return rows as a Markdown table; the last has all columns."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    names = list(rows[-1])
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)]


def markdown(rows: list[dict], certificates: list[dict], args: argparse.Namespace) -> str:
    """Return the tables, and how to read them."""
    return "\n".join([
        "# Two circles",
        "",
        f"{args.train} training points, {args.epochs} epochs; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s). Seconds: all epochs and their validation; CPU "
        "seconds: all of `fit`. Decay share: of training points x 100 times, those with V(t) <= "
        f"1.01 V(0) exp(-{KAPPA:g} t); worst ratio: the largest V(t) / (V(0) exp(-{KAPPA:g} t)). "
        "Finer steps are a tenth.",
        "",
        *table(rows),
        "",
        "![decision boundaries](two-circles-boundaries.png)",
        "",
        f"Certificates for test points, in the maximum norm, up to {args.eps:g}. *Fooled* are "
        "points with a proven radius that an attack (40 steps, 5 starts) gets misclassified within "
        "that radius, or twice that. *Slowed* is the same model with a quarter of its gain, which "
        "breaks the condition and must not be verified.",
        "",
        *table(certificates),
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--train", type=int, default=1000, help="training points")
    parser.add_argument("--points", type=int, default=50, help="test points to certify")
    parser.add_argument("--eps", type=float, default=0.2, help="largest radius to try")
    parser.add_argument("--resolution", type=int, default=200, help="of the figure, per side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of data and models")
    parser.add_argument("--out", type=Path, default=Path("runs/two-circles"))
    args = parser.parse_args(argv)
    rows, certificates, models = [], [], {}
    for seed in args.seeds:
        x, y = circles(1000, seed + 1000)
        data = stabnet.data.from_tensors(*circles(args.train, seed), x, y, name="two circles")
        for label in OBJECTIVES:
            models[label], row = train(label, data, args, seed)
            rows.append(row)
        for label in ("neural ODE", "LyaNet"):
            found = certify(models[label], x[: args.points], y[: args.points], args.eps)
            certificates.append({"model": label, "seed": seed, **found})
        if seed == args.seeds[0]:
            shown = data.train.x[:200], data.train.y[:200]
            figure = stabnet.plots.decision_boundaries(models, *shown, resolution=args.resolution)
            stabnet.plots.save_figure(figure, args.out / "two-circles-boundaries.png", dpi=100)
    text = markdown(rows, certificates, args)
    (args.out / "two-circles.md").write_text(text)
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__}
    record |= {"rows": rows, "certificates": certificates}
    (args.out / "two-circles.json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
