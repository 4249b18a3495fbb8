"""SODEF: does a stable start of the flow withstand attacks, or does it hide the gradient?

Kang, Song, Ding, Tay: "Stable neural ODE with Lyapunov-stable equilibrium points for defending
against adversarial attacks", 2021. A backbone with a linear layer is trained by cross entropy and
frozen; on its features are put a plain neural ODE, and SODEF in the paper's joint and in the
released, phased form, all of one architecture:

    python examples/sodef.py
    python examples/sodef.py --data mnist --backbone convnet

Each is attacked by the paper's protocol on MNIST (FGSM, and PGD of 20 steps from a random start),
and by what tells robustness from a hidden gradient: PGD of many smaller steps with restarts, images
that fool the backbone with its linear layer (transfer), and a search without gradients (Square).

Writes tables (Markdown, JSON) and the spectra of the Jacobians (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sodef_attacks import robustness
from stabnet_projection import field_jacobian, sodef_stability
from torch import Tensor, nn

import stabnet

PLAIN = "backbone + linear"
PHASES = ("features", "stability", "head")
FLOWS = {
    "neural ODE": ["cross_entropy"],
    "SODEF joint": [{"name": "sodef"}],
    "SODEF phased": [{"name": "sodef", "form": "phased", "phase": p} for p in PHASES],
}


def train(
    label: str,
    model: nn.Module,
    objectives: list,
    data: stabnet.data.Splits,
    args: argparse.Namespace,
) -> dict:
    """Train a model by one objective after the other, and return its row of the table."""
    cpu, plain = time.process_time(), label == PLAIN
    for index, objective in enumerate(objectives):
        stability = isinstance(objective, dict) and objective.get("phase") == "stability"
        fitted = stabnet.training.fit(
            model,
            data,
            objective=objective,
            epochs=1 if stability else args.backbone_epochs if plain else args.epochs,
            batch_size=32 if stability else 128,
            learning_rate=args.backbone_rate if plain else args.rate,
            run_dir=args.out / f"{label.replace(' ', '-')}-{index}",
            seed=args.seed,
            device="cpu",
            progress=False,
        )
    return {
        "label": label,
        "objectives": objectives,
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
        "test": dict(fitted.test),
        "step_size": None if fitted.step_size is None else asdict(fitted.step_size),
    }


@torch.no_grad()
def rescale(plain: nn.Sequential, x: Tensor, norm: float) -> None:
    """Give the features a mean norm, and change the classifier in no other way.

    A state much longer than this turns the argument of the sine by more than its period, and the
    field has no gradient to follow. ReLU commutes with the factor.
    """
    last = [m for m in plain[0].modules() if isinstance(m, nn.Linear)][-1]
    factor = norm / plain[0](x).norm(dim=1).mean()
    last.weight.mul_(factor)
    last.bias.mul_(factor)
    plain[-1].weight.div_(factor)


def spectra(models: dict[str, nn.Module], x: Tensor) -> Figure:
    """Draw the eigenvalues of the field's Jacobian at the starts of some flows."""
    figure = Figure(figsize=(3.2 * len(models), 3.2), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, (label, model) in zip(axes, models.items(), strict=True):
        with torch.no_grad():
            jacobian = field_jacobian(model.dynamics.vector_field, 0.0, model.features(x))
        values = torch.linalg.eigvals(jacobian).flatten()
        ax.scatter(values.real, values.imag, s=2, alpha=0.3, linewidths=0)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set(title=label, xlabel="real part")
    axes[0].set_ylabel("imaginary part")
    return figure


def markdown(rows: list[dict], args: argparse.Namespace, command: str) -> str:
    """Return the tables."""
    names = list(next(iter(rows[0]["robustness"]["accuracy"].values())))
    lines = [
        f"# SODEF on {args.data}",
        "",
        f"Made with `{command}`; torch {torch.__version__}, {torch.get_num_threads()} thread(s).",
        "",
        f"Backbone `{args.backbone}`, {args.backbone_epochs} epochs with a linear layer, then "
        f"frozen, its features scaled to a mean norm of {args.norm:g}; width {args.width}, flow to "
        f"time 5 by rk4 with steps of {args.step_size:g}. {args.epochs} epoch(s) at batches of 128 "
        f"and Adam at {args.rate:g}; the phase of stability one epoch at batches of 32, as "
        "released (where it took 15, and the backbone of MNIST was trained along in the phase of "
        f"the features). Seed {args.seed}. Accuracy in %: clean on all test images, attacked on "
        f"the first {args.images}, right before and "
        "after. The paper's protocol on MNIST: FGSM, and PGD with 20 steps of "
        f"eps/3 from one random start, l-infinity, eps 0.3. Beyond it: PGD with {args.steps} steps "
        f"of eps/15 from {args.starts} starts; such images of the backbone with its linear layer, "
        f"from one start (transfer; to itself, an attack with gradients); Square with "
        f"{args.queries} queries. `all`: right under every one of them.",
        "",
    ]
    for eps in rows[0]["robustness"]["accuracy"]:
        lines += [
            f"| eps {eps} | clean | " + " | ".join(names) + " |",
            "|---" * (len(names) + 2) + "|",
        ]
        for row in rows:
            left = [row["test"]["accuracy"], *row["robustness"]["accuracy"][eps].values()]
            lines.append(f"| {row['label']} | " + " | ".join(f"{100 * a:.1f}" for a in left) + " |")
        lines.append("")
    lines += [*stability_table(rows), "", "Signs of gradient masking:", ""]
    signs = [f"- {r['label']}: {sign}." for r in rows for sign in r["robustness"]["masking"]]
    lines += [
        *(signs or ["- none was found."]),
        "",
        "The figures are upper bounds of the robust accuracy. Stability in the state is not "
        "robustness in the input, and the models state no guarantee of the latter.",
        "",
        f"![eigenvalues of the Jacobian at the starts of 100 test images](sodef-{args.data}.png)",
        "",
    ]
    return "\n".join(lines)


def stability_table(rows: list[dict]) -> list[str]:
    """Return the lines of the table about the state."""
    flows = [row for row in rows if "stability" in row]
    stability = flows[0]["stability"]
    columns = ("speed", "still", "negative", "dominant", "hurwitz", "largest_abscissa")
    lines = [
        f"At the starts of the flow of {stability['samples']} test images: mean speed, share with "
        f"speed at most {stability['tolerance']:g}, shares of the Jacobians with negative and with "
        "negative dominant diagonal, share with all eigenvalues in the open left half plane, "
        "largest real part; then CPU seconds of training, and accuracy at the steps of the "
        "integrator and at a tenth. This is evidence about the state at these images, and none "
        "about perturbed ones.",
        "",
        "| model | "
        + " | ".join(c.replace("_", " ") for c in columns)
        + " | train CPU s | accuracy at h, h/10 |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in flows:
        cells = [f"{row['stability'][c]:.3g}" for c in columns]
        step = row["step_size"]
        cells += [
            f"{row['train_cpu_seconds']:.0f}",
            f"{step['accuracy']:.4f}, {step['refined_accuracy']:.4f}",
        ]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return lines


def _text(value: object) -> str:
    """Return an option's value as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, str]:
    """Return the options, and the command that gives them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="a registered data set")
    parser.add_argument("--backbone", default="mlp", help="a registered backbone")
    parser.add_argument("--channels", type=int, nargs="+", help="of a convolutional backbone")
    parser.add_argument("--backbone-epochs", type=int, default=20)
    parser.add_argument("--backbone-rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=10, help="of the flows and their phases")
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate of the flows")
    parser.add_argument("--width", type=int, default=64, help="of the state")
    parser.add_argument("--norm", type=float, default=8.0, help="mean norm of the features")
    parser.add_argument("--step-size", type=float, default=0.5, help="of the integrator")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--images", type=int, default=200, help="test images to attack")
    parser.add_argument("--steps", type=int, default=40, help="of PGD with restarts")
    parser.add_argument("--starts", type=int, default=2, help="of PGD with restarts")
    parser.add_argument("--queries", type=int, default=500, help="of Square")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs") / f"sodef-{args.data}"
    options = {k: v for k, v in vars(args).items() if k != "out" and v != parser.get_default(k)}
    words = [f"--{k.replace('_', '-')} {_text(v)}" for k, v in options.items()]
    command = " ".join(["OMP_NUM_THREADS=1 python examples/sodef.py", *words])
    return args, command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    args, command = parse(argv)
    cpu = time.process_time()
    torch.manual_seed(args.seed)
    dataset = stabnet.data.load(args.data)
    data = stabnet.data.split(dataset, seed=args.seed)
    named = {"name": args.backbone, "width": 2 * args.width}
    if args.channels:
        named["channels"] = args.channels
    backbone = stabnet.build(named, kind="backbone", in_shape=dataset.in_shape)
    plain = nn.Sequential(backbone, nn.ReLU(), nn.Linear(2 * args.width, dataset.num_outputs))
    rows = [train(PLAIN, plain, ["cross_entropy"], data, args)]
    some, _ = next(iter(stabnet.data.loader(dataset.train, batch_size=1000)))
    rescale(plain.eval(), some, args.norm)
    models: dict[str, nn.Module] = {}
    for label, objectives in FLOWS.items():
        torch.manual_seed(args.seed)
        models[label] = stabnet.build(
            "sodef",
            in_shape=dataset.in_shape,
            num_outputs=dataset.num_outputs,
            backbone=backbone,
            frozen=True,
            width=args.width,
            integrator={"name": "rk4", "step_size": args.step_size},
        )
        rows.append(train(label, models[label], objectives, data, args))
    x, y = next(iter(stabnet.data.loader(dataset.test, batch_size=args.images)))
    images = list(zip(x.split(250), y.split(250), strict=True))
    for row, model in zip(rows, (plain, *models.values()), strict=True):
        if model is not plain:
            row["stability"] = asdict(sodef_stability(model, x))
        row["robustness"] = robustness(model, plain, images, args)
    stabnet.plots.save_figure(spectra(models, x[:100]), args.out / f"sodef-{args.data}.png", dpi=90)
    table = markdown(rows, args, command)
    (args.out / f"sodef-{args.data}.md").write_text(table)
    record = {
        "command": command,
        "torch": torch.__version__,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "rows": rows,
    }
    (args.out / f"sodef-{args.data}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    main()
