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
# Else its cell stops contracting, and its training solves stop converging.
REGULARIZED = {"name": "jacobian_regularized", "weight": 3.0}
RADII = tuple(k / 255 for k in range(2, 21, 2))
STRONG = RADII[1::2]
STEPS = 40
STARTS = ("implicit", "implicit", "unrolled")  # how each start differentiates the equilibrium
LARGE = (20 / 255, 0.2, 0.5, 1.0)
TRANSFER = (8 / 255, 16 / 255)
EMBEDDED = ("DEQ + orthogonal", "LyaDEQ")


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


def transfer(networks: dict[str, nn.Module], x: Tensor, y: Tensor, eps: float) -> dict:
    """Return each model's accuracy (inner) on what was found against each model (outer)."""
    clean = {label: right(network, x, y) for label, network in networks.items()}
    table = {}
    for source, victim in networks.items():
        images = pgd(victim, x, y, eps, 0)
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
    """Return clean accuracy, then that under an attack, at all its radii."""
    if name == "strong":
        return row["strong"]
    results = row["protocol"]["results"]
    found = {r["eps"]: r["accuracy"] for r in results if r["attack"] == name}
    return [row["protocol"]["clean"]["accuracy"], *(found[e] for e in RADII)]


def draw(
    networks: dict[str, nn.Module], rows: list[dict], x: Tensor, y: Tensor, args: argparse.Namespace
) -> None:
    """Draw accuracy against the radius, and the features of clean and attacked images."""
    chance = 1 / networks["DEQ"].num_outputs
    drawn = (("ifgsm", "I-FGSM", RADII), ("pgd", "PGD", RADII), ("strong", "strong PGD", STRONG))
    for name, words, eps in drawn:
        curves = [AccuracyCurve(r["label"], words, (0, *eps), accuracies(r, name)) for r in rows]
        figure = accuracy_curves(curves, chance=chance)
        figure.axes[0].legend(loc="lower left", frameon=False, fontsize="small")
        save_figure(figure, path(args, f"-{name}.png"), dpi=110)
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


def head(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """Return what was done, how it is to be read, and what training came to."""
    clean = rows[0]["protocol"]["clean"]["images"]
    return [
        f"# LyaDEQ up to 20/255 on {args.data}\n",
        f"Made with `python examples/lyadeq_sweep.py {args.command}`; torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s).",
        "",
        f"{args.epochs} epochs, backbone `{args.backbone}`, seed {args.seed}; the reading `flow` "
        "with the Jacobian of its cell regularized at the equilibrium (weight "
        f"{REGULARIZED['weight']:g}), against solves that do not converge, so that its row differs "
        "from the others in more than the reading. Accuracies are in % "
        f"on the first {clean} test images, which count as robust only if they are classified "
        "rightly before and after the attack; one standard error is up to "
        f"{50 / clean**0.5:.1f}. One seed: smaller differences mean nothing. Radii are l-infinity "
        "in 1/255. Everything here is an upper bound of the true robust accuracy and no "
        "certificate. No model was trained against attacks, and none is guaranteed to withstand "
        "one: what is proven of the reading `flow` concerns the state, not the input.",
        "",
        "Converged: samples whose solve did, in the last epoch of training, on all test images, "
        "and at worst under the paper's attacks. Where it did not, the state is no equilibrium, "
        "and its implicit gradient is inexact.",
        "",
        "| model | accuracy on all test images | converged: training | test | attacked | "
        "train CPU s | attack CPU s |",
        "|---" * 7 + "|",
        *(
            f"| {r['label']}{'' if r['complete'] else ' (cut short)'} | "
            f"{100 * r['test']['accuracy']:.2f} | "
            f"{r['last_epoch']['train_converged']:.1%} | {r['test']['converged']:.1%} | "
            f"{min(f['converged_share'] for f in r['protocol']['results']):.1%} | "
            f"{r['train_cpu_seconds']:.0f} | {r['attack_cpu_seconds']:.0f} |"
            for r in rows
        ),
        "",
    ]


def attacked(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """Return the tables and figures of the protocol and of the strong attack."""
    steps = {r["eps"]: r["steps"] for r in rows[0]["protocol"]["results"]}
    columns = ["model", "none", *(f"{255 * e:.0f} ({steps[e]})" for e in RADII)]
    lines = ["## The paper's protocol", "", "Radius (steps, by the paper's rule), step 1/255.", ""]
    for name, words in (
        ("ifgsm", "I-FGSM, from the image itself:"),
        ("pgd", "PGD, from one random start; with so few steps it may not cross the ball:"),
    ):
        lines += [words, "", *table(columns, [(r["label"], accuracies(r, name)) for r in rows])]
        lines += [f"![{words}]({path(args, f'-{name}.png').name})", ""]
    robust = [(row["label"], row["strong"]) for row in rows]
    return [
        *lines,
        "## Strong attack\n",
        f"PGD with {STEPS} steps of an eighth of the radius and {len(STARTS)} random starts, the "
        "last with gradients through the solver's iterations; lost at one radius is lost at all "
        "larger ones:",
        "",
        *table(["model", "none", *(f"{255 * e:.0f}" for e in STRONG)], robust),
        f"![Strong PGD]({path(args, '-strong.png').name})",
        "",
    ]


def masking(rows: list[dict], moved: dict[float, dict]) -> list[str]:
    """Return the tables that would show masked gradients."""
    labels = [row["label"] for row in rows]
    large = [(r["label"], [found["accuracy"] for found in r["large"]["results"]]) for r in rows]
    lines = [
        "## Gradient masking?",
        "",
        "I-FGSM, 20 steps of a tenth of the radius, up to 255/255, within which every image is "
        "reached. What is lost at one radius is lost within all larger ones: a row that rises "
        "again shows where the attack fails, and no robustness.",
        "",
        *table(["model", *(f"{255 * e:g}" for e in LARGE)], large),
        *warnings(rows),
        "",
        "Accuracy on images made for another model (strong PGD, one start; the row made them, the "
        "column classifies them). An entry clearly below the diagonal's in its column would mean "
        "that another model's gradients harm it more than its own: masked gradients.",
        "",
    ]
    for eps, by_source in moved.items():
        columns = [f"made for, at {255 * eps:.0f}", *labels]
        lines += table(columns, [(s, [found[k] for k in labels]) for s, found in by_source.items()])
    return lines


def markdown(rows: list[dict], moved: dict[float, dict], args: argparse.Namespace) -> str:
    """Return the report."""
    return "\n".join([
        *head(rows, args),
        *attacked(rows, args),
        *masking(rows, moved),
        "## Features",
        "",
        "t-SNE of what the orthogonal layer reads and returns, for clean images and under strong "
        "PGD with one start. It distorts distances: an illustration, and no evidence of "
        "robustness.",
        "",
        f"![Features before and after the orthogonal layer]({path(args, '-features.png').name})",
        "",
    ])  # fmt: skip


def warnings(rows: list[dict]) -> list[str]:
    """Return what the audits warn of, or that they are silent."""
    reports = [(r["label"], r[kind]) for r in rows for kind in ("protocol", "large")]
    found = [f"- {label}: {w}" for label, report in reports for w in report["warnings"]]
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
        objective = REGULARIZED if model is FLOW else "cross_entropy"
        networks[label], row = train(label, model, data, args, objective)
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
