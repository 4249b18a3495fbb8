"""The figure and the tables of `deep_hamiltonian.py`, from the numbers that it found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import stabnet

WANTED = {"accuracy": 0.97, "CPU minutes": 20.0, "factor": 100.0}  # of 1,000 layers on MNIST
RATIOS = {"ratio": ("of states", "-"), "ratio of weights": ("of weights", ":")}
COLORS = {"Hamiltonian": "C0", "Hamiltonian, stored": "C2", "ResNet": "C1"}


def draw(record: dict, path: Path) -> None:
    """Save what both nets did during training, and what they keep in memory."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    accuracy, ratio, layers, memory = figure.subplots(2, 2).flat
    for row in record["rows"]:
        color, steps = COLORS[row["net"]], [m["step"] for m in row["monitored"]]
        values = [m["accuracy"] for m in row["monitored"]]
        accuracy.plot(steps, values, color=color, label=row["net"])
        for name, (what, line) in RATIOS.items():
            values = [m[name] for m in row["monitored"]]
            ratio.plot(steps, values, line, color=color, label=f"{row['net']}, {what}")
        _draw_layers(layers, row, record["options"]["depth"], color)
    for bound in (1 / WANTED["factor"], WANTED["factor"]):
        ratio.axhline(bound, color="0.6", linewidth=1)
    for name, rows in _by_net(record).items():
        depths, values = [r["depth"] for r in rows], [r["saved"] / 1e6 for r in rows]
        memory.plot(depths, values, ".-", color=COLORS[name], label=name)
    accuracy.set(xlabel="step", ylabel="accuracy, validation images")
    ratio.set(xlabel="step", ylabel="gradient at the first layer / last", yscale="log")
    ratio.set_ylim(0.5 / WANTED["factor"], 30 * WANTED["factor"])  # leaves room for the legend
    layers.set(xlabel="layer", ylabel="norm of the gradient in the state", yscale="log")
    memory.set(xlabel="layers", ylabel="MB kept for the backward pass", xscale="log", yscale="log")
    for panel in (accuracy, ratio, layers, memory):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8, ncols=2 if panel is ratio else 1)
    stabnet.plots.save_figure(figure, path, dpi=90)


def _draw_layers(panel: Axes, row: dict, depth: int, color: str) -> None:
    """Draw gradients along the layers, before and after training."""
    for moment, line in ((0, ":"), (-1, "-")):
        values = row["monitored"][moment]["gradients"]
        every = max(depth // 10, 1)
        label = f"{row['net']}, {'after' if moment else 'before'} training"
        panel.plot([every * i for i in range(len(values))], values, line, color=color, label=label)


def _by_net(record: dict) -> dict[str, list[dict]]:
    """Return rows of memory by the name of the net."""
    found: dict[str, list[dict]] = {}
    for row in (r for net in record["rows"] for r in net["memory"]):
        found.setdefault(row["net"], []).append(row)
    return found


def worst(row: dict, name: str = "ratio") -> float:
    """Return the largest factor between the first and the last layer, either way, of all looks."""
    return max(max(m[name], 1 / m[name]) if m[name] > 0 else float("inf") for m in row["monitored"])


def markdown(record: dict) -> str:
    """Return the tables, and how to read them."""
    options, (ours, other) = record["options"], record["rows"]
    size, pool, depth = record["state"], record["pool"], options["depth"]
    return "\n".join([
        f"# {depth:,} Hamiltonian layers",
        "",
        f"Made with `{record['command']}`; torch {record['torch']}, {record['threads']} thread(s).",
        "",
        f"Data: {options['data']}, {record['training images']:,} images to train on"
        + (f", averaged over squares of {pool} x {pool} pixels" if pool > 1 else "")
        + f". States have {size} numbers. Both nets: {options['epochs']} epochs, {ours['steps']:,} "
        f"steps of Adam on batches of {options['batch_size']}, a cosine from "
        f"{options['learning_rate']:g}; layers of length h = {options['step_size']:g}. The best of "
        "the epochs on the validation images is tested.",
        "",
        *_table(["", *(row["net"] for row in record["rows"])], _trained(record["rows"])),
        "",
        "*First over last* is the norm of the gradient in the state before the first layer, over "
        "that behind the last, or of the gradients of the first and the last layer's weights; of "
        f"{len(ours['monitored'])} looks along training, at the same validation images.",
        "",
        "![accuracy, gradients and memory](deep-hamiltonian.png)",
        "",
        "Kept for the backward pass of one batch, parameters left out:",
        "",
        *_memory(record),
        "",
        *_reading(ours, other, record),
        "",
    ])  # fmt: skip


def _trained(rows: list[dict]) -> list[list[str]]:
    """Return the cells of the first table, a line for each measure."""

    def line(name: str, cell: Any) -> list[str]:
        return [name, *(cell(row) for row in rows)]

    def extent(name: str) -> Any:
        def cell(row: dict) -> str:
            values = [m[name] for m in row["monitored"]]
            return f"{min(values):.3g} to {max(values):.3g}"

        return cell

    def error(row: dict) -> str:
        values = [m["reconstruction"] for m in row["monitored"]]
        return "" if None in values else f"{max(values):.1e}"

    return [
        line("parameters", lambda r: f"{r['parameters']:,}"),
        line("test accuracy", lambda r: f"{r['test accuracy']:.2%}"),
        line("validation accuracy", lambda r: f"{r['validation accuracy']:.2%}"),
        line("CPU minutes, all of `fit`", lambda r: f"{r['CPU seconds'] / 60:.1f}"),
        line("… of which looks", lambda r: f"{r['CPU seconds of monitoring'] / 60:.1f}"),
        line("first over last, of states", extent("ratio")),
        line("first over last, of weights", extent("ratio of weights")),
        line("largest error of a recomputed first state", error),
    ]


def _table(names: list[str], lines: Iterable[list[str]]) -> list[str]:
    """Return lines of Markdown."""
    return ["| " + " | ".join(c) + " |" for c in (names, ["---"] * len(names), *lines)]


def _memory(record: dict) -> list[str]:
    """Return the table of memory."""
    found = _by_net(record)
    depths = [r["depth"] for r in next(iter(found.values()))]
    lines = [[name, *(f"{r['saved'] / 1e6:,.3g} MB" for r in rows)] for name, rows in found.items()]
    for name, rows in found.items():
        if rows[0]["peak"] is not None:
            cells = (f"{r['peak'] / 1e6:,.3g} MB" for r in rows)
            lines.append([f"{name}: peak of the GPU", *cells])
    return _table(["layers", *(f"{d:,}" for d in depths)], lines)


def _reading(ours: dict, other: dict, record: dict) -> list[str]:
    """Return what the numbers say."""
    found, options = _by_net(record), record["options"]
    growth = {name: rows[-1]["saved"] / rows[0]["saved"] for name, rows in found.items()}
    last = {name: rows[-1]["saved"] for name, rows in found.items()}
    first, *_, deepest = (r["depth"] for r in found["ResNet"])
    difference = 100 * (ours["test accuracy"] - other["test accuracy"])
    factors = [
        f"{worst(r):.3g} in the state and {worst(r, 'ratio of weights'):.3g} in the weights"
        for r in (ours, other)
    ]
    factor = WANTED["factor"]
    bounded = max(worst(other), worst(other, "ratio of weights")) <= factor
    lines = [
        f"How to read it. From {first:,} to {deepest:,} layers, what is kept grows by a factor of "
        + ", ".join(f"{growth[n]:,.2f} ({n})" for n in found)
        + f". The ResNet keeps {last['ResNet'] / last['Hamiltonian']:,.0f} times as much as the "
        "Hamiltonian net that recomputes its states. (Parameters and the optimizer's moments grow "
        "with the depth of every net, of course.)",
        "",
        "Gradients at the first and the last layer differed by a factor of at most "
        f"{factors[0]} of the Hamiltonian net, {factors[1]} of the ResNet. Of the former it is "
        "known beforehand that no product of its Jacobians has a norm below 1. That bounds "
        "gradients neither from above nor in every direction: what was measured is what counts. "
        "Of the ResNet nothing is known beforehand; with steps as short as these, its gradients "
        f"{'stayed' if bounded else 'did not stay'} within a factor of {factor:.0f}.",
        "",
        _long_steps(record),
        "",
        f"The Hamiltonian net has {abs(difference):.2f} percentage points "
        f"{'more' if difference > 0 else 'less'} test accuracy than the ResNet, of one training "
        "each: how much that varies was not measured. The ResNet took "
        f"{other['CPU seconds'] / ours['CPU seconds']:.2f} times the CPU time: one of its layers "
        "takes two products with a matrix, one of the Hamiltonian net four with as large ones, "
        "which are repeated on the way back.",
    ]
    if options["data"] == "mnist" and options["depth"] >= 1000:
        lines += ["", _verdict(ours)]
    return lines


def _long_steps(record: dict) -> str:
    """Return what longer steps do to untrained nets."""
    length = record["longer"] * record["options"]["step_size"]
    ratios = [
        f"from {row['monitored'][0]['ratio']:.3g} to {longer['ratio']:.4g} in the {row['net']}"
        for row, longer in zip(record["rows"], record["long steps"], strict=True)
    ]
    return (
        f"What longer steps would do: before training, with h = {length:g} instead, the "
        f"gradient at the first layer over that at the last goes {' net, '.join(ratios)}; and the "
        "first states of the Hamiltonian net are recomputed with a relative error of "
        f"{record['long steps'][0]['reconstruction']:.1g} instead of "
        f"{record['rows'][0]['monitored'][0]['reconstruction']:.1g}."
    )


def _verdict(ours: dict) -> str:
    """Return whether the Hamiltonian net did what is asked of 1,000 layers on MNIST."""
    factor = max(worst(ours), worst(ours, "ratio of weights"))
    checks = {
        f"test accuracy of {WANTED['accuracy']:.0%} or more": ours["test accuracy"]
        >= WANTED["accuracy"],
        f"within {WANTED['CPU minutes']:.0f} CPU minutes": ours["CPU seconds"] / 60
        <= WANTED["CPU minutes"],
        f"gradients within a factor of {WANTED['factor']:.0f}": factor <= WANTED["factor"],
    }
    words = "; ".join(f"{name}: {'yes' if held else '**no**'}" for name, held in checks.items())
    return f"Asked of the Hamiltonian net: {words}."
