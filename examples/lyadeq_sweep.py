"""LyaDEQ up to 20/255 [LyaDEQ, Figures 3 and 4], beside attacks that are meant to succeed.

The four ablations and the reading `flow`, trained as in `lyadeq.py`, then attacked

- by the paper's protocol, I-FGSM and PGD, at its radii up to 20/255;
- by a strong PGD at half of these radii: 40 steps, several starts, one of them with gradients
  through the solver's iterations;
- by I-FGSM at radii that nothing can withstand, where accuracy that stays is masked gradients;
- by images that were made for each of the other models.

    python examples/lyadeq_sweep.py --data mnist --epochs 3 --images 1000

Writes tables (Markdown, JSON), accuracy against the radius and t-SNE of what the orthogonal layer
reads and returns (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lyadeq import ABLATIONS, train
from torch import Tensor, nn

import stabnet
from stabnet.plots import AccuracyCurve, accuracy_curves, feature_embedding, save_figure
from stabnet.robustness import attack_report, paper_protocol, seeded

# The decay of the flow holds for every step size; longer steps only cost less.
FLOW = {"name": "lyadeq", "projection": "flow", "step_size": 0.25}
MODELS = {**ABLATIONS, "LyaDEQ, flow": FLOW}
RADII = tuple(k / 255 for k in range(2, 21, 2))
STRONG = RADII[1::2]
STEPS = 40
STARTS = ("implicit", "implicit", "unrolled")
"""How the equilibrium is differentiated, for each start of the strong attack."""
LARGE = (20 / 255, 0.2, 0.5, 1.0)
TRANSFER = (8 / 255, 16 / 255)
EMBEDDED = ("DEQ + orthogonal", "LyaDEQ")

Networks = dict[str, nn.Module]


def right(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which images are classified rightly."""
    with torch.no_grad():
        return network(x).argmax(1) == y


def pgd(network: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Return what 40 steps of PGD find, each of an eighth of the radius, from one random start."""
    attack = stabnet.build("pgd", kind="attack", eps=eps, step_size=eps / 8, steps=STEPS)
    with seeded(seed, x.device):
        return attack(network, x, y)


def strong(network: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Return the accuracy that the strong attack leaves, clean and at each of its radii.

    What is lost within one radius is lost within all larger ones, so only images that are left are
    attacked. The last start differentiates through the solver's iterations, since gradients of the
    equilibrium may mislead (Yang, Pang, Liu 2022).
    """
    left = right(network, x, y)
    accuracy = [left.double().mean().item()]
    equilibrium = next(m for m in network.modules() if isinstance(m, stabnet.Equilibrium))
    for eps in STRONG:
        for start, gradient in enumerate(STARTS):
            equilibrium.gradient = gradient
            chosen = left.nonzero().flatten()
            for part in chosen.split(500) if len(chosen) else ():
                found = pgd(network, x[part], y[part], eps, start)
                left[part] = right(network, found, y[part])
        equilibrium.gradient = "implicit"
        accuracy.append(left.double().mean().item())
    return accuracy


def transfer(networks: Networks, x: Tensor, y: Tensor, eps: float) -> dict:
    """Return each model's accuracy (inner) on what was found against each model (outer)."""
    clean = {label: right(network, x, y) for label, network in networks.items()}
    table = {}
    for source, attacked in networks.items():
        images = pgd(attacked, x, y, eps, 0)
        table[source] = {
            label: (right(network, images, y) & clean[label]).double().mean().item()
            for label, network in networks.items()
        }
    return table


def attack(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict:
    """Attack one model by the protocol, strongly, and at large radii."""
    cpu = time.process_time()
    batches = list(zip(x.split(500), y.split(500), strict=True))
    large = [{"name": "ifgsm", "eps": e, "step_size": e / 10, "steps": 20} for e in LARGE]
    return {
        "protocol": paper_protocol(network, batches, eps=RADII, seed=seed).to_dict(),
        "strong": strong(network, x, y),
        "large": attack_report(network, batches, large, seed=seed).to_dict(),
        "attack_cpu_seconds": round(time.process_time() - cpu, 1),
    }


def accuracies(row: dict, name: str) -> list[float]:
    """Return clean accuracy, then that under one of the protocol's attacks at all radii."""
    results = row["protocol"]["results"]
    found = {r["eps"]: r["accuracy"] for r in results if r["attack"] == name}
    return [row["protocol"]["clean"]["accuracy"], *(found[e] for e in RADII)]


def draw(
    networks: Networks, rows: list[dict], x: Tensor, y: Tensor, args: argparse.Namespace
) -> None:
    """Draw accuracy against the radius, and the features of clean and attacked images."""
    chance = 1 / networks["DEQ"].num_outputs
    for name, eps in (("ifgsm", RADII), ("pgd", RADII), ("strong", STRONG)):
        curves = [
            AccuracyCurve(
                row["label"],
                {"ifgsm": "I-FGSM", "pgd": "PGD", "strong": "strong PGD"}[name],
                (0.0, *eps),
                row["strong"] if name == "strong" else accuracies(row, name),
            )
            for row in rows
        ]
        save_figure(accuracy_curves(curves, chance=chance), path(args, f"-{name}.png"), dpi=110)
    before, after, eps = {}, {}, 8 / 255
    for label in EMBEDDED:
        network = networks[label]
        for which, images in (("clean", x), ("PGD 8/255", pgd(network, x, y, eps, 0))):
            with torch.no_grad():
                before[f"{label}\nlayer's input, {which}"] = network.solve(images).state.flatten(1)
                after[f"{label}\nlayer's output, {which}"] = network(images)
    perplexity = min(30.0, len(x) / 4)
    figure = feature_embedding({**before, **after}, y, columns=4, perplexity=perplexity)
    save_figure(figure, path(args, "-features.png"), dpi=90)


def path(args: argparse.Namespace, ending: str) -> Path:
    """Return the name of a file that is written."""
    return args.out / f"lyadeq-{args.data}-sweep{ending}"


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> list[str]:
    """Return a Markdown table of shares, in %."""
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {name} | {' | '.join(f'{100 * v:.1f}' for v in values)} |" for name, values in rows),
        "",
    ]


def figure(args: argparse.Namespace, ending: str, words: str) -> str:
    """Return the Markdown of a figure."""
    return f"![{words}]({path(args, ending).name})"


def markdown(rows: list[dict], moved: dict[float, dict], args: argparse.Namespace) -> str:
    """Return the report: what was done, what came out, and how it is to be read."""
    labels = [row["label"] for row in rows]
    steps = {r["eps"]: r["steps"] for r in rows[0]["protocol"]["results"]}
    by_protocol = ["model", "none", *(f"{255 * e:.0f} ({steps[e]})" for e in RADII)]
    images = rows[0]["protocol"]["clean"]["images"]
    lines = [
        f"# LyaDEQ up to 20/255 on {args.data}",
        "",
        f"Made with `python examples/lyadeq_sweep.py {args.command}`; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s).",
        "",
        f"{args.epochs} epochs, backbone `{args.backbone}`, seed {args.seed}. All figures are "
        f"accuracies in % on the first {images} test images, which count as robust only if they "
        "are classified rightly before and after the attack; one standard error is up to "
        f"{50 / images**0.5:.1f}. One seed: smaller differences mean nothing. Radii are "
        "l-infinity in 1/255. Everything here is an upper bound of the true robust accuracy and no "
        "certificate. No model was trained against attacks, and none is guaranteed to withstand "
        "one: what is proven of the reading `flow` concerns the state, not the input.",
        "",
        "## The paper's protocol",
        "",
        "Radius (steps, by the paper's rule), steps of 1/255, one start. I-FGSM starts at the "
        "image:",
        "",
        *table(by_protocol, [(r["label"], accuracies(r, "ifgsm")) for r in rows]),
        "PGD starts at random, and with so few steps may not cross the ball:",
        "",
        *table(by_protocol, [(r["label"], accuracies(r, "pgd")) for r in rows]),
        figure(args, "-ifgsm.png", "accuracy under I-FGSM"),
        figure(args, "-pgd.png", "accuracy under PGD"),
        "",
        "## Strong attack",
        "",
        f"PGD with {STEPS} steps of an eighth of the radius and {len(STARTS)} random starts, the "
        "last with gradients through the solver's iterations; lost at one radius is lost at all "
        "larger ones:",
        "",
        *table(
            ["model", "none", *(f"{255 * e:.0f}" for e in STRONG)],
            [(row["label"], row["strong"]) for row in rows],
        ),
        figure(args, "-strong.png", "accuracy under the strong attack"),
        "",
        "## Gradient masking?",
        "",
        "I-FGSM, 20 steps of a tenth of the radius. Nothing can withstand a radius of 255/255, "
        "within which every image is reached: accuracy that stays there would be masked gradients.",
        "",
        *table(
            ["model", *(f"{255 * e:.0f}" for e in LARGE)],
            [(r["label"], [found["accuracy"] for found in r["large"]["results"]]) for r in rows],
        ),
        *warnings(rows),
        "",
        "Accuracy on images made for another model (strong PGD, one start; the row made them, the "
        "column classifies them). An entry clearly below the diagonal's in its column would mean "
        "that another model's gradients harm it more than its own: masked gradients.",
        "",
    ]
    for eps, by_source in moved.items():
        head = [f"made for, at {255 * eps:.0f}", *labels]
        lines += table(head, [(s, [found[k] for k in labels]) for s, found in by_source.items()])
    return "\n".join([
        *lines,
        "## Features",
        "",
        "t-SNE of what the orthogonal layer reads and returns, for clean images and under strong "
        "PGD with one start. It distorts distances: an illustration, and no evidence of "
        "robustness.",
        "",
        figure(args, "-features.png", "features before and after the orthogonal layer"),
        "",
    ])  # fmt: skip


def warnings(rows: list[dict]) -> list[str]:
    """Return what the audits warn of, or that they are silent."""
    found = [
        f"- {row['label']}: {warning}"
        for row in rows
        for warning in (*row["protocol"]["warnings"], *row["large"]["warnings"])
    ]
    silent = "The audit found no sign of gradient masking, which is no proof of its absence."
    return ["The audit warns:", "", *found] if found else [silent]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="digits", help="a registered data set")
    parser.add_argument("--backbone", default="linear", help="a registered backbone")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1000, help="test images to attack, at most")
    parser.add_argument("--features", type=int, default=500, help="of those, in the embedding")
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--time-limit", type=float, help="seconds of training for each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args(argv)
    options = ("data", "backbone", "epochs", "images", "features", "seed")
    args.command = " ".join(f"--{name} {getattr(args, name)}" for name in options)
    args.out = args.out or Path("runs") / f"lyadeq-{args.data}-sweep"
    data = stabnet.data.split(stabnet.data.load(args.data), seed=args.seed)
    networks, rows = {}, []
    for label, model in MODELS.items():
        networks[label], row = train(label, model, data, args)
        device = next(networks[label].parameters()).device
        loader = stabnet.data.loader(data.dataset.test, batch_size=args.images)
        x, y = (t[: args.images].to(device) for t in next(iter(loader)))
        rows.append(row | attack(networks[label], x, y, args.seed))
    moved = {eps: transfer(networks, x, y, eps) for eps in TRANSFER}
    text = markdown(rows, moved, args)
    draw(networks, rows, x[: args.features], y[: args.features], args)
    path(args, ".md").write_text(text)
    setting = {k: v for k, v in vars(args).items() if k not in ("out", "command")}
    record = {"command": args.command, "setting": setting, "torch": torch.__version__}
    record |= {"strong_radii": STRONG, "rows": rows}
    record |= {"transfer": {f"{255 * eps:.0f}/255": found for eps, found in moved.items()}}
    path(args, ".json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
