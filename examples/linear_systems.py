"""Phase portraits of linear systems, and what a Hurwitz matrix can learn of them [SNN, Figure 5].

Four systems dx/dt = A x, one asymptotically stable, two unstable (a focus and a saddle) and one
stable (a center), are learned from states and their derivatives with the field `hurwitz`, all of
whose eigenvalues have a real part of at most -rate, whatever its parameters:

    python examples/linear_systems.py

At the default rate the first is of that kind, the others are not. With states evenly on a circle
the mean squared error is |B - A|^2 / 2 in the Frobenius norm, so what can be found for them is the
nearest matrix of that kind, known in closed form for 2 x 2; what remains is the distance to it.

Writes a table (Markdown, JSON) and the phase portraits (PNG) into the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from command_line import command_of
from matplotlib.figure import Figure
from torch import Tensor

import stabnet

SYSTEMS = {
    "asymptotically stable": [[-0.4, 1.5], [-1.0, -0.6]],
    "unstable: a focus": [[0.3, 1.5], [-1.0, 0.1]],
    "unstable: a saddle": [[0.5, 1.0], [1.0, -1.0]],
    "stable: a center": [[0.0, 1.5], [-1.0, 0.0]],
}
REACH = 2.0  # the part of the plane that is shown


def nearest(matrix: Tensor, rate: float) -> Tensor:
    """Return the matrix nearest to a 2 x 2 one, of those with eigenvalues in Re <= -rate.

    With B = A + rate I these are trace(B) <= 0 <= det(B). Nearest in the half-space of the trace is
    B less half its trace on the diagonal; nearest where the determinant is not negative, if that of
    B is, is B without its smallest singular value (Eckart and Young). A candidate that satisfies
    both is the answer. For some matrices neither does; none of the systems here is one of them.
    """
    eye = torch.eye(2, dtype=matrix.dtype)
    B = matrix + rate * eye
    left, values, right = torch.linalg.svd(B)
    balanced = B - B.trace().clamp(min=0) / 2 * eye
    singular = B if B.det() >= 0 else values[0] * torch.outer(left[:, 0], right[0])
    for candidate in (balanced, singular):
        if candidate.trace() <= 1e-12 and candidate.det() >= -1e-12:
            return candidate - rate * eye
    raise ValueError(f"the nearest matrix to {matrix.tolist()} has trace and determinant zero")


def circle(count: int, shift: float = 0.0) -> Tensor:
    """Return states evenly on the unit circle, whose second moments are those of I / 2."""
    angle = 2 * math.pi * (torch.arange(count) + shift) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def learn(label: str, args: argparse.Namespace) -> tuple[stabnet.StabilityModel, dict]:
    """Fit a Hurwitz matrix to one system; return the model and its row of the table."""
    A = torch.tensor(SYSTEMS[label])
    best = nearest(A.double(), args.rate)
    x, test = circle(args.train), circle(100, 0.5)
    data = stabnet.data.from_tensors(x, x @ A.T, test, test @ A.T, name=label)
    torch.manual_seed(args.seed)
    model = stabnet.build(
        "stable_dynamics", in_shape=(2,), vector_field={"name": "hurwitz", "rate": args.rate}
    )
    cpu = time.process_time()
    stabnet.training.fit(
        model,
        stabnet.data.split(data, seed=args.seed),
        objective="derivative_matching",
        epochs=args.epochs,
        batch_size=100,
        learning_rate=0.1,
        run_dir=args.out / label.replace(" ", "-").replace(":", ""),
        seed=args.seed,
        device="cpu",
        progress=False,
    )
    cpu = time.process_time() - cpu
    B = model.double().dynamics.vector_field.matrix.detach()
    A = A.double()
    return model, {
        "system": label,
        "eigenvalues": spectrum(A),
        "learned": spectrum(B),
        "distance": (B - A).norm().item(),
        "least possible": (best - A).norm().item(),
        "relative error": ((B - A).norm() / A.norm()).item(),
        "matrix": A.tolist(),
        "learned matrix": B.tolist(),
        "nearest matrix": best.tolist(),
        "CPU seconds": round(cpu, 1),
    }


def spectrum(matrix: Tensor) -> list[list[float]]:
    """Return the real and imaginary parts of the eigenvalues, by the real part."""
    values = torch.linalg.eigvals(matrix).tolist()
    return [[v.real, v.imag] for v in sorted(values, key=lambda v: (v.real, v.imag))]


def draw(rows: Sequence[dict], models: Sequence[stabnet.StabilityModel], path: Path) -> None:
    """Save the phase portraits, of the systems above and of what was learned below."""
    figure = Figure(figsize=(2.7 * len(rows), 5.9), layout="constrained")
    panels = figure.subplots(2, len(rows), sharex=True, sharey=True)
    times = torch.linspace(0, 5, 101, dtype=torch.float64)
    starts = torch.tensor([[-0.5, -0.4], [1.2, 1.0]], dtype=torch.float64)
    for (above, below), row, model in zip(panels.T, rows, models, strict=True):
        above.set_title(row["system"], fontsize="medium")
        for panel, which in ((above, "matrix"), (below, "learned matrix")):
            A = torch.tensor(row[which], dtype=torch.float64)
            flow = torch.matrix_exp(times[:, None, None] * A)
            stabnet.plots.phase_portrait(
                lambda x, A=A: x.double() @ A.T,
                (-REACH, REACH, -REACH, REACH),
                trajectories=starts @ flow.mT,
                potential=model.dynamics.vector_field.potential if panel is below else None,
                levels=7,
                equilibria=torch.zeros(1, 2),
                axis_labels=("", ""),
                panel=panel,
            )
    panels[0, 0].set_ylabel("system, $x_2$")
    panels[1, 0].set_ylabel("learned, with level sets of $V$, $x_2$")
    for panel in panels[1]:
        panel.set_xlabel("$x_1$")
    stabnet.plots.save_figure(figure, path, dpi=90)


def eigenvalues_text(values: list[list[float]]) -> str:
    """Return eigenvalues as text."""
    if all(abs(imaginary) < 5e-4 for _, imaginary in values):
        return ", ".join(f"{r:.3f}" for r, _ in values)
    return f"{values[0][0]:.3f} ± {abs(values[0][1]):.3f} i"


def verdict(row: dict) -> str:
    """Return how close to the system, or to what can be had of it, the learned matrix is."""
    if row["least possible"] < 1e-6:  # of the entries of the matrix in float32
        return (
            f"- {row['system']}: of that kind; the distance is {row['relative error']:.1e} of the "
            "norm of its matrix."
        )
    ratio = row["distance"] / row["least possible"]
    return f"- {row['system']}: not of that kind; the distance is {ratio:.4f} times the least."


def markdown(rows: Sequence[dict], command: str, args: argparse.Namespace) -> str:
    """Return the table, and how to read it."""
    cells = [
        [
            row["system"],
            eigenvalues_text(row["eigenvalues"]),
            eigenvalues_text(row["learned"]),
            f"{row['distance']:.2e}",
            f"{row['least possible']:.2e}",
            f"{row['relative error']:.1e}",
            f"{row['CPU seconds']}",
        ]
        for row in rows
    ]
    names = [
        "system",
        "eigenvalues",
        "eigenvalues learned",
        "distance of the matrices",
        "least possible",
        "relative",
        "CPU seconds",
    ]
    lines = ["| " + " | ".join(c) + " |" for c in (names, ["---"] * len(names), *cells)]
    return "\n".join([
        "# Linear systems",
        "",
        f"Made with `{command}`; torch {torch.__version__}, {torch.get_num_threads()} thread(s).",
        "",
        f"Each system was learned from {args.train} states on the unit circle and their "
        "derivatives, without noise, by the field `hurwitz`, whose eigenvalues have real parts of "
        f"at most -{args.rate:g}; {args.epochs} epochs, seed {args.seed}. "
        "Distances are in the Frobenius norm; *least possible* is that of the "
        "nearest matrix of that kind, known in closed form.",
        "",
        *lines,
        "",
        "![phase portraits](linear-systems.png)",
        "",
        "How to read it. Where *least possible* is zero, the system is of that kind and can be "
        "recovered; elsewhere no data and no training bring the distance below it. So the "
        "constraint is an assumption about the system: where it fails, a field that satisfies it "
        "is wrong, which its error on the data tells. Whatever is learned, all states go to the "
        "origin: the focus and the saddle lose their growth, and the center gains a decay. What "
        "came out:",
        "",
        *map(verdict, rows),
        "",
        "The nearest matrix is that for states evenly on the circle; a tenth of them, chosen at "
        "random, is held out for validation, which may move it a little.",
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Learn the systems, with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--train", type=int, default=1000, help="states")
    parser.add_argument("--rate", type=float, default=0.01, help="of the decay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/linear-systems"))
    args = parser.parse_args(argv)
    models, rows = zip(*(learn(label, args) for label in SYSTEMS), strict=True)
    draw(rows, models, args.out / "linear-systems.png")
    text = markdown(rows, command_of(__file__, parser, args), args)
    (args.out / "linear-systems.md").write_text(text)
    record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": rows}
    (args.out / "linear-systems.json").write_text(json.dumps(record, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
