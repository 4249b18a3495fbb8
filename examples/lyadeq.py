"""LyaDEQ and its ablations: train, attack, and set the outcome beside the paper's.

The four ablations of Chu, Wei, Liu: "Learning Robust Deep Equilibrium Models" (DEQ and LyaDEQ, each
with and without the orthogonal head), trained as there (Adam, 1e-3, cosine annealing) and attacked
by its protocol (I-FGSM and PGD at four radii):

    python examples/lyadeq.py --data mnist --epochs 3

What the constants that the paper leaves open cost: LyaDEQ over the decay rate, and its readings:

    python examples/lyadeq.py --data mnist --epochs 3 --trade

Writes one table, as Markdown and as JSON, into the output folder. `lyadeq_sweep.py` goes on from
here: larger radii, stronger attacks, and the features in the plane.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import stabnet

ABLATIONS = {
    "DEQ": {"name": "deq", "head": "linear"},
    "DEQ + orthogonal": {"name": "deq", "head": "orthogonal"},
    "LyaDEQ without orthogonal": {"name": "lyadeq", "head": "linear"},
    "LyaDEQ": {"name": "lyadeq", "head": "orthogonal"},
}
TRADE = {
    **{f"output, alpha {a}": {"name": "lyadeq", "alpha": a} for a in (0.01, 0.1, 1.0, 2.0, 4.0)},
    "residual, alpha 2": {"name": "lyadeq", "projection": "residual"},
    "flow, alpha 2": {"name": "lyadeq", "projection": "flow"},
    "no projection": {"name": "deq", "head": "orthogonal"},
}


def train(
    label: str,
    model: dict,
    data: stabnet.data.Splits,
    args: argparse.Namespace,
    objective: str | dict = "cross_entropy",
) -> tuple[nn.Module, dict]:
    """Train one model; return it, and the beginning of its row."""
    torch.manual_seed(args.seed)
    dataset = data.dataset
    network = stabnet.build(
        model,
        in_shape=dataset.in_shape,
        num_outputs=dataset.num_outputs,
        mean=dataset.mean,
        std=dataset.std,
        backbone=args.backbone,
    )
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        network,
        data,
        objective=objective,
        epochs=args.epochs,
        run_dir=args.out / label.replace(" ", "-").replace(",", ""),
        seed=args.seed,
        device=args.device,
        time_limit=args.time_limit,
    )
    return network.eval(), {
        "label": label,
        "config": network.config,
        "train_seconds": round(fitted.seconds, 1),
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
        "complete": fitted.complete,
        "test": dict(fitted.test),
        "last_epoch": dict(fitted.history[-1]),
    }


def attack(network: nn.Module, data: stabnet.data.Splits, args: argparse.Namespace) -> dict:
    """Attack a model by the paper's protocol; return the rest of its row."""
    started = time.monotonic()
    batches = stabnet.data.loader(data.dataset.test, batch_size=500)
    report = stabnet.robustness.paper_protocol(network, batches, max_images=args.images)
    return {
        "attack_seconds": round(time.monotonic() - started, 1),
        "robustness": report.to_dict(),
    }


def paper_accuracy(dataset: str) -> dict[tuple[str, str, str], str]:
    """Return the paper's table 1 for a data set: accuracy in % by model, attack and radius."""
    with Path(__file__).with_name("lyadeq_paper.csv").open() as file:
        return {
            (row["model"], row["attack"].split()[0], row["eps"]): row["value"]
            for row in csv.DictReader(file)
            if row["data"] == dataset.upper()
        }


def markdown(rows: list[dict], dataset: str, args: argparse.Namespace) -> str:
    """Return the table: accuracy in %, ours and, after a slash, the paper's where it has one."""
    paper = paper_accuracy(dataset)
    results = rows[0]["robustness"]["results"]
    attacks = [("none", "0")] + [(r["attack"], f"{r['eps'] * 255:.0f}/255") for r in results]
    names = {"none": "none", "ifgsm": "I-FGSM", "pgd": "PGD"}
    images = rows[0]["robustness"]["clean"]["images"]
    steps = sorted({r["steps"] for r in results})
    lines = [
        f"# LyaDEQ on {dataset}",
        "",
        f"Made with `python examples/lyadeq.py {args.command}`; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s).",
        "",
        f"{args.epochs} epochs, backbone `{args.backbone}`, seed {args.seed}, {images} images; "
        f"l-infinity, step 1/255, {steps[0]} to {steps[-1]} steps, one start. Accuracy in %: "
        "ours / the paper's.",
        "",
        "| model | "
        + " | ".join(f"{names[a]} {e}".removesuffix(" 0") for a, e in attacks)
        + " | train s | attack s | converged (clean) |",
        "|---" * (len(attacks) + 4) + "|",
    ]
    for row in rows:
        clean, attacked = row["robustness"]["clean"], row["robustness"]["results"]
        ours = [clean["accuracy"], *(r["accuracy"] for r in attacked)]
        cells = [
            f"{100 * accuracy:.2f}"
            + (f" / {paper[key]}" if (key := (row["label"], names[a], e)) in paper else "")
            for accuracy, (a, e) in zip(ours, attacks, strict=True)
        ]
        label = row["label"] if row["complete"] else f"{row['label']} (cut short)"
        share = clean["converged_share"]
        cells += [f"{row['train_seconds']:.0f}", f"{row['attack_seconds']:.0f}", f"{share:.2%}"]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    warnings = [f"- {r['label']}: {w}" for r in rows for w in r["robustness"]["warnings"]]
    if warnings:
        lines += ["", "Signs of gradient masking:", "", *warnings]
    lines += ["", rows[0]["robustness"]["caveat"], ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="a registered data set")
    parser.add_argument("--backbone", default="linear", help="a registered backbone")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, help="test images to attack; all by default")
    parser.add_argument("--trade", action="store_true", help="vary the decay rate and the reading")
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--time-limit", type=float, help="seconds of training for each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args(argv)
    kind = "trade" if args.trade else "ablations"
    options = ("data", "backbone", "epochs", "images", "seed")
    given = {name: getattr(args, name) for name in options}
    args.command = " ".join(f"--{name} {v}" for name, v in given.items() if v is not None)
    args.command += " --trade" if args.trade else ""
    args.out = args.out or Path("runs") / f"lyadeq-{args.data}-{kind}"
    data = stabnet.data.split(stabnet.data.load(args.data), seed=args.seed)
    rows = []
    for label, model in (TRADE if args.trade else ABLATIONS).items():
        network, row = train(label, model, data, args)
        rows.append(row | attack(network, data, args))
        table = markdown(rows, args.data, args)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text(table)
        setting = {"torch": torch.__version__, "cpu": platform.machine(), "epochs": args.epochs}
        record = {"command": vars(args) | {"out": None}, "setting": setting, "rows": rows}
        (args.out / "table.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    main()
