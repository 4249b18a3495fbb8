"""Early termination: loss and accuracy against inference time [LyaNet, Figure 3].

LyaNet and the neural ODE of the same architecture, trained with one optimizer for as many epochs,
are stopped at times from 0 to 1. LyaNet's loss is to fall as exp(-kappa t) from the start on:

    python examples/early_termination.py
    python examples/early_termination.py --data mnist --backbone convnet --width 32 --epochs 2

Writes a table (Markdown, JSON) and the curves (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from stabnet_lyapunov import EarlyTermination, decay_share, early_termination

import stabnet

TIMES = [k / 20 for k in range(21)]
SHOWN = (0.0, 0.1, 0.25, 0.5, 1.0)


def experiment(
    label: str, data: stabnet.data.Splits, args: argparse.Namespace, seed: int
) -> tuple[dict, EarlyTermination]:
    """Train one model; return its row of the table, and what stopping it early comes to."""
    torch.manual_seed(seed)
    dataset, lyanet = data.dataset, label == "LyaNet"
    model = stabnet.build(
        "lyanet" if lyanet else "neural_ode",
        in_shape=dataset.in_shape,
        num_outputs=dataset.num_outputs,
        mean=dataset.mean,
        std=dataset.std,
        backbone={"name": args.backbone, "width": args.width**2},
        vector_field={"name": "data_controlled", "rate": args.kappa},
    )
    lyapunov = {"name": "lyapunov_monte_carlo", "kappa": args.kappa, "samples": args.samples}
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        model,
        data,
        objective=lyapunov if lyanet else "cross_entropy",
        epochs=args.epochs,
        batch_size=64,
        learning_rate=args.learning_rate,
        run_dir=args.out / f"{label.replace(' ', '-')}-{seed}",
        seed=seed,
        device=args.device,
    )
    cpu = time.process_time() - cpu
    batches = list(stabnet.data.loader(dataset.test, batch_size=500))
    stopped = early_termination(model, batches, TIMES)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    at = {t: k for k, t in enumerate(TIMES)}
    row = {
        "model": label,
        "seed": seed,
        **{f"loss at {t:g}": stopped.loss[at[t]] for t in SHOWN},
        **{f"accuracy at {t:g}": stopped.accuracy[at[t]] for t in SHOWN[1:]},
        "decay share": decay_share(model, x, y, args.kappa).share,
        "accuracy at finer steps": fitted.step_size.refined_accuracy,
        "seconds": round(fitted.seconds, 1),
        "CPU seconds": round(cpu, 1),
    }
    return row, stopped


def markdown(rows: list[dict], args: argparse.Namespace) -> str:
    """Return the table and the curves."""
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    names = list(rows[0])
    figure = f"early-termination-{args.data}.png"
    return "\n".join([
        f"# Early termination on {args.data}",
        "",
        f"{args.epochs} epochs, encoder `{args.backbone}` ({args.width} x {args.width} features), "
        f"kappa = {args.kappa:g}, {args.samples} samples, Adam at {args.learning_rate:g}; torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s). Mean cross entropy and "
        "accuracy on the test set at inference times; decay share: of test samples x 10 times, "
        f"those with V(t) <= 1.01 V(0) exp(-{args.kappa:g} t). Finer steps are a tenth.",
        "",
        *("| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *cells)),
        "",
        f"![loss and accuracy against inference time]({figure})",
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="a registered data set")
    parser.add_argument("--backbone", default="mlp", help="encoder of both models")
    parser.add_argument("--width", type=int, default=16, help="h; the features are h x h")
    parser.add_argument("--samples", type=int, default=256, help="of the Monte Carlo loss")
    parser.add_argument("--kappa", type=float, default=5.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args(argv)
    args.out = args.out or Path("runs") / f"early-termination-{args.data}"
    rows, curves = [], []
    for seed in args.seeds:
        data = stabnet.data.split(stabnet.data.load(args.data), seed=seed)
        for label in ("neural ODE", "LyaNet"):
            row, stopped = experiment(label, data, args, seed)
            rows.append(row)
            if seed == args.seeds[0]:
                kappa = args.kappa if label == "LyaNet" else None
                curves.append(
                    stabnet.plots.ConvergenceCurve(
                        label, stopped.times, stopped.loss, stopped.accuracy, kappa
                    )
                )
    name = f"early-termination-{args.data}"
    figure = stabnet.plots.convergence_curves(curves)
    stabnet.plots.save_figure(figure, args.out / f"{name}.png", dpi=90)
    (args.out / f"{name}.md").write_text(markdown(rows, args))
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": rows}
    (args.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(markdown(rows, args))


if __name__ == "__main__":
    main()
