"""Tables and plot of the benchmark of Lyapunov training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from stabnet.plots import save_figure

AGREEMENT = 1e-6


def verdicts(record: dict[str, Any]) -> list[tuple[str, float, str, float]]:
    """Return each target: what, measured, relation, wanted."""
    found = []
    for form, error in record["disagreement"].items():
        found.append((f"{form}: relative difference of loss and gradients", error, "≤", AGREEMENT))
    for row in record["results"]:
        if row["batch"] == 64 and row["samples"] == 512 and row["classes"] == 10:
            for unit, wanted in (("seconds", 30), ("bytes", 20)):
                ratio = row[unit]["expanded"] / row[unit]["step"]
                found.append((f"{row['form']}: expanded over step, {unit}", ratio, "≥", wanted))
    for name, ratio in record["rk4"].items():
        found.append((f"rk4 over a loop by hand, {name}", ratio, "≤", 1.1))
    return found


def markdown(record: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# A step of Monte Carlo Lyapunov training", "", record["setting"]["text"], ""]
    lines += ["| target | measured | wanted | met |", "|---|---|---|---|"]
    for what, value, relation, wanted in record["targets"]:
        met = value <= wanted if relation == "≤" else value >= wanted
        verdict = "yes" if met else "**no**"
        lines.append(f"| {what} | {value:.3g} | {relation} {wanted:g} | {verdict} |")
    columns = ["form", "batch", "samples", "classes", "width", "step ms", "/ product", "MB"]
    columns += ["expanded ms", "expanded MB", "× faster", "× leaner"]
    lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in record["results"]:
        t, m = row["seconds"], row["bytes"]
        cells = [str(row[name]) for name in columns[:5]]
        cells += [f"{1e3 * t['step']:.3g}", f"{t['step'] / t['product']:.2f}"]
        cells += [f"{m['step'] / 1e6:.3g}"]
        if "expanded" in t:
            cells += [f"{1e3 * t['expanded']:.4g}", f"{m['expanded'] / 1e6:.4g}"]
            cells += [f"{t['expanded'] / t['step']:.1f}", f"{m['expanded'] / m['step']:.1f}"]
        else:
            cells += ["", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "A training step of `lyanet` on 28 × 28 images, its encoder a small `convnet`:",
        "",
    ]
    lines += ["| step | ms |", "|---|---|"]
    lines += [f"| {name} | {1e3 * t:.3g} |" for name, t in record["training"].items()]
    return "\n".join([*lines, "", *NOTES, ""])


NOTES = (
    "- *step*: loss of given features and labels on states that the batch shares, and its gradients"
    " in the features and all parameters of the field; *product*: `W(x) A` alone, forward and"
    " backward; *expanded*: the same step with `W(x)` repeated for every sample, all corners formed"
    " and `V` differentiated by autograd, where it fits into memory. *MB*: 10⁶ bytes at the peak.",
    "- The difference is in double precision at full size, the expanded step a few inputs at a"
    " time.",
    "- *back-propagated*: cross entropy through rk4 with ten steps, 40 evaluations of the field.",
)


def plot(record: dict[str, Any], path: Path) -> None:
    """Plot time and peak memory against the number of samples, of inputs and of classes."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    for row, (unit, scale) in zip(axes, {"seconds": 1e3, "bytes": 1e-6}.items(), strict=True):
        for axis, (by, places) in zip(row, record["by"].items(), strict=True):
            results = [record["results"][i] for i in places]
            for form, marker in (("simplex", "o"), ("direction", "x")):
                for i, name in enumerate(("step", "product", "expanded")):
                    mine = [r for r in results if r["form"] == form and name in r[unit]]
                    points = [(r[by], scale * r[unit][name]) for r in mine]
                    style = {"color": f"C{i}", "marker": marker, "label": f"{name}, {form}"}
                    axis.plot(*zip(*points, strict=True), **style)
            axis.set(xscale="log", yscale="log")
            counts = sorted({r[by] for r in results})
            axis.set_xticks(counts, [str(n) for n in counts])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
    for axis, by in zip(axes[1], record["by"], strict=True):
        axis.set_xlabel(by)
    axes[0, 0].set_ylabel("time, ms")
    axes[1, 0].set_ylabel("peak memory, MB")
    axes[0, 0].legend(fontsize=7, frameon=False)
    save_figure(figure, path)
