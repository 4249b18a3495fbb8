"""Tables and plot of the benchmark of depth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from stabnet.plots import save_figure

STORED = "stored"
OURS = "reversible"
AGREEMENT = {"float32": 1e-3, "float64": 1e-10}
TIME = (1.8, 1.5)
GROWTH = 1.1


def title(case: dict[str, Any]) -> str:
    """Return what a case is called."""
    parts = [" × ".join(map(str, case["state_shape"])), case["scheme"], case["potential"]]
    return ", ".join(filter(None, parts))


def growth(case: dict[str, Any], name: str) -> float:
    """Return how many times more bytes the deepest chain saves than the shallowest."""
    rows = case["rows"]
    return float(rows[-1]["saved"][name] / rows[0]["saved"][name])


def beyond(row: dict[str, Any], name: str) -> float:
    """Return the peak less the gradients of the parameters, which every way ends with."""
    return float(row["peak"][name] - row["parameters"])


def peak_growth(case: dict[str, Any], name: str) -> float:
    """Return how many times larger :func:`beyond` is at the deepest chain that was timed."""
    rows = [row for row in case["rows"] if "peak" in row]
    return beyond(rows[-1], name) / beyond(rows[0], name)


def slowdown(row: dict[str, Any], name: str, of: Callable[[list[float]], float]) -> float:
    """Return how many times longer a way takes than stored activations, by medians or minima."""
    return float(of(row["seconds"][name]) / of(row["seconds"][STORED]))


def _timed(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Go through all cases and depths with times."""
    for case in record["cases"]:
        for row in case["rows"]:
            if "seconds" in row:
                yield case, row


def verdicts(record: dict[str, Any]) -> list[tuple[str, float, str, float]]:
    """Return each target: what, measured, relation, wanted."""
    cases = record["cases"]
    depths = [row["depth"] for row in cases[0]["rows"]]
    found = []
    span = f"from depth {depths[0]} to {depths[-1]}"
    most = max(growth(case, OURS) for case in cases)
    found.append((f"saved bytes {span}, {OURS}, most", most, "≤", GROWTH))
    least = min(growth(case, STORED) for case in cases)
    ratio = depths[-1] / depths[0]
    found.append((f"saved bytes {span}, {STORED}, least", least, "≥", 0.95 * ratio))
    most = max(peak_growth(case, OURS) for case in cases)
    what = f"peak less gradients of parameters, {OURS}, growth over timed depths, most"
    found.append((what, most, "≤", GROWTH))
    for name in (OURS, f"{OURS}, √depth"):
        for of, what in ((statistics.median, "medians"), (min, "minima")):
            slow = {
                f"{title(case)}, depth {row['depth']}": slowdown(row, name, of)
                for case, row in _timed(record)
            }
            where = max(slow, key=lambda place: slow[place])
            what = f"time over stored, {what}, {name}, most ({where})"
            found += [(what, slow[where], "≤", wanted) for wanted in TIME]
    for dtype, wanted in AGREEMENT.items():
        worst = max(max(case["differences"][dtype].values()) for case in cases)
        found.append((f"gradients, {dtype}, largest relative difference", worst, "≤", wanted))
    return found


def markdown(record: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# A training step against depth", "", record["setting"], ""]
    lines += ["| target | measured | wanted | met |", "|---|---|---|---|"]
    for what, value, relation, wanted in record["targets"]:
        met = value <= wanted if relation == "≤" else value >= wanted
        verdict = "yes" if met else "**no**"
        lines.append(f"| {what} | {value:.4g} | {relation} {wanted:g} | {verdict} |")
    for case in record["cases"]:
        lines += ["", f"## State {title(case)}, batch {case['batch']}", "", *_table(case)]
    return "\n".join([*lines, "", *_notes(record), ""])


def _table(case: dict[str, Any]) -> list[str]:
    """Return a line for every depth and way."""
    columns = ["depth", "way", "saved MB", "peak MB", "less gradients MB", "median ms"]
    columns += ["× stored", "× stored, minima"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in case["rows"]:
        for name, saved in row["saved"].items():
            cells = [str(row["depth"]), name, f"{saved / 1e6:.3g}"]
            if "seconds" in row:
                cells += [f"{row['peak'][name] / 1e6:.3g}", f"{beyond(row, name) / 1e6:.3g}"]
                cells.append(f"{1e3 * statistics.median(row['seconds'][name]):.4g}")
                cells += [
                    f"{slowdown(row, name, statistics.median):.2f}",
                    f"{slowdown(row, name, min):.2f}",
                ]
            else:
                cells += [""] * 5
            lines.append("| " + " | ".join(cells) + " |")
    what = f"gradients at depth {case['compared']} differ from stored by"
    lines += ["", f"| {what} | float32 | float64 |", "|---|---|---|"]
    for name in case["differences"]["float32"]:
        both = " | ".join(f"{case['differences'][dtype][name]:.2g}" for dtype in AGREEMENT)
        lines.append(f"| {name} | {both} |")
    return lines


def _notes(record: dict[str, Any]) -> list[str]:
    return [
        "- *saved*: storages that autograd holds after the forward pass, each once, parameters left"
        " out; *peak*: storages made by the step that live at one time, recomputations and the"
        " gradients of the parameters included; *less gradients*: without the latter, which live at"
        " the end of every step. Where they outweigh activations this is less than what was saved,"
        " for activations are let go as gradients come. MB: 10⁶ bytes.",
        "- *reversible*: states recomputed by inverting; *√depth*: one state kept, or one"
        " checkpoint, every √depth blocks; *each*: a checkpoint around every block. Of *checkpoint,"
        " √depth* the activations of the last segment are saved too, for torch does not run it"
        " again. Both are not reentrant, as torch advises; reentrant ones take less time where"
        " states are small, but have no gradients for `torch.autograd.grad`.",
        "- Reversible chains take the gradients of a block from formulas in closed form, the other"
        " ways from autograd. Where there are no such formulas (potentials of the registry, such as"
        " icnn, parametrized weights, autocast) reversible chains use autograd, too.",
        "- Times are of all ways in turn, "
        + ", ".join(f"{count} each at depth {depths}" for count, depths in _counts(record).items())
        + ". Other processes slow what uses caches and memory most, and so shift ratios; those of"
        " minima suffer least.",
        "- Gradients are compared in a batch of at most 4: of the state and of each parameter,"
        " ‖difference‖ over ‖gradient‖, the largest. Weights are random, as before training.",
    ]


def _counts(record: dict[str, Any]) -> dict[int, str]:
    """Return at which depths there are how many times."""
    found: dict[int, list[int]] = {}
    for _, row in _timed(record):
        depths = found.setdefault(len(row["seconds"][STORED]), [])
        if row["depth"] not in depths:
            depths.append(row["depth"])
    return {count: ", ".join(map(str, sorted(depths))) for count, depths in found.items()}


def plot(record: dict[str, Any], path: Path) -> None:
    """Plot saved bytes of all shapes; peak and time of the first case; times of all over stored."""
    first, *_ = record["cases"]
    same = ("scheme", "potential")
    cases = [case for case in record["cases"] if all(case[n] == first[n] for n in same)]
    figure = Figure(figsize=(4 * max(len(cases), 3), 7.5), layout="constrained")
    axes = figure.subplots(2, max(len(cases), 3), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=False):
        _curves(axis, case, "saved", "saved, MB", lambda size: float(size) / 1e6)
    peak, time, ratios, *_ = axes[1]
    _curves(peak, first, "peak", "peak, MB", lambda size: float(size) / 1e6)
    rows = [row for row in first["rows"] if "peak" in row]
    style: dict[str, Any] = {"color": "gray", "linestyle": ":", "label": "parameters' gradients"}
    peak.plot([row["depth"] for row in rows], [row["parameters"] / 1e6 for row in rows], **style)
    peak.legend(peak.lines[-1:], [style["label"]], fontsize=7, frameon=False)
    _curves(time, first, "seconds", "time, s", statistics.median)
    _ratios(ratios, record["cases"])
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_visible(axis.has_data())
    axes[0, 0].legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def _curves(
    axis: Axes, case: dict[str, Any], unit: str, label: str, of: Callable[[Any], float]
) -> None:
    """Plot one measured number of all ways against depth."""
    rows = [row for row in case["rows"] if unit in row]
    depths = [row["depth"] for row in rows]
    for name in rows[0][unit]:
        axis.plot(depths, [of(row[unit][name]) for row in rows], marker="o", ms=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="depth, blocks", ylabel=label)
    axis.set_title(f"{title(case)}, batch {case['batch']}", fontsize=9)
    axis.set_xticks(depths, [str(depth) for depth in depths])
    axis.xaxis.set_minor_locator(NullLocator())


def _ratios(axis: Axes, cases: list[dict[str, Any]]) -> None:
    """Plot times over those of stored activations, of all cases where they are shallowest."""
    rows = [next(row for row in case["rows"] if "seconds" in row) for case in cases]
    for index, name in enumerate(rows[0]["seconds"]):
        style: dict[str, Any] = {"color": f"C{index}", "marker": "o", "ms": 4, "linestyle": ""}
        axis.plot([slowdown(row, name, statistics.median) for row in rows], **style)
        axis.plot([slowdown(row, name, min) for row in rows], **style, mfc="none")
    for wanted in TIME:
        axis.axhline(wanted, color="gray", linestyle=":")
    names = [title(case).replace(", ", "\n").replace("_", "\n") for case in cases]
    axis.set_xticks(range(len(cases)), names, fontsize=6)
    axis.set_ylabel("time over stored")
    axis.set_title(f"depth {rows[0]['depth']}; medians, and minima (hollow)", fontsize=9)
