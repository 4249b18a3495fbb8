"""Tables of the benchmark of non-expansive blocks."""

from __future__ import annotations

from typing import Any

Found = dict[str, Any]

WORKS = 0.8  # clean accuracy below which training is said to have failed


def markdown(record: Found) -> str:
    """Return the tables."""
    lines = ["# Non-expansive blocks at one training time, and what certificates cost", ""]
    lines += [record["setting"], ""]
    if record["models"]:
        lines += ["## Models", "", _training(record), "", *_models(record), ""]
        lines += [*_readings(record), *_notes(record), ""]
    if record["norms"]:
        lines += ["## Norms of operators", "", *_norms(record["norms"]), ""]
        lines += [*_norm_notes(record), ""]
    return "\n".join(lines)


def excess(bound: float) -> str:
    """Return a number near 1 by how far it is from it, any other as it is."""
    off = bound - 1
    return f"1 {'+' if off >= 0 else '−'} {abs(off):.1e}" if abs(off) < 0.01 else f"{bound:.3f}"


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _training(record: Found) -> str:
    objective, common = record["objective"], record["learning_rate"]
    others: dict[float, list[str]] = {}
    for row in record["models"]:
        if row["learning_rate"] != common:
            others.setdefault(row["learning_rate"], []).append(_label(row))
    rates = "".join(f"; from {rate:g} for {', '.join(who)}" for rate, who in others.items())
    return (
        f"Every model was trained on {record['data']} for {record['seconds']:g} s of CPU time with"
        f" `{objective['name']}` (margin {objective['margin']:g}, temperature"
        f" {objective['temperature']:g}) and Adam, {record['batch']} images a step, the learning"
        f" rate falling along a cosine from {common:g}{rates}. No augmentation; one"
        " seed."
    )


def _models(record: Found) -> list[str]:
    columns = ["states", "block", "layers", "parameters", "steps", "clean %"]
    columns += [f"certified % at {e:g}" for e in record["eps"]]
    columns += ["L as trained", "L", "step ms", "× twin", "bound CPU s", "radii CPU s"]
    rows = []
    for row in record["models"]:
        cells = [row["states"], f"`{row['block']}`", row["architecture"]]
        cells += [f"{row['parameters']:,}", str(row["steps"])]
        cells += [f"{100 * share:.2f}" for share in (row["clean"], *row["certified"])]
        cells += [excess(row["bound_as_trained"]), excess(row["bound"])]
        cells += [f"{1e3 * row['step_seconds']:.1f}", f"{_ratio(row):.2f}"]
        cells += [f"{row['bound_seconds']:.3f}", f"{row['radii_seconds']:.2f}"]
        rows.append(cells)
    return _table(columns, rows)


def _label(row: Found) -> str:
    return f"`{row['block']}` ({row['states']})"


def _ratio(row: Found) -> float:
    """Return how many times as long as its twin's a step takes."""
    return float(row["step_seconds"] / row["twin_seconds"])


def _readings(record: Found) -> list[str]:
    """Return what the numbers say, whatever they are."""
    lines = []
    for states in dict.fromkeys(row["states"] for row in record["models"]):
        rows = [row for row in record["models"] if row["states"] == states]
        best = [_named(rows, "clean", record["eps"], 0)]
        best += [_named(rows, "certified", record["eps"], i) for i in range(len(record["eps"]))]
        ratios = sorted((_ratio(row), row["block"]) for row in rows)
        lines.append(
            f"- Of {states}, the largest are {', '.join(best)}. A step takes {ratios[0][0]:.1f}"
            f" (`{ratios[0][1]}`) to {ratios[-1][0]:.1f} (`{ratios[-1][1]}`) times as long as the"
            " twin's."
        )
    failed = [_label(row) for row in record["models"] if row["clean"] < WORKS]
    lines.append(f"- Clean accuracy below {100 * WORKS:g} %: {', '.join(failed) or 'none'}.")
    rows = record["models"]
    share = max(row["bound_seconds"] for row in rows) / record["seconds"]
    lines.append(
        f"- The bound of a whole model took {100 * share:.2g} % of the training time at most; after"
        f" re-normalization it is {excess(max(row['bound'] for row in rows))} at most, as trained"
        f" {excess(max(row['bound_as_trained'] for row in rows))}."
    )
    return lines


def _named(rows: list[Found], what: str, eps: list[float], index: int) -> str:
    """Return the best model by one of the accuracies."""

    def accuracy(row: Found) -> float:
        return float(row[what] if what == "clean" else row[what][index])

    best = max(rows, key=accuracy)
    words = "clean" if what == "clean" else f"certified at {eps[index]:g}"
    return f"{100 * accuracy(best):.2f} % {words} (`{best['block']}`)"


def _notes(record: Found) -> list[str]:
    images = record["models"][0]["images"]
    return [
        "- *layers*: all models of one kind of state have the same states. `cayley` stands where"
        " the width changes before blocks that keep it, and where *the block* changes it itself,"
        " that is one more of them. Images are down-sampled before every change; the last layer"
        " is affine. *parameters* count all.",
        f"- *certified*: share of {images} test images whose certified l2 radius exceeds what the"
        " column says, in pixels of [0, 1]; the model is re-normalized before. *L*: certified bound"
        " of the Lipschitz constant from pixels to the last layer, after re-normalization and *as"
        " trained* before it. The two differ only for blocks that follow their norms by an"
        " estimate, and more for convolutions with zero padding, where the bound of a norm exceeds"
        " it by what the border takes away.",
        "- *step*: median CPU time of one training step, measured apart from training, in turn with"
        " that of the *twin*: the same states, free affine layers where the width changes, and free"
        " residual blocks with as many products of states with matrices, or 3×3 kernels. *bound*:"
        " CPU time of the bound, once for all images; *radii*: of the rest of certifying them, in"
        " both the model's precision and float64.",
        "- One run each. Sizes, slopes and learning rates were chosen by a few runs of about ten"
        " seconds, for some blocks more than for others, on the same test images: the order of"
        " blocks that are close may differ with another seed, width or time.",
    ]


def _norms(rows: list[Found]) -> list[str]:
    columns = ["state", "padding", "bound ms", "power iteration ms", "bound over power iteration"]
    columns += ["slack of the bound", "shortfall of power iteration", "norm by"]
    cells = []
    for row in rows:
        bound, power = row["seconds"]["bound"], row["seconds"]["power"]
        slack = f"{'≤ ' if row['found_by'] == 'Lanczos' else ''}{row['slack']:.1e}"
        cells.append(
            [
                " × ".join(map(str, row["state"])),
                row["padding"] or "–",
                f"{1e3 * bound:.3g}",
                f"{1e3 * power:.3g}",
                f"{bound / power:.2f}",
                slack,
                f"{row['shortfall']:.1e}",
                row["found_by"],
            ]
        )
    return _table(columns, cells)


def _norm_notes(record: Found) -> list[str]:
    rows = record["norms"]
    lines = [
        f"- *bound*: the certified upper bound of the norm of a float32 Gaussian matrix, or 3×3"
        f" convolution, of as many features as the state has, computed in float64. *power*:"
        f" {record['power_iterations']} steps of power iteration from a random state, as blocks"
        " estimate their norms in training, in float32. Median CPU times of both in turn.",
        "- *slack*: the bound over the norm, less 1; *shortfall*: 1 less the estimate over the"
        " norm. The norm is found in float64 by an SVD of the explicit matrix, or of that of every"
        f" frequency; where that is dear, by {record['lanczos_steps']} Lanczos steps, which"
        " approach it from below, so that the slack is no larger than said.",
    ]
    for kind in dict.fromkeys(row["padding"] for row in rows):
        some = [row for row in rows if row["padding"] == kind]
        times = sorted(row["seconds"]["bound"] / row["seconds"]["power"] for row in some)
        lines.append(
            f"- {'Matrices' if kind is None else f'Padding `{kind}`'}: slack at most"
            f" {max(row['slack'] for row in some):.1e}, while power iteration falls short by up to"
            f" {max(row['shortfall'] for row in some):.1e}; the bound costs {times[0]:.2g} to"
            f" {times[-1]:.2g} times as much."
        )
    return lines
