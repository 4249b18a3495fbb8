"""The report on the swiss roll, and the figure of Jacobians; see swiss_roll.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from stabnet.plots import save_figure

REACHED = {"HNN-12": 0.995, "ResNet-12": 0.995}
"""Test accuracies that these should have, for every seed."""
CPU_SECONDS = 120.0
"""Time that all trainings of one seed should take at most."""
ROUNDING = 1e-9


def draw_jacobians(seen: Mapping[str, Sequence[Mapping[str, Any]]], path: str) -> None:
    """Save largest and least singular values of every layer's Jacobian through training.

    Args:
        seen: by model, what its monitor recorded: ``step``, and ``largest`` and ``least`` with a
            number for each layer.
        path: the file.
    """
    figure = Figure(figsize=(3.1 * len(seen) + 0.8, 5.0), layout="constrained")
    panels = figure.subplots(2, len(seen), sharex=True, sharey="row", squeeze=False)
    depth = max(len(records[0]["largest"]) for records in seen.values())
    colors = ScalarMappable(Normalize(1, depth), colormaps["viridis"])
    names = {"largest": "operator norm", "least": "least singular value"}
    for row, (name, title) in zip(panels, names.items(), strict=True):
        for panel, (label, records) in zip(row, seen.items(), strict=True):
            steps = [record["step"] for record in records]
            for layer, values in enumerate(zip(*(r[name] for r in records), strict=True), 1):
                panel.plot(steps, values, color=colors.to_rgba(layer), linewidth=1)
            panel.axhline(1, color="0.4", linestyle=":", linewidth=1)
            panel.set(yscale="log", title=label if name == "largest" else "")
            panel.grid(alpha=0.3)
        row[0].set_ylabel(title)
    for panel in panels[-1]:
        panel.set_xlabel("step")
    figure.colorbar(colors, ax=panels, label="layer", shrink=0.6)
    save_figure(figure, path, dpi=90)


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *rows)]


def percent(share: float) -> str:
    """Return a share of points in percent, rounded down so that 100 means all."""
    return f"{math.floor(share * 1e4 + 0.01) / 100:.2f} %"


def grouped(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """Return the values of one column by model."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row[name])
    return found


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was to be reached, and whether it was, in sentences."""
    sentences = []
    for label, found in grouped(rows, "test accuracy").items():
        span = f"from {percent(min(found))} to {percent(max(found))}"
        wanted = REACHED.get(label)
        if wanted is None:
            sentences.append(f"{label}: test accuracy {span}.")
        else:
            word = "reaches" if min(found) >= wanted else "does not reach"
            sentences.append(
                f"{label} {word} {percent(wanted)} for each seed: test accuracy {span}."
            )
    norm = min(row["least norm"] for row in rows if row["model"].startswith("HNN"))
    word = "is never below" if norm >= 1 - ROUNDING else "is not always at least"
    sign = "+" if norm >= 1 else "-"
    sentences.append(
        f"The operator norm of a Jacobian of the HNN {word} 1 up to rounding (1e-9): of all layers "
        f"and seeds, at the points and times looked at, the least is 1 {sign} {abs(norm - 1):.1e}."
    )
    ratios = [
        f"{min(found):.2g} to {max(found):.2g} ({label})"
        for label, found in grouped(rows, "gradient at the start").items()
    ]
    sentences.append(
        "Before training, the gradient in the first state over that in the last is "
        f"{', '.join(ratios)}."
    )
    seconds: dict[int, float] = {}
    for row in rows:
        seconds[row["seed"]] = seconds.get(row["seed"], 0.0) + row["CPU seconds"]
    longest = max(seconds.values())
    word = "stay" if longest <= CPU_SECONDS else "do not stay"
    sentences.append(
        f"All four together {word} within {CPU_SECONDS:g} CPU seconds a seed, the search for the "
        f"learning rate apart: at most {longest:.0f}."
    )
    return [f"- {sentence}" for sentence in sentences]


def results(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of all trainings."""
    names = ["model", "seed", "parameters", "learning rate", "validation", "test", "CPU seconds"]
    names += ["least operator norm", "gradient, at the start", "at the end"]
    return table(
        names,
        [
            [
                row["model"],
                str(row["seed"]),
                str(row["parameters"]),
                f"{row['rate']:g}",
                percent(row["validation accuracy"]),
                percent(row["test accuracy"]),
                f"{row['CPU seconds']:.1f}",
                f"{row['least norm']:.3g}",
                f"{row['gradient at the start']:.2g}",
                f"{row['gradient at the end']:.2g}",
            ]
            for row in rows
        ],
    )


def tuned(tuning: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of learning rates."""
    rates = list(tuning[0]["validation accuracy"])
    return table(
        ["model", *rates, "chosen", "CPU seconds"],
        [
            [
                found["model"],
                *(percent(found["validation accuracy"][rate]) for rate in rates),
                f"{found['rate']:g}",
                f"{found['CPU seconds']:.1f}",
            ]
            for found in tuning
        ],
    )


def edges(tuning: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which models would perhaps do better at rates beyond the grid."""
    at = []
    for found in tuning:
        grid, chosen = sorted(found["validation accuracy"], key=float), f"{found['rate']:g}"
        if chosen in (grid[0], grid[-1]):
            at.append(f"{found['model']} ({chosen})")
    return [f"At the edge of the grid: {', '.join(at)}.", ""] if at else []


def markdown(record: Mapping[str, Any]) -> str:
    """Return the tables, and how to read them."""
    options, rows = record["options"], record["rows"]
    seeds = ", ".join(map(str, options["tuning_seeds"]))
    return "\n".join([
        "# The swiss roll",
        "",
        f"Made with `{record['command']}`; torch {record['torch']}, float32, "
        f"{torch.get_num_threads()} thread(s).",
        "",
        f"{options['points']:,} points for training and validation (a tenth), "
        f"{record['tested']:,} others to test on, all without noise, "
        f"{len(options['seeds'])} seeds (of data and models), "
        f"{record['steps']:,} steps of Adam with a cosine schedule and batches of "
        f"{record['batch']}. States have 4 entries, (x1, 0, x2, 0) at first; all activations are "
        "tanh.",
        "",
        *verdicts(rows),
        "",
        "## All trainings",
        "",
        *results(rows),
        "",
        f"The *least operator norm* is that of any layer's Jacobian at any of {record['watched']} "
        "test points, before, during and after training (exact Jacobians, in float64). *Gradient* "
        "is the norm of the gradient of the loss in the first state over that in the last, for the "
        "same points. *CPU seconds* are those of one training with its monitor and evaluations.",
        "",
        "![decision boundaries](swiss-roll-boundaries.png)",
        "",
        f"Decision boundaries and test points of seed {options['seeds'][0]}.",
        "",
        "![singular values of Jacobians](swiss-roll-jacobians.png)",
        "",
        "The largest and the least singular value of the Jacobian of every layer through training, "
        "the median over the same points, of that seed. For a symplectic layer they come in pairs "
        "(s, 1/s): no layer shrinks all directions, but each shrinks some.",
        "",
        "## Learning rates",
        "",
        f"Mean validation accuracy on other rolls, with other weights (seeds {seeds}). Of equal "
        "ones, the rate with the lower validation loss was chosen.",
        "",
        *tuned(record["tuning"]),
        "",
        *edges(record["tuning"]),
    ])  # fmt: skip
