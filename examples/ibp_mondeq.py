"""IBP-MonDEQ: train for verified accuracy, verify, attack, and set it beside the published figures.

Certified training (Wei, Kolter: "Certified robustness for deep equilibrium models via interval
bound propagation", 2022): a warm-up on clean images, then a radius that grows to slightly more than
the one that is verified at the end, on every test image, with sound interval bounds:

    python examples/ibp_mondeq.py --data mnist

The same on scikit-learn's digits, in half a minute:

    python examples/ibp_mondeq.py

Writes a table, as Markdown and as JSON, into the output folder.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import platform
import time
from pathlib import Path

import torch

import stabnet

MODELS = {
    "one linear layer": {
        "backbone": {"name": "linear", "width": 300},
        "epochs": 50,
        "overshoot": 1.0,
    },
    "two convolutions": {
        "backbone": {"name": "strided_conv", "channels": [16, 32], "width": 100},
        "epochs": 20,
        "overshoot": 1.1,
    },
}
"""Backbone, epochs of training, and its final radius as a multiple of the one to verify at."""


def experiment(
    label: str, options: dict, data: stabnet.data.Splits, args: argparse.Namespace
) -> dict:
    """Train one model, verify and attack it, and return its row of the table."""
    torch.manual_seed(args.seed)
    dataset = data.dataset
    network = stabnet.build(
        "ibp_mondeq",
        in_shape=dataset.in_shape,
        num_outputs=dataset.num_outputs,
        backbone=options["backbone"],
        mean=dataset.mean,
        std=dataset.std,
    )
    epochs = args.epochs or options["epochs"]
    steps = math.ceil(len(data.train) / args.batch_size)  # of one epoch
    objective = {
        "name": "ibp",
        "eps": args.eps,
        "train_eps": args.eps * options["overshoot"],
        "kappa": args.kappa,
        "warmup_steps": round(args.warmup * steps),
        "ramp_steps": round(args.ramp * steps),
    }
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        network,
        data,
        objective=objective,
        epochs=epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        run_dir=args.out / label.replace(" ", "-"),
        seed=args.seed,
        device=args.device,
        time_limit=args.time_limit,
    )
    cpu = time.process_time() - cpu
    row = {
        "label": label,
        "config": network.config,
        "objective": objective,
        "epochs": epochs,
        "train_seconds": round(fitted.seconds, 1),
        "train_cpu_seconds": round(cpu, 1),
        "complete": fitted.complete,
        "best_epoch": fitted.best_epoch,
        "last_epoch": dict(fitted.history[-1]),
    }
    return row | examine(network, stabnet.data.loader(dataset.test, batch_size=500), args)


def examine(network: stabnet.StabilityModel, batches: object, args: argparse.Namespace) -> dict:
    """Verify and attack a model, and verify it with its feedback cut."""
    report = stabnet.certify.verified_accuracy(network, batches, args.eps, max_images=args.images)
    cut = copy.deepcopy(network)
    with torch.no_grad():
        cut.dynamics.cell.M.zero_()  # W = 0: the equilibrium is one layer
    without = stabnet.certify.verified_accuracy(cut, batches, args.eps, max_images=args.images)
    pgd = {"name": "pgd", "eps": args.eps, "step_size": args.eps / 10, "steps": 40}
    attacked = stabnet.robustness.attack_model(network, batches, pgd, max_images=args.images)
    paper = stabnet.robustness.paper_protocol(network, batches, max_images=args.images)
    certificate = report.to_dict()
    del certificate["verified"]  # ten thousand positions
    return {
        "certificate": certificate,
        "without_feedback": {
            "clean_accuracy": without.clean_accuracy,
            "verified_accuracy": without.verified_accuracy,
        },
        "pgd": attacked.to_dict(),
        "robustness": paper.to_dict(),
    }


def published(dataset: str) -> str:
    """Return what the LyaDEQ paper reports of IBP-MonDEQ under PGD 8/255, in %, or a dash."""
    with Path(__file__).with_name("lyadeq_paper.csv").open() as file:
        found = [
            row["value"]
            for row in csv.DictReader(file)
            if (row["data"], row["model"]) == (dataset.upper(), "IBP-MonDEQ")
            and (row["attack"], row["eps"]) == ("PGD linf", "8/255")
        ]
    return found[0] if found else "–"


def markdown(rows: list[dict], args: argparse.Namespace) -> str:
    """Return the table: shares in %."""
    images = rows[0]["certificate"]["images"]
    lines = [
        f"# IBP-MonDEQ on {args.data}",
        "",
        f"Batches of {args.batch_size}, seed {args.seed}, {images} test "
        f"images; l-infinity, images in [0, 1], verified at eps {args.eps} by interval bounds in "
        f"float64, rounded outwards; PGD at eps {args.eps} with 40 steps of {args.eps / 10:g}; PGD "
        "8/255 by the protocol of the LyaDEQ paper (10 steps of 1/255). Accuracy in %.",
        "",
        f"| backbone | epochs | clean | **verified {args.eps}** | PGD {args.eps} | PGD 8/255 | "
        "PGD 8/255, published | clean / verified with W = 0 | training, wall / CPU min | "
        "verification s |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        certificate, without = row["certificate"], row["without_feedback"]
        (weak,) = [
            r
            for r in row["robustness"]["results"]
            if r["attack"] == "pgd" and abs(r["eps"] * 255 - 8) < 1e-6
        ]
        cells = [
            row["label"] if row["complete"] else f"{row['label']} (cut short)",
            str(row["epochs"]),
            f"{100 * certificate['clean_accuracy']:.2f}",
            f"**{100 * certificate['verified_accuracy']:.2f}**",
            f"{100 * row['pgd']['accuracy']:.2f}",
            f"{100 * weak['accuracy']:.2f}",
            published(args.data),
            f"{100 * without['clean_accuracy']:.2f} / {100 * without['verified_accuracy']:.2f}",
            f"{row['train_seconds'] / 60:.1f} / {row['train_cpu_seconds'] / 60:.1f}",
            f"{certificate['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    warnings = [f"- {r['label']}: {w}" for r in rows for w in r["robustness"]["warnings"]]
    if warnings:
        lines += ["", "Signs of gradient masking:", "", *warnings]
    lines += [
        "",
        "Verified accuracy is a lower bound of the accuracy under any attack within the ball, and "
        "accuracy under an attack an upper bound. What is verified is the network in exact "
        "arithmetic, on these images.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="a registered data set of images")
    parser.add_argument("--model", choices=MODELS, help="one of them; all by default")
    parser.add_argument("--eps", type=float, default=0.1, help="radius to verify at")
    parser.add_argument("--kappa", type=float, default=0.6, help="final share of the worst case")
    parser.add_argument("--epochs", type=int, help="each model's own by default")
    parser.add_argument("--warmup", type=float, default=1, help="epochs before the radius grows")
    parser.add_argument("--ramp", type=float, default=8, help="epochs in which it grows")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--images", type=int, help="test images to examine; all by default")
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--time-limit", type=float, help="seconds of training for each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / f"ibp-mondeq-{args.data}"
    data = stabnet.data.split(stabnet.data.load(args.data), seed=args.seed)
    rows = []
    for label in [args.model] if args.model else MODELS:
        rows.append(experiment(label, MODELS[label], data, args))
        table = markdown(rows, args)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text(table)
        setting = {"torch": torch.__version__, "cpu": platform.machine()}
        command = {k: v for k, v in vars(args).items() if k != "out"}
        record = {"command": command, "setting": setting, "rows": rows}
        (args.out / "table.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    main()
