"""The report of `certified_images.py`: certificates, attacks, and whether they fit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

__all__ = ["NAMES", "accuracies", "markdown", "violations"]

NAMES = {"pgd_l2": "PGD", "apgd": "APGD"}
LOSS_NAMES = {
    "cross_entropy": "cross entropy",
    "margin": "margin",
    "dlr": "difference of logits ratio",
}


def accuracies(row: dict, name: str) -> list[float]:
    """Return the accuracy that an attack leaves at every radius."""
    return [r["accuracy"] for r in row["robustness"]["results"] if r["attack"] == name]


def violations(rows: list[dict], eps: Sequence[float]) -> list[str]:
    """Return where an attack contradicts a certificate: nowhere, if all is sound."""
    found = []
    for row in rows:
        for name, words in NAMES.items():
            count = row["inside"][name]["succeeded"]
            if count:
                found.append(
                    f"{row['label']}: {words} succeeds on {count} images inside of their "
                    "certified radii"
                )
            pairs = zip(eps, row["certified_of_attacked"], accuracies(row, name), strict=True)
            found += [
                f"{row['label']}: certified {c:.2%} at {e:g}, but {words} leaves {a:.2%}"
                for e, c, a in pairs
                if c > a
            ]
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def percent(values: Sequence[float]) -> list[str]:
    """Return shares in %."""
    return [f"{100 * v:.1f}" for v in values]


def head(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """Return what was done and how it is to be read."""
    name = "CIFAR-10 (JPEG)" if args.data == "cifar10_jpeg" else args.data
    attacked = rows[0]["robustness"]["clean"]["images"]
    losses = ", ".join(f"{NAMES[n]} on the {LOSS_NAMES[w]}" for n, w in args.losses.items())
    return [
        f"# Certified l2 radii on {name}",
        "",
        f"Made with `python examples/certified_images.py {args.command}`; torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s).",
        "",
        "Radii are in l2, images in [0, 1], accuracies in %. Certified: the share of images whose "
        "radius, in float64 from sound bounds of all norms, exceeds eps: a lower bound of the "
        "accuracy under any perturbation of that length. Attacked: "
        f"{losses}, {args.steps} steps, {args.restarts} random starts, at every eps, on "
        f"{attacked} test images, evenly spaced; each is an upper bound. `unconstrained` is "
        "the free twin, trained on the cross entropy; the others are non-expansive up to their "
        "last layer, and were trained for a certified radius with a margin. No model was trained "
        f"against attacks. Seed {args.seed}; one seed, one standard error of a share of the "
        f"attacked images is up to {50 / attacked**0.5:.1f}.",
        "",
    ]


def models(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """Return the tables of all models: on all test images, and on those that were attacked."""
    images = rows[0]["certificate"]["images"]
    lines = [f"## Certified, all {images} test images", ""]
    cells = []
    for row in rows:
        found = row["certificate"]
        bound = found["bound"]["features"]
        cells.append([
            row["label"] + ("" if row.get("complete", True) else " (cut short)"),
            f"{100 * found['clean_accuracy']:.2f}",
            *(f"{100 * c['accuracy']:.2f}" for c in found["certified"]),
            f"{bound:.9g}" if isinstance(bound, float) else bound,
            f"{row['train_cpu_seconds'] / 60:.1f}" if "train_cpu_seconds" in row else "–",
            f"{row['certify_cpu_seconds']:.0f}",
        ])  # fmt: skip
    radii = [f"{e:.4g}" for e in args.eps]
    bounds = ["Lipschitz bound, pixels to last layer", "training, CPU min", "certificate, CPU s"]
    lines += table(["model", "clean", *radii, *bounds], cells)
    lines += ["## Certified and attacked, the same images", ""]
    cells = []
    for row in rows:
        clean = row["robustness"]["clean"]["accuracy"]
        cells.append([row["label"], "certified", *percent([clean, *row["certified_of_attacked"]])])
        cells += [
            [row["label"], words, *percent([clean, *accuracies(row, name)])]
            for name, words in NAMES.items()
        ]
    return [*lines, *table(["model", "", "clean", *radii], cells)]


def markdown(rows: list[dict], args: argparse.Namespace, figure: str) -> str:
    """Return the report."""
    wrong = violations(rows, args.eps)
    within = [
        [row["label"], words, str(found["images"]), str(found["succeeded"])]
        for row in rows
        for name, words in NAMES.items()
        for found in [row["inside"][name]]
    ]
    verdict = "No attack contradicts a certificate."
    return "\n".join([
        *head(rows, args),
        *models(rows, args),
        f"![Accuracy against the radius]({figure})",
        "",
        "Attacks were run at the dots; the lines between them were not measured.",
        "",
        f"## Attacked inside of the certified radius, within {args.share} of it",
        "",
        *table(["model", "attack", "images with a radius", "**attacks that succeed**"], within),
        *([f"**CONTRADICTION.** {w}." for w in wrong] or [verdict]),
        *[f"\nWarning, {r['label']}: {w}." for r in rows for w in r["robustness"]["warnings"]],
        "",
    ])  # fmt: skip
