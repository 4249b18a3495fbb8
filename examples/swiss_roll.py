"""The swiss roll: Hamiltonian networks, ResNets and MLPs of one depth [SNN, Figures 2 and 4].

Two arms of a spiral in the plane are told apart by networks of 12 layers, whose states are the
points (x1, x2) embedded as (q, p) = (x1, 0, x2, 0), and by an MLP of 2 layers:

- HNN: symplectic Euler on a Hamiltonian, q + h B' tanh(Bp + b), then p - h C' tanh(Cq + c), whose
  Jacobians are symplectic and so have an operator norm of at least 1;
- ResNet: z + tanh(Wz + b);
- MLP: tanh(Wz + b).

    python examples/swiss_roll.py

Each architecture has the learning rate, of a small grid, that does best on validation sets of
other rolls than those that are reported. Through training, the singular values of the Jacobian of
every layer are recorded.

The layer of ResNet and MLP is written here as anybody's would be: a block and a model, registered
in the script. Writes tables (Markdown, JSON) and two figures (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from command_line import command_of
from swiss_roll_report import draw_jacobians, markdown
from torch import Tensor, nn

import stabnet

SCALE, HALF_TURNS = 3.0, 3.5
WIDTH = 4
MODELS: dict[str, dict[str, Any]] = {
    # States of 4 numbers are stored: to recompute them would save no memory worth the time.
    "HNN-12": {"name": "hamiltonian_net", "blocks": 12, "step_size": 0.5, "stored": True},
    "ResNet-12": {"name": "tanh_net", "blocks": 12, "skip": True},
    "MLP-12": {"name": "tanh_net", "blocks": 12},
    "MLP-2": {"name": "tanh_net", "blocks": 2},
}
BATCH, VALIDATION = 256, 0.1
WATCHED = 64
"""Test points at which Jacobians and gradients are looked at."""
SNAPSHOTS = 20


@stabnet.register.block("tanh_layer", summary="layer of an MLP, or of a ResNet, with tanh")
@final
class TanhLayer(stabnet.interfaces.Block):
    """The layer z -> tanh(Wz + b) or, with a skip connection, z -> z + tanh(Wz + b)."""

    def __init__(self, state_shape: Sequence[int], *, skip: bool = False) -> None:
        super().__init__()
        self.state_shape = tuple(state_shape)
        (width,) = self.state_shape
        self.linear = nn.Linear(width, width)
        self.skip = skip

    def forward(self, z: Tensor, u: stabnet.interfaces.Features = None) -> Tensor:
        """Return the next states."""
        out = torch.tanh(self.linear(z))
        return z + out if self.skip else out


@stabnet.register.model("tanh_net", summary="MLP or ResNet of tanh layers of one width")
def tanh_net(
    *,
    in_shape: Sequence[int],
    num_outputs: int,
    width: int = WIDTH,
    blocks: int = 12,
    skip: bool = False,
) -> stabnet.StabilityModel:
    """Return a stack of tanh layers behind the lift of a Hamiltonian network."""
    lift = stabnet.build("phase_lift", kind="block", state_shape=in_shape, width=width)
    layer = {"name": "tanh_layer", "skip": skip}
    layers = [stabnet.build(layer, kind="block", state_shape=(width,)) for _ in range(blocks)]
    backbone = stabnet.build("identity", kind="backbone", in_shape=in_shape)
    head = stabnet.build("linear", kind="head", in_features=width, num_outputs=num_outputs)
    dynamics = stabnet.Stack([lift, *layers])
    return stabnet.StabilityModel(in_shape, num_outputs, backbone, dynamics, head)


def make(label: str) -> stabnet.StabilityModel:
    """Return an untrained model."""
    return stabnet.build(MODELS[label] | {"width": WIDTH}, in_shape=(2,), num_outputs=2)


def roll(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points on two arms of a spiral, the second half a turn behind the first.

    Arm k is 3 r (cos a, sin a), a = 3.5 pi r + pi k, 0 <= r <= 1; r is the root of a uniform
    variable, which spreads points about evenly along the arm.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    r = torch.rand(count, generator=generator).sqrt()
    angle = math.pi * (HALF_TURNS * r + y)
    return SCALE * r.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1), y


def unseen_roll(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return half as many points as there are to train on, of another seed than all of these."""
    return roll(points // 2, seed + 1_000_000)


def steps_of(args: argparse.Namespace) -> int:
    """Return the number of optimizer steps of every training."""
    return args.epochs * math.ceil((args.points - round(VALIDATION * args.points)) / BATCH)


def watching(x: Tensor, y: Tensor) -> Callable[[nn.Module], dict[str, Any]]:
    """Return a monitor of singular values and gradients at these points, in float64."""
    x = x.double()

    def look(model: nn.Module) -> dict[str, Any]:
        precise = copy.deepcopy(model).double()
        # The first layer is the lift, which keeps all distances.
        values = stabnet.monitors.singular_values(precise, x)[1:]
        gradients = stabnet.monitors.gradient_norms(precise, x, y)[1:]
        return {
            "largest": [v[:, 0].median().item() for v in values],
            "least": [v[:, -1].median().item() for v in values],
            "least norm": min(v[:, 0].min().item() for v in values),
            "gradient": (gradients[0] / gradients[-1]).item(),
        }

    return look


def train(
    label: str,
    rate: float,
    seed: int,
    args: argparse.Namespace,
    run_dir: Path,
    *,
    watched: bool,
) -> tuple[stabnet.StabilityModel, stabnet.training.FitResult]:
    """Train one model, on the roll of its seed."""
    torch.manual_seed(seed)
    model, test = make(label), unseen_roll(args.points, seed)
    data = stabnet.data.from_tensors(*roll(args.points, seed), *test, name="swiss roll")
    fitted = stabnet.training.fit(
        model,
        stabnet.data.split(data, validation=VALIDATION, seed=seed),
        epochs=args.epochs,
        batch_size=BATCH,
        learning_rate=rate,
        run_dir=run_dir,
        seed=seed,
        device="cpu",
        progress=False,
        monitor=watching(*(t[:WATCHED] for t in test)) if watched else None,
        monitor_every=max(steps_of(args) // SNAPSHOTS, 1) if watched else None,
    )
    return model, fitted


def tune(label: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the validation accuracy of every learning rate, and the best rate."""
    accuracy, loss = {}, {}
    started = time.process_time()
    for rate in args.rates:
        runs = []
        for seed in args.tuning_seeds:
            folder = args.out / "tuning" / f"{label}-{rate:g}-{seed}"
            runs.append(train(label, rate, seed, args, folder, watched=False)[1])
        accuracy[rate] = sum(r.best_validation for r in runs) / len(runs)
        loss[rate] = sum(r.history[r.best_epoch - 1]["validation_loss"] for r in runs)
    return {
        "model": label,
        "validation accuracy": {f"{rate:g}": accuracy[rate] for rate in args.rates},
        # Of equal accuracies, the one of the lowest loss.
        "rate": max(args.rates, key=lambda rate: (accuracy[rate], -loss[rate])),
        "CPU seconds": time.process_time() - started,
    }


def measure(
    label: str, rate: float, seed: int, args: argparse.Namespace
) -> tuple[stabnet.StabilityModel, Sequence[Mapping[str, Any]], dict[str, Any]]:
    """Train one model; return it, what was seen in training, and its row of the table."""
    started = time.process_time()
    model, fitted = train(label, rate, seed, args, args.out / f"{label}-{seed}", watched=True)
    seconds = time.process_time() - started
    seen, (x, y) = fitted.monitored, unseen_roll(args.points, seed)
    with torch.no_grad():
        accuracy = (model.eval()(x).argmax(1) == y).double().mean().item()
    row = {
        "model": label,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rate": rate,
        "validation accuracy": fitted.best_validation,
        "test accuracy": accuracy,
        "CPU seconds": seconds,
        "least norm": min(record["least norm"] for record in seen),
        "gradient at the start": seen[0]["gradient"],
        "gradient at the end": seen[-1]["gradient"],
    }
    return model, seen, row


def draw_boundaries(models: Mapping[str, nn.Module], args: argparse.Namespace) -> None:
    """Save what the models of one seed make of the plane, with test points."""
    x, y = unseen_roll(args.points, args.seeds[0])
    edge = 1.2 * SCALE
    figure = stabnet.plots.decision_boundaries(
        models,
        x[:400],
        y[:400],
        extents=[(-edge, edge, -edge, edge)],
        resolution=args.resolution,
    )
    stabnet.plots.save_figure(figure, args.out / "swiss-roll-boundaries.png", dpi=90)


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, train, measure and draw, with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.01, 0.03, 0.1])
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--points", type=int, default=4000, help="for training and validation")
    parser.add_argument("--resolution", type=int, default=200, help="of the boundaries, per side")
    parser.add_argument("--out", type=Path, default=Path("runs/swiss-roll"))
    args = parser.parse_args(argv)
    if set(args.seeds) & set(args.tuning_seeds):
        parser.error("learning rates are chosen on other seeds than those that are reported")
    tuning = [tune(label, args) for label in MODELS]
    rows, models, seen = [], {}, {}
    for seed in args.seeds:
        for chosen in tuning:
            label = chosen["model"]
            model, records, row = measure(label, chosen["rate"], seed, args)
            rows.append(row)
            print(f"{label}, seed {seed}: {row['test accuracy']:.2%}", flush=True)
            if seed == args.seeds[0]:
                models[label], seen[label] = model, records
    draw_boundaries(models, args)
    deep = {label: records for label, records in seen.items() if label.endswith("-12")}
    draw_jacobians(deep, str(args.out / "swiss-roll-jacobians.png"))
    record = {
        "command": command_of(__file__, parser, args),
        "options": vars(args) | {"out": None},
        "torch": torch.__version__,
        "steps": steps_of(args),
        "batch": BATCH,
        "tested": args.points // 2,
        "watched": min(WATCHED, args.points // 2),
        "tuning": tuning,
        "rows": rows,
    }
    text = markdown(record)
    (args.out / "swiss-roll.md").write_text(text)
    (args.out / "swiss-roll.json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
