"""The rate kappa: what it does to error, decay and early termination [LyaNet, Table 3].

LyaNet is trained at several rates kappa, each with the field and the sampled cube that go with it,
from several seeds. The paper gives the clean error on CIFAR-100 (`kappa_ablation_paper.csv`); the
question can be asked of any data set:

    python examples/kappa_ablation.py
    python examples/kappa_ablation.py --data mnist --backbone convnet --width 32 --epochs 2

Writes a table (Markdown, JSON) and the loss against inference time (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from stabnet_lyapunov import EarlyTermination, decay_share, early_termination

import stabnet

TIMES = [k / 20 for k in range(21)]


def experiment(
    kappa: float, data: stabnet.data.Splits, args: argparse.Namespace, seed: int
) -> tuple[dict, EarlyTermination]:
    """Train at one rate; return the measurements, and what stopping early comes to."""
    torch.manual_seed(seed)
    dataset = data.dataset
    model = stabnet.build(
        "lyanet",
        in_shape=dataset.in_shape,
        num_outputs=dataset.num_outputs,
        mean=dataset.mean,
        std=dataset.std,
        backbone={"name": args.backbone, "width": args.width**2},
        vector_field={"name": "data_controlled", "rate": kappa},
    )
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        model,
        data,
        objective={"name": "lyapunov_monte_carlo", "kappa": kappa, "samples": args.samples},
        epochs=args.epochs,
        batch_size=64,
        learning_rate=args.learning_rate,
        run_dir=args.out / f"kappa-{kappa:g}-{seed}",
        seed=seed,
        device=args.device,
    )
    cpu = time.process_time() - cpu
    batches = list(stabnet.data.loader(dataset.test, batch_size=500))
    stopped = early_termination(model, batches, TIMES)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = {
        "kappa": kappa,
        "seed": seed,
        "error %": 100 * (1 - fitted.test["accuracy"]),
        "error % at t = 0.25": 100 * (1 - stopped.accuracy[TIMES.index(0.25)]),
        "loss at t = 0.25": stopped.loss[TIMES.index(0.25)],
        "loss at t = 1": stopped.loss[-1],
        "decay share": decay_share(model, x, y, kappa).share,
        "violations": fitted.test["violations"],
        "change at finer steps": fitted.step_size.mean_change,
        "CPU seconds": cpu,
    }
    return found, stopped


def paper_errors() -> dict[str, str]:
    """Return Table 3 of the paper: clean error in % on CIFAR-100, by rate."""
    with Path(__file__).with_name("kappa_ablation_paper.csv").open() as file:
        rows = csv.DictReader(file)
        return {row["model"].removeprefix("LyaNet kappa="): row["value"] for row in rows}


def summary(found: list[dict]) -> dict[str, str]:
    """Return the row of one rate: means over the seeds, with the standard deviation if several."""
    row = {"kappa": f"{found[0]['kappa']:g}"}
    for name in list(found[0])[2:]:
        values = [f[name] for f in found]
        spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        row[name] = f"{statistics.mean(values):.3g}{spread}"
    return row


def markdown(found: list[dict], args: argparse.Namespace) -> str:
    """Return the table."""
    rates = dict.fromkeys(f["kappa"] for f in found)
    rows = [summary([f for f in found if f["kappa"] == kappa]) for kappa in rates]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(r.values()) for r in rows)]
    paper = ", ".join(f"{error} at kappa = {kappa}" for kappa, error in paper_errors().items())
    return "\n".join([
        f"# The rate kappa on {args.data}",
        "",
        f"{args.epochs} epochs, encoder `{args.backbone}` ({args.width} x {args.width} features), "
        f"{args.samples} samples, Adam at {args.learning_rate:g}; mean and standard deviation over "
        f"the seeds {args.seeds}; torch {torch.__version__}, {torch.get_num_threads()} thread(s). "
        "All figures are of the test set. Decay share: of samples x 10 times, those with V(t) <= "
        "1.01 V(0) exp(-kappa t), each at its own kappa; violations: share of sampled states where "
        "dV/dt + kappa V > 0. Finer steps are a tenth.",
        "",
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
        f"The paper's clean error in % on CIFAR-100 (Table 3): {paper}.",
        "",
        f"![loss and accuracy against inference time](kappa-{args.data}.png)",
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="a registered data set")
    parser.add_argument("--kappas", type=float, nargs="+", default=[0.1, 1.0, 5.0, 10.0])
    parser.add_argument("--backbone", default="mlp", help="the encoder")
    parser.add_argument("--width", type=int, default=16, help="h; the features are h x h")
    parser.add_argument("--samples", type=int, default=256, help="of the Monte Carlo loss")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs") / f"kappa-{args.data}"
    found, curves = [], []
    for kappa in args.kappas:
        for seed in args.seeds:
            data = stabnet.data.split(stabnet.data.load(args.data), seed=seed)
            row, stopped = experiment(kappa, data, args, seed)
            found.append(row)
            if seed == args.seeds[0]:
                curve = stopped.times, stopped.loss, stopped.accuracy, kappa
                curves.append(stabnet.plots.ConvergenceCurve(f"kappa = {kappa:g}", *curve))
    figure = stabnet.plots.convergence_curves(curves)
    stabnet.plots.save_figure(figure, args.out / f"kappa-{args.data}.png", dpi=90)
    (args.out / f"kappa-{args.data}.md").write_text(markdown(found, args))
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": found}
    (args.out / f"kappa-{args.data}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(markdown(found, args))


if __name__ == "__main__":
    main()
