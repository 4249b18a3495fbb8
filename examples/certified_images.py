"""Certified accuracy against accuracy under attack, in l2: non-expansive nets and a free one.

Non-expansive nets, trained for several margins, and the residual net of the same shape without the
constraint. Each is certified, then attacked by l2-PGD and by Auto-PGD

- at a range of radii: the certified curve must lie below both attacked ones;
- within 0.999 of every image's own certified radius: no attack may succeed there.

If one of these fails, the script ends with an error.

    python examples/certified_images.py                      # scikit-learn's digits, a minute
    python examples/certified_images.py --data mnist
    python examples/certified_images.py --data cifar10_jpeg --device cuda

Models that were saved before are examined with `--load FILE …` instead of training any. What a run
with the same options has left in the output folder is not made again. Writes tables (Markdown,
JSON) and the curves (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from certified_recipes import EPS, RECIPES, Recipe
from certified_report import NAMES, accuracies, markdown, violations
from lyanet_images import load as load_data
from torch import Tensor

import stabnet
from stabnet.plots import AccuracyCurve, accuracy_curves, save_figure
from stabnet.robustness import attack_report, eval_mode, perturbation, seeded

SHARE = 0.999  # of its certified radius, within which an image is attacked
LOSSES = {"pgd_l2": "margin", "apgd": "dlr"}
BATCH = 500


def train(
    label: str, recipe: Recipe, data: stabnet.data.Splits, args: argparse.Namespace
) -> tuple[stabnet.StabilityModel, dict]:
    """Train one model; `fit` re-normalizes it from sound bounds of its norms at the end."""
    torch.manual_seed(args.seed)
    network = stabnet.build(
        "nonexpansive_net" if recipe.constrained else "resnet_twin",
        in_shape=data.dataset.in_shape,
        num_outputs=data.dataset.num_outputs,
        **recipe.net,
    )
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        network,
        data,
        objective=recipe.objective,
        epochs=args.epochs or recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        run_dir=args.out / label.replace(" ", "-"),
        seed=args.seed,
        device=args.device,
        time_limit=args.time_limit,
        resume=True,
    )
    return network, {
        "objective": recipe.objective,
        "epochs": args.epochs or recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "complete": fitted.complete,
        "best_epoch": fitted.best_epoch,
        "train_seconds": round(fitted.seconds, 1),
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
    }


def attacks(args: argparse.Namespace, eps: Sequence[float]) -> list[dict]:
    """Return the attacks at some radii."""
    common = {"steps": args.steps, "restarts": args.restarts}
    return [
        {
            "name": name,
            "eps": e,
            "loss": loss,
            **common,
            **({"norm": "l2"} if name == "apgd" else {}),
        }
        for name, loss in LOSSES.items()
        for e in eps
    ]


def inside(
    network: stabnet.StabilityModel, x: Tensor, y: Tensor, radii: Tensor, args: argparse.Namespace
) -> dict[str, dict]:
    """Attack every image that has a certified radius within that radius, and count successes."""
    held = radii > 0
    x, y = x[held], y[held]
    certified = radii[held].to(x.device)
    # No two images are farther apart than the diagonal of the unit cube.
    within = (SHARE * certified).clamp_max(math.sqrt(x[0].numel()))
    found = {}
    for options in attacks(args, EPS[args.data][:1]):  # their own radius is not used
        attack = stabnet.build(options, kind="attack")
        flipped, largest = 0, 0.0
        with seeded(args.seed, x.device), eval_mode(network), torch.no_grad():
            for part in torch.arange(len(x), device=x.device).split(BATCH) if len(x) else ():
                images = attack.within(network, x[part], y[part], within[part])
                share = perturbation(images, x[part], "l2") / certified[part]
                flipped += int((network(images).argmax(1) != y[part]).sum())
                largest = max(largest, float(share.max()))
        if largest >= 1:
            raise RuntimeError(f"{options['name']} left the certified radii: it says nothing")
        found[options["name"]] = {
            "images": len(x),
            "succeeded": flipped,
            "largest_share_of_radius": largest,
        }
    return found


def examine(
    label: str, network: stabnet.StabilityModel, test: object, args: argparse.Namespace
) -> dict:
    """Certify and attack one model, and return its row."""
    cpu = time.process_time()
    loader = stabnet.data.loader(test, batch_size=BATCH)
    report = stabnet.certify.certified_accuracy(network, loader, args.eps)
    certify_cpu, cpu = time.process_time() - cpu, time.process_time()
    x, y = (torch.cat(t) for t in zip(*loader, strict=True))
    # Evenly spaced: a sample of all, whatever their order.
    count = min(args.images, len(x))
    chosen = torch.arange(count) * len(x) // count
    x, y = x[chosen], y[chosen]
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    robust = attack_report(network, batches, attacks(args, args.eps), seed=args.seed)
    radii = torch.tensor(report.radii, dtype=torch.float64)[chosen]
    device = next(network.parameters()).device
    within = inside(network, x.to(device), y.to(device), radii, args)
    certificate = report.to_dict()
    del certificate["radii"]  # ten thousand numbers
    grid = [e * max(args.eps) / 100 for e in range(101)]
    return {
        "label": label,
        "config": network.config,
        "certificate": certificate,
        "certified_of_attacked": [float((radii > e).double().mean()) for e in args.eps],
        "curve": {"eps": grid, "certified": [float((radii > e).double().mean()) for e in grid]},
        "robustness": robust.to_dict(),
        "inside": within,
        "certify_cpu_seconds": round(certify_cpu, 1),
        "attack_cpu_seconds": round(time.process_time() - cpu, 1),
    }


def trained_row(label: str, data: stabnet.data.Splits, args: argparse.Namespace) -> dict:
    """Train and examine one model, and keep its row, so that a run cut short can go on."""
    network, trained = train(label, RECIPES[args.data][label], data, args)
    row = trained | examine(label, network, data.dataset.test, args)
    kept = {"setting": args.setting, "row": row}
    (args.out / label.replace(" ", "-") / "row.json").write_text(json.dumps(kept) + "\n")
    return row


def remembered(label: str, args: argparse.Namespace) -> dict | None:
    """Return the row that a run with the same options has left in the output folder, if any."""
    file = args.out / label.replace(" ", "-") / "row.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    return kept.get("row") if kept.get("setting") == args.setting else None


def draw(rows: list[dict], args: argparse.Namespace) -> None:
    """Draw certified and attacked accuracy against the radius."""
    curves = []
    for row in rows:
        label, clean = row["label"], row["robustness"]["clean"]["accuracy"]
        grid = row["curve"]
        curves.append(AccuracyCurve(label, None, grid["eps"], grid["certified"]))
        for name, words in NAMES.items():
            left = [clean, *accuracies(row, name)]
            curves.append(AccuracyCurve(label, words, (0, *args.eps), left))
    figure = accuracy_curves(curves, norm="l2")
    figure.set_size_inches(8, 4.5)
    figure.axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_figure(figure, path(args, ".png"), dpi=110)


def path(args: argparse.Namespace, ending: str) -> Path:
    """Return the name of a file that is written."""
    return args.out / f"certified-{args.data}{ending}"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", choices=RECIPES)
    parser.add_argument("--models", nargs="+", help="some of the data set's recipes, by label")
    parser.add_argument("--load", nargs="+", type=Path, help="saved models, instead of training")
    parser.add_argument("--eps", nargs="+", type=float, help="radii; the data set's by default")
    parser.add_argument("--epochs", type=int, help="each recipe's own by default")
    parser.add_argument("--images", type=int, default=1000, help="test images to attack, at most")
    parser.add_argument("--steps", type=int, default=100, help="of an attack, from one start")
    parser.add_argument("--restarts", type=int, default=2, help="random starts of an attack")
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--time-limit", type=float, help="seconds of training for each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args(argv)
    unknown = set(args.models or ()) - set(RECIPES[args.data])
    if unknown:
        parser.error(f"--models: unknown {sorted(unknown)}; choose from {list(RECIPES[args.data])}")
    args.eps = tuple(args.eps or EPS[args.data])
    args.out = args.out or Path("runs") / f"certified-{args.data}"
    setting, whole = command(args, ("out", "models")), command(args, ("out",))
    args.setting, args.command, args.losses, args.share = setting, whole, LOSSES, SHARE
    return args


def command(args: argparse.Namespace, without: Collection[str]) -> str:
    """Return the command line that repeats the run, but for some options."""
    words = []
    for name, value in vars(args).items():
        if name not in without and value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            shown = ["/".join(v.parts[-2:]) if isinstance(v, Path) else str(v) for v in values]
            quoted = [f"'{v}'" if " " in v else v for v in shown]
            words += [f"--{name.replace('_', '-')}", *quoted]
    return " ".join(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    args = parsed(argv)
    dataset = load_data(args)
    data = stabnet.data.split(dataset, seed=args.seed)
    rows = []
    args.out.mkdir(parents=True, exist_ok=True)
    for label in [] if args.load else args.models or RECIPES[args.data]:
        rows.append(remembered(label, args) or trained_row(label, data, args))
    for file in args.load or ():
        network = stabnet.load(file, device=args.device or "cpu")
        # `fit` calls every model alike, in a folder of its own.
        label = file.parent.name if file.name == "model.safetensors" else file.stem
        rows.append(examine(label, network, dataset.test, args))
    draw(rows, args)
    text = markdown(rows, args, path(args, ".png").name)
    path(args, ".md").write_text(text)
    record = {"command": args.command, "torch": torch.__version__, "eps": args.eps, "rows": rows}
    path(args, ".json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)
    contradictions = violations(rows, args.eps)
    if contradictions:
        raise SystemExit("an attack contradicts a certificate: " + "; ".join(contradictions))


if __name__ == "__main__":
    main()
