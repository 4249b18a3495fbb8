"""Tables of the benchmark of the projection."""

from __future__ import annotations

from typing import Any

FASTER = 2.0
AGREEMENT = 1e-10
VIOLATION = {"float64": 1e-10, "float32": 1e-6}
CENTER = 1e-12


def speedup(row: dict[str, Any], other: str, passes: str) -> float:
    """Return how many times longer another form takes than the closed one."""
    seconds = row["seconds"]
    return float(seconds[f"{other}, {passes}"] / seconds[f"closed, {passes}"])


def verdicts(record: dict[str, Any]) -> list[tuple[str, float, str, float]]:
    """Return each target: what, measured, relation, wanted."""
    rows = record["results"]
    found = [
        ("largest relative difference of the forms", _most(rows, "disagreement"), "≤", AGREEMENT),
        (
            "differentiated over closed, forward, least",
            min(speedup(row, "differentiated", "forward") for row in rows),
            "≥",
            FASTER,
        ),
    ]
    for dtype, violation in record["violation"].items():
        what = f"largest violation of ∇VᵀF̂ + αV ≤ 0, relative, {dtype}"
        found.append((what, violation, "≤", VIOLATION[dtype]))
    for part in ("value", "field"):
        found.append((f"{part} at the center after training", record["center"][part], "≤", CENTER))
    for scheme in ("scaled", "shortened"):
        most = max(row[scheme] for row in record["rises"])
        found.append((f"share of {scheme} steps that raise V, most", most, "≤", 0.0))
    least = max(row["euler"] for row in record["rises"])
    found.append(("share of plain Euler steps that raise V, most", least, "≥", 1e-5))
    return found


def _most(rows: list[dict[str, Any]], name: str) -> float:
    return float(max(row[name] for row in rows))


def markdown(record: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# The projection: closed form, and promises", "", record["setting"], ""]
    lines += ["| target | measured | wanted | met |", "|---|---|---|---|"]
    for what, value, relation, wanted in record["targets"]:
        met = value <= wanted if relation == "≤" else value >= wanted
        verdict = "yes" if met else "**no**"
        lines.append(f"| {what} | {value:.3g} | {relation} {wanted:g} | {verdict} |")
    lines += ["", "## Value and gradient of `icnn`", "", *_times(record["results"])]
    lines += ["", "## Steps that raise the potential", "", *_rises(record["rises"])]
    return "\n".join([*lines, "", *_notes(record), ""])


def _times(rows: list[dict[str, Any]]) -> list[str]:
    columns = ["state", "hidden", "tangent", "batch", "forward ms", "× faster", "× tuned"]
    columns += ["with backward ms", "× faster", "× tuned"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        hidden = " × ".join(map(str, row["hidden"]))
        cells = [str(row["state"]), hidden, "yes" if row["tangent"] else "no", str(row["batch"])]
        for passes in ("forward", "both"):
            cells.append(f"{1e3 * row['seconds'][f'closed, {passes}']:.3g}")
            cells += [f"{speedup(row, o, passes):.2f}" for o in ("differentiated", "tuned")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _rises(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| potential | α | h | plain Euler | scaled | shortened |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{100 * row[s]:.3g} %" for s in ("euler", "scaled", "shortened"))
        lines.append(f"| {row['potential']} | {row['alpha']:g} | {row['step_size']:g} | {shares} |")
    return lines


def _notes(record: dict[str, Any]) -> list[str]:
    return [
        "- *× faster*: the time of the formula as it stands, differentiated by"
        " `torch.autograd.grad(create_graph=True)` inside forward, over that of the closed form;"
        " *× tuned*: the same with the smooth ReLU of this package. Both forms take the same matrix"
        " products, so the ratio falls where these dominate; the closed form also spends work on"
        " its precision near the center. With backward: the gradient of a loss of both in all"
        " parameters. float32.",
        f"- Violations: the largest of (∇VᵀF̂ + αV)/(‖∇V‖‖F̂‖ + αV) over {record['states']} states"
        " at distances from 1e-12 to 1e6, `icnn` of depth 1 to 4, α ∈ {0, 0.1, 1, 10}.",
        f"- Center: after {record['training steps']} steps of Adam on all weights; the base field"
        f" is {record['center']['base field']:.2g} there.",
        f"- Steps: {record['states']} states each, float64; a rise is one beyond 16 units of"
        " rounding. `icnn` is convex; `wavy`, ‖z‖² + 2 sin²(3z₁), rises and falls along rays.",
    ]
