r"""The equilibrium engine beside torchdeq: the same cells, tolerance and threads, in one run.

    python benchmarks/equilibrium.py            # all problems, one thread
    python benchmarks/equilibrium.py --quick    # a few of them, without compiling

What is counted: a wrapper around the cell counts every evaluation, in the forward and the backward
pass, and every vector–Jacobian product, by a hook on its images or through its ``pullback``; the
last one, which reaches features and parameters, is included. Rows that leave the batch are known by
indices that travel with the features. Counts, residuals and gradients are taken in a pass of their
own, before timing.

The bound of a time is evaluations × the cost of one, plus products × the cost of one: both of the
cell as it is written, whole batch, timed in turn with the solves. It is an estimate of what a
solver without any work of its own would take: a solver may beat it where ``Cell.at`` folds
constants, or where finished rows leave.

Writes a table (Markdown), everything measured (JSON) and a plot (PNG).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import importlib
import importlib.util
import json
import math
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from stabnet_deq import Anderson, Broyden, ConvCell, DEQCell, Picard
from torch import Tensor, nn

from stabnet import Equilibrium
from stabnet.interfaces import Cell, Features, Solver, State

TOLERANCE = 1e-5
LIMIT = 300
PLAIN_LIMIT = 2000  # of plain iteration, which needs a thousand evaluations on the stiff maps
PEER = "torchdeq anderson"

Solve = Callable[[Features, bool], tuple[Tensor, Tensor]]
"""Features, and whether gradients are wanted, to the state and what is claimed to converge."""


# Problems.


@final
class AffineCell(Cell):
    """The map ``z ↦ s·Mz + b`` with features ``(b, s)``, ``s`` a factor for each sample."""

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        super().__init__()
        self.state_shape = self.feature_shape = (len(matrix),)
        self.matrix = nn.Parameter(matrix)

    def forward(self, z: State, u: Features = None) -> Tensor:
        """Evaluate the map."""
        assert isinstance(u, tuple)
        b, s = u
        return torch.addcmul(b, s[:, None], cast("Tensor", z) @ self.matrix.T)


@dataclass(frozen=True)
class Problem:
    """A cell, its features, and what is run on it."""

    name: str
    cell: Cell
    features: Features
    memory: int = 5
    solvers: tuple[str, ...] = ("picard", "anderson", "broyden")
    compiled: bool = False


def stiff(seed: int, scale: float = 1.0, easy: int = 0) -> tuple[Cell, Features]:
    """Return the map with a random symmetric ``M``, spectrum uniform in [−0.99, 0.99].

    Args:
        seed: of the eigenvectors and of ``b``.
        scale: of ``b``, and so of the state.
        easy: number of the 128 samples whose map is halved.
    """
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))
    matrix = (q * torch.linspace(-0.99, 0.99, 64, dtype=torch.float64)) @ q.T
    b = scale * torch.randn(128, 64, generator=generator)
    return AffineCell(matrix.float()), (b, torch.where(torch.arange(128) < easy, 0.5, 1.0))


def paper_cell(size: int, orthogonal: float | None = None) -> tuple[Cell, Features]:
    """Return the paper's cell in eval mode; with orthogonal weights of that norm where given."""
    torch.manual_seed(0)
    cell = DEQCell((size,), (size,), weight_scale=0.5).eval()
    if orthogonal is not None:
        for layer in (cell.inner, cell.outer):
            nn.init.orthogonal_(layer.weight, gain=orthogonal)
    return cell, torch.randn(128, size)


def conv_cell() -> tuple[Cell, Features]:
    """Return the convolutional cell on small images."""
    torch.manual_seed(0)
    return ConvCell((16, 8, 8), (16, 8, 8)).eval(), torch.randn(32, 16, 8, 8)


def problems(quick: bool, compiled: bool) -> Iterator[Problem]:
    """Yield the problems, built one at a time."""
    yield Problem("paper cell, 64", *paper_cell(64), compiled=compiled and not quick)
    yield Problem("slow cell, 64", *paper_cell(64, orthogonal=0.9))
    few = ("picard", "anderson")
    some = few if quick else (*few, "broyden")  # torchdeq's Broyden takes seconds a solve here
    yield Problem("stiff, seed 0", *stiff(0), memory=10, solvers=some)
    if not quick:
        yield Problem("stiff, seed 1", *stiff(1), memory=10, solvers=few)
        yield Problem("stiff, seed 2", *stiff(2), memory=10, solvers=few)
        yield Problem("stiff, seed 0, state × 1e3", *stiff(0, 1e3), memory=10, solvers=few)
        yield Problem("stiff, seed 0, state × 1e-3", *stiff(0, 1e-3), memory=10, solvers=few)
    yield Problem("mixed batch, 1 of 128 stiff", *stiff(0, easy=127), memory=10, solvers=some)
    yield Problem("conv cell, 16 × 8 × 8", *conv_cell())
    if not quick:
        yield Problem("paper cell, 256", *paper_cell(256))
        yield Problem("paper cell, 1024", *paper_cell(1024))
        yield Problem("slow cell, 1024", *paper_cell(1024, 0.9), solvers=("anderson",))
        yield Problem("paper cell, 4096", *paper_cell(4096), solvers=("anderson",))


# Contenders.


@dataclass(frozen=True)
class Contender:
    """A solver, ours or theirs: ``make`` turns a cell into a solve."""

    name: str
    make: Callable[[Cell], Solve]
    prepare: Callable[[Callable[[], Any]], Callable[[], Any]] = field(default=lambda run: run)
    timed: Callable[[Cell], Solve] | None = None  # if not what was counted


def our_solver(name: str, memory: int, fixed: int | None = None) -> Solver:
    """Return a solver of ours; with a number of evaluations, one that spends exactly those."""
    limit = (PLAIN_LIMIT if name == "picard" else LIMIT) if fixed is None else fixed
    is_fixed = fixed is not None
    if name == "picard":
        return Picard(TOLERANCE, limit, fixed_iterations=is_fixed)
    if name == "broyden":
        return Broyden(TOLERANCE, limit, fixed_iterations=is_fixed)
    return Anderson(TOLERANCE, limit, memory, fixed_iterations=is_fixed)


def ours(solver: Solver, backward: Solver, compiled: bool, cell: Cell) -> Solve:
    """Return a solve of ours."""
    equilibrium: Any = Equilibrium(cell, solver, backward)
    if compiled:
        equilibrium = torch.compile(equilibrium, fullgraph=True)

    def solve(u: Features, training: bool) -> tuple[Tensor, Tensor]:
        solution = equilibrium(u)
        return solution.state, solution.converged

    return solve


def theirs(name: str, memory: int, cell: Cell) -> Solve:
    """Return a solve of torchdeq's, with relative stopping as ours and otherwise its defaults.

    Its Anderson keeps iterates where ours keeps differences, of which there is one less.
    """
    torchdeq: Any = importlib.import_module("torchdeq")
    solvers: Any = importlib.import_module("torchdeq.solver")
    anderson = functools.partial(solvers.anderson_solver, m=memory + 1)
    solvers.register_solver("anderson", anderson)
    limit = PLAIN_LIMIT if name == "fixed_point_iter" else LIMIT
    options = {"tol": TOLERANCE, "stop_mode": "rel", "max_iter": limit, "solver": name}
    both = {f"{side}_{key}": value for side in "fb" for key, value in options.items()}
    deq = torchdeq.get_deq(ift=True, **both)

    def solve(u: Features, training: bool) -> tuple[Tensor, Tensor]:
        deq.train(training)
        like = u if isinstance(u, Tensor) else pytree.tree_leaves(u)[0]
        (*_, state), info = deq(lambda z: cell(z, u), torch.zeros_like(like.detach()))
        return state, info["rel_lowest"] <= TOLERANCE

    return solve


def has_peer() -> bool:
    """Return whether torchdeq is installed."""
    return importlib.util.find_spec("torchdeq") is not None


def eager(problem: Problem) -> list[Contender]:
    """Return the solvers that look at what they do: ours, and torchdeq's if it is installed."""
    found = []
    for name in problem.solvers:
        solver = our_solver(name, problem.memory)
        found.append(Contender(name, functools.partial(ours, solver, solver, False)))
    if has_peer():
        for name in problem.solvers:
            theirs_name = "fixed_point_iter" if name == "picard" else name
            make = functools.partial(theirs, theirs_name, problem.memory)
            found.append(Contender(f"torchdeq {theirs_name}", make))
    return found


def fixed(problem: Problem, counted: dict[str, Counts], cuda: bool) -> list[Contender]:
    """Return ours in fixed-iteration mode, compiled, or captured in a CUDA graph.

    Each spends the evaluations that it needed when it looked; they are counted uncompiled.
    """
    found = []
    for name in problem.solvers:
        counts, m = counted[name], problem.memory
        forward = our_solver(name, m, counts.evaluations)
        backward = our_solver(name, m, max(counts.products - 1, 1))
        make = functools.partial(ours, forward, backward)
        if problem.compiled:
            plain, compiled = functools.partial(make, False), functools.partial(make, True)
            found.append(Contender(f"{name}, compiled", plain, timed=compiled))
        if cuda:
            graphed = f"{name}, CUDA graph"
            found.append(Contender(graphed, functools.partial(make, False), captured))
    return found


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a replay of ``run`` from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


# Counting.


@final
class Observed(Cell):
    """A cell that counts what is asked of it; the last of its features are indices of rows."""

    def __init__(self, cell: Cell, rows: int, device: torch.device) -> None:
        super().__init__()
        self.cell = cell
        self.state_shape, self.feature_shape = cell.state_shape, cell.feature_shape
        self.evaluations = self.products = self.row_evaluations = self.wasted = 0
        self._met = torch.zeros(rows, dtype=torch.bool, device=device)

    def forward(self, z: State, u: Features = None) -> State:
        """Evaluate the cell, and take note."""
        features, rows = self._apart(u)
        return self._note(z, self.cell(z, features), rows)

    def at(self, u: Features) -> Callable[[State], State]:
        """Return the cell's own map, noted."""
        features, rows = self._apart(u)
        f = self.cell.at(features)
        return lambda z: self._note(z, f(z), rows)

    def pullback(self, z: State, u: Features) -> Callable[[State], State] | None:
        """Return the cell's own closed product, noted; what it computes beforehand is not."""
        pull = self.cell.pullback(z, self._apart(u)[0])
        if pull is None:
            return None

        def noted(w: State) -> State:
            self.products += 1
            return pull(w)

        return noted

    def _apart(self, u: Features) -> tuple[Features, Tensor]:
        assert isinstance(u, tuple)
        *features, rows = u
        return features[0] if len(features) == 1 else tuple(features), rows

    def _note(self, z: State, image: State, rows: Tensor) -> State:
        assert isinstance(z, Tensor)
        assert isinstance(image, Tensor)
        self.evaluations += 1
        self.row_evaluations += len(rows)
        self.wasted += int(self._met[rows].sum())
        self._met[rows] |= relative_residual(z.detach(), image.detach()) <= TOLERANCE
        if image.requires_grad:
            image.register_hook(self._note_product)
        return image

    def _note_product(self, gradient: Tensor) -> None:
        self.products += 1


def relative_residual(z: Tensor, image: Tensor) -> Float[Tensor, " batch"]:
    """Return ``‖f(z) − z‖ / ‖f(z)‖`` per sample, in double precision."""
    z, image = z.flatten(1).double(), image.flatten(1).double()
    ratio: Tensor = (image - z).norm(dim=1) / image.norm(dim=1)
    return ratio


@dataclass(frozen=True)
class Counts:
    """What one solve, forward and backward, took and found.

    Attributes:
        evaluations: evaluations of the cell in the forward pass.
        rows: mean number of rows in them, as a share of the batch.
        wasted: share of their rows that had met the tolerance in an earlier evaluation.
        evaluations_both: evaluations in forward and backward pass together.
        products: vector–Jacobian products.
        residual: recomputed relative residual of the state, the largest over the samples.
        unconverged: samples whose recomputed residual misses the tolerance.
        wrongly_claimed: those among them that the solver says have converged.
        gradient_error: relative error of the gradient in the features.
    """

    evaluations: int
    rows: float
    wasted: float
    evaluations_both: int
    products: int
    residual: float
    unconverged: int
    wrongly_claimed: int
    gradient_error: float


def with_gradients(u: Features) -> Features:
    """Return features that require gradients."""
    given: Features = pytree.tree_map(lambda part: part.detach().requires_grad_(), u)
    return given


def gradients(
    solve: Solve, cell: Cell, u: Features, weight: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the state, and the gradients of ``⟨weight, z*⟩`` in features and parameters."""
    inputs = [part for part in pytree.tree_leaves(u) if part.requires_grad]
    state, _ = solve(u, True)
    return state, torch.autograd.grad(state, [*inputs, *cell.parameters()], weight)


def reference_gradient(problem: Problem, weight: Tensor) -> Tensor:
    """Return the gradient in the features of a solve in double precision, to 1e-10."""
    cell = copy.deepcopy(problem.cell).double()
    u = pytree.tree_map(lambda part: part.double(), problem.features)
    solver = Anderson(1e-10, 5000, memory=20, throw=True)
    solve = ours(solver, solver, False, cell)
    return gradients(solve, cell, with_gradients(u), weight.double())[1][0]


def count(contender: Contender, problem: Problem, weight: Tensor, reference: Tensor) -> Counts:
    """Solve once forward without gradients, and once forward and backward, counting."""
    batch, cell = len(weight), problem.cell
    rows = torch.arange(batch, device=weight.device)
    observed = Observed(cell, batch, weight.device)
    with torch.no_grad():
        u: Features = (*pytree.tree_leaves(problem.features), rows)
        state, claimed = contender.make(observed)(u, False)
        residual = relative_residual(state, cast("Tensor", cell(state, problem.features)))
    both = Observed(cell, batch, weight.device)
    u = (*pytree.tree_leaves(with_gradients(problem.features)), rows)
    _, (gradient, *_) = gradients(contender.make(both), cell, u, weight)
    # The map that was iterated may differ by rounding from the cell as it is written.
    missed = ~(residual <= TOLERANCE + 4 * torch.finfo(state.dtype).eps)
    return Counts(
        evaluations=observed.evaluations,
        rows=observed.row_evaluations / (batch * observed.evaluations),
        wasted=observed.wasted / observed.row_evaluations,
        evaluations_both=both.evaluations,
        products=both.products,
        residual=residual.max().item(),
        unconverged=int(missed.sum()),
        wrongly_claimed=int((missed & claimed).sum()),
        gradient_error=((gradient - reference).norm() / reference.norm()).item(),
    )


# Timing.


def seconds(run: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Return how long one call takes, of so many in a row.

    On one thread in time of that thread, which other processes do not lengthen; on a GPU between
    two events.
    """
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for _ in range(calls):
        run()
    return (clock() - started) / calls


def medians(
    runs: dict[str, Callable[[], Any]], device: torch.device, budget: float
) -> tuple[dict[str, float], dict[str, int]]:
    """Return median times of runs that have run before, and the number of samples of each.

    All are called in turn, each as often as about fits into its budget of seconds, but at least
    three times, and evenly over the whole time. A sample lasts at least two milliseconds, and a
    short one comes after a call that is not timed: whatever ran before has emptied the caches,
    which makes a single evaluation look three times as costly as it is within a solve.
    """
    rough = {name: seconds(run, 1, device) for name, run in runs.items()}
    calls = {name: max(1, round(2e-3 / t)) for name, t in rough.items()}
    samples = {n: min(50, max(3, int(budget / (t * (calls[n] + 1))))) for n, t in rough.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds = max(samples.values())
    for i in range(rounds):
        for name, run in runs.items():
            if (i + 1) * samples[name] // rounds > i * samples[name] // rounds:
                if rough[name] < 0.05:
                    run()
                times[name].append(seconds(run, calls[name], device))
    return {name: statistics.median(t) for name, t in times.items()}, samples


def runs_of(contender: Contender, problem: Problem, weight: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the forward pass, and the forward and backward pass, of a contender."""
    solve = (contender.timed or contender.make)(problem.cell)
    u = with_gradients(problem.features)

    @torch.no_grad()
    def forward() -> Tensor:
        return solve(problem.features, False)[0]

    def both() -> tuple[Tensor, ...]:
        return gradients(solve, problem.cell, u, weight)[1]

    name = contender.name
    return {f"{name}/forward": contender.prepare(forward), f"{name}/both": contender.prepare(both)}


def costs_of(problem: Problem, weight: Tensor) -> dict[str, Callable[[], Any]]:
    """Return one evaluation of the cell and one product: as written, and as we compute them."""
    cell, u = problem.cell, problem.features
    z = torch.randn_like(weight).requires_grad_()
    image = cast("Tensor", cell(z, u))
    with torch.no_grad():
        at, pull = cell.at(u), cell.pullback(z, u)

    def product() -> tuple[Tensor, ...]:
        return torch.autograd.grad(image, z, weight, retain_graph=True)

    return {
        "evaluation": torch.no_grad()(lambda: cell(z, u)),
        "evaluation by at": torch.no_grad()(lambda: at(z)),
        "product": product,
        "product by pullback": product if pull is None else torch.no_grad()(lambda: pull(weight)),
    }


def measure(problem: Problem, device: torch.device, budget: float) -> dict[str, Any]:
    """Count and time all contenders on one problem."""
    problem.cell.to(device)
    features = pytree.tree_map(lambda part: part.to(device), problem.features)
    problem = dataclasses.replace(problem, features=features)
    generator = torch.Generator().manual_seed(1)
    like = pytree.tree_leaves(features)[0]
    weight = torch.randn(like.shape, generator=generator).to(device)
    reference = reference_gradient(problem, weight)
    contenders = eager(problem)
    counted = {c.name: count(c, problem, weight, reference) for c in contenders}
    more = fixed(problem, counted, device.type == "cuda")
    counted |= {c.name: count(c, problem, weight, reference) for c in more}
    runs, preparation = costs_of(problem, weight), {}
    parts = tuple(runs)
    for run in runs.values():
        run()
    for contender in (*contenders, *more):
        mine = runs_of(contender, problem, weight)
        started = time.monotonic()
        for run in mine.values():
            run()
        preparation[contender.name] = time.monotonic() - started
        runs |= mine
    times, samples = medians(runs, device, budget)
    if problem.compiled:
        torch.compiler.reset()  # the next problem is another map, not another shape of this one
    cost = {name: times[name] for name in parts}
    rows = [
        row(name, counts, times, cost)
        | {"first_calls_seconds": preparation[name], "samples": samples[f"{name}/both"]}
        for name, counts in counted.items()
    ]
    return {"problem": problem.name, "batch": len(weight), "cost": cost, "rows": rows}


def row(
    name: str, counts: Counts, times: dict[str, float], cost: dict[str, float]
) -> dict[str, Any]:
    """Return what is known of one contender on one problem."""
    forward, both = times[f"{name}/forward"], times[f"{name}/both"]
    peer = times.get(f"{PEER}/forward"), times.get(f"{PEER}/both")
    calls, products = counts.evaluations_both, counts.products
    bound = calls * cost["evaluation"] + products * cost["product"]
    least = calls * cost["evaluation by at"] + products * cost["product by pullback"]
    return {
        "solver": name,
        **dataclasses.asdict(counts),
        "forward_seconds": forward,
        "both_seconds": both,
        "forward_over_bound": forward / (counts.evaluations * cost["evaluation"]),
        "forward_over_bound_own": forward / (counts.evaluations * cost["evaluation by at"]),
        "both_over_bound": both / bound,
        "both_over_bound_own": both / least,
        "forward_speedup": None if peer[0] is None else peer[0] / forward,
        "both_speedup": None if peer[1] is None else peer[1] / both,
    }


# Reporting.


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "solver": lambda r: str(r["solver"]),
    "evaluations": lambda r: str(r["evaluations"]),
    "rows": lambda r: f"{r['rows']:.0%}",
    "wasted": lambda r: f"{r['wasted']:.0%}",
    "residual": lambda r: f"{r['residual']:.1e}",
    "missed": lambda r: str(r["unconverged"]),
    "wrong": lambda r: str(r["wrongly_claimed"]),
    "products": lambda r: str(r["products"]),
    "gradient error": lambda r: f"{r['gradient_error']:.0e}",
    "forward ms": lambda r: f"{1e3 * r['forward_seconds']:.3g}",
    "/ bound": lambda r: f"{r['forward_over_bound']:.2f}",
    "/ own": lambda r: f"{r['forward_over_bound_own']:.2f}",
    "both ms": lambda r: f"{1e3 * r['both_seconds']:.3g}",
    "both / bound": lambda r: f"{r['both_over_bound']:.2f}",
    "both / own": lambda r: f"{r['both_over_bound_own']:.2f}",
    "× faster": lambda r: "" if r["both_speedup"] is None else f"{r['both_speedup']:.1f}",
}

NOTES = """\
- *evaluations* of the cell in the forward pass, counted by a wrapper around it; *rows*: the mean
  share of the batch in them (finished rows leave); *wasted*: the share of their rows that had met
  the tolerance before. *residual*: ‖f(z) − z‖ / ‖f(z)‖ of the returned state, recomputed, the
  largest over the samples; *missed*: samples above the tolerance (and four units of rounding);
  *wrong*: those among them that the solver says have converged.
- *products*: vector–Jacobian products in the backward pass, the last one, which reaches features
  and parameters, included. *gradient error*: relative, of the gradient in the features, against a
  solve in double precision.
- *bound*: evaluations × the cost of one + products × the cost of one, those of the backward pass
  too. Both costs are of the whole batch and of the cell as it is written (`cell(z, u)`, and its
  product with respect to z by automatic differentiation), measured in turn with the solves, warm.
  *own* takes the costs of `cell.at(u)` and `cell.pullback(z, u)` instead, in which constants are
  folded: that is what our solvers evaluate, so it is the stricter bound for them, while torchdeq is
  given the cell as it is written. Part of our lead over it is this folding.
- An evaluation counts whole however many rows are left, so where rows leave, the ratio flatters.
- *both*: forward and backward pass, implicit gradient, features and parameters requiring
  gradients on both sides; *× faster* than torchdeq's Anderson at that. torchdeq runs with
  `ift=True`, relative stopping, and for this in training mode, since in eval mode it returns no
  gradient; the cell is in eval mode for everyone. Its Anderson keeps as many differences as ours;
  the memory of its Broyden is unlimited, and ours holds ten pairs.
- *compiled*: fixed-iteration mode under `torch.compile(fullgraph=True)`, with the evaluations and
  products that the eager solve took; counted uncompiled. Only on the first problem: compiling
  unrolls all evaluations, which takes minutes where there are more. What it took here is in the
  JSON, `first_calls_seconds`; torch's cache on disk may have made that shorter.
"""


def verdicts(results: list[dict[str, Any]]) -> list[tuple[str, float, str, float]]:
    """Return each target that these results speak of: what, measured, relation, wanted."""
    found = {(p["problem"], r["solver"]): r for p in results for r in p["rows"]}
    wrong = sum(r["wrongly_claimed"] for (_, s), r in found.items() if not s.startswith("torchdeq"))
    targets = [("samples of ours wrongly said to have converged", wrong, "≤", 0.0)]
    scaled = [
        r["evaluations"] for (p, s), r in found.items() if "stiff, seed 0" in p and s == "anderson"
    ]
    if len(scaled) > 1:
        span = max(scaled) - min(scaled)
        targets.append(("stiff, seed 0: anderson, range of evaluations by scale", span, "≤", 0.0))
    for problem, solver, key, relation, target in _wanted():
        value = found.get((problem, solver), {}).get(key)
        if value is not None:
            what = f"{problem}: {solver}, {key.replace('_', ' ')}"
            targets.append((what, value, relation, target))
    return targets


def _wanted() -> Iterator[tuple[str, str, str, str, float]]:
    """Yield the targets for single figures: problem, solver, figure, relation, value."""
    for seed in range(3):
        yield f"stiff, seed {seed}", "anderson", "evaluations", "≤", 100
    yield "mixed batch, 1 of 128 stiff", "anderson", "wasted", "<", 0.2
    for cell in ("paper cell", "slow cell"):
        yield f"{cell}, 64", "anderson", "evaluations", "≤", 18
        yield f"{cell}, 64", "picard", "forward_over_bound", "≤", 1.4
        for size, most in ((64, 3.0), (1024, 2.0), (4096, 2.0)):
            yield f"{cell}, {size}", "anderson", "forward_over_bound", "≤", most
            yield f"{cell}, {size}", "anderson", "both_over_bound", "≤", most
        yield f"{cell}, 64", "anderson", "both_speedup", "≥", 5
    yield "paper cell, 64", "anderson, compiled", "forward_over_bound", "≤", 1.5
    yield "paper cell, 64", "anderson, compiled", "both_over_bound", "≤", 1.5


def is_met(value: float, relation: str, target: float) -> bool:
    """Return whether a target is met."""
    return {"≤": value <= target, "<": value < target, "≥": value >= target}[relation]


def markdown(record: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["# Fixed-point solvers and their gradients", "", record["setting"]["text"], ""]
    lines += ["| target | measured | wanted | met |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {value:.3g} | {relation} {target:g} | "
        f"{'yes' if is_met(value, relation, target) else '**no**'} |"
        for what, value, relation, target in record["targets"]
    ]
    for result in record["results"]:
        cost = ", ".join(f"{name} {1e6 * value:.3g} µs" for name, value in result["cost"].items())
        lines += ["", f"## {result['problem']}", ""]
        lines += [f"Batch {result['batch']}; {cost}.", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += [
            "| " + " | ".join(text(r) for text in COLUMNS.values()) + " |" for r in result["rows"]
        ]
    return "\n".join([*lines, "", "## How to read this", "", NOTES])


def print_table(console: Console, result: dict[str, Any]) -> None:
    """Print the table of one problem."""
    table = Table(title=result["problem"], title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "solver" else "right")
    for r in result["rows"]:
        table.add_row(*(text(r) for text in COLUMNS.values()))
    console.print(table)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Plot the ratio to the bound, and the time against torchdeq's Anderson, by problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 0.45 * len(results) + 2), sharey=True)
    names = list(dict.fromkeys(r["solver"] for p in results for r in p["rows"]))
    for axis, key in zip(axes, ("both_over_bound", "both_speedup"), strict=True):
        for i, name in enumerate(names):
            points = [
                (r[key], place + 0.6 * (i / max(len(names) - 1, 1) - 0.5))
                for place, p in enumerate(results)
                for r in p["rows"]
                if r["solver"] == name and r[key] is not None
            ]
            if points:
                marker = "x" if name.startswith("torchdeq") else "o"
                axis.plot(*zip(*points, strict=True), marker, color=f"C{i}", label=name)
        axis.set_xscale("log")
        axis.axvline(1, color="gray", linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(results)), [p["problem"] for p in results])
    axes[0].invert_yaxis()
    axes[0].set_xlabel("time, forward and backward, over the bound (1: no overhead)")
    axes[1].set_xlabel("times faster than torchdeq's Anderson")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.9 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def finite(record: Any) -> Any:
    """Return the record with null for what is not finite, which JSON cannot say."""
    return pytree.tree_map(
        lambda x: None if isinstance(x, float) and not math.isfinite(x) else x, record
    )


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    flags = [f"--{name}" for name in ("quick", "no_compile") if getattr(args, name)]
    command = ["python", "benchmarks/equilibrium.py", *(f.replace("_", "-") for f in flags)]
    command += ["--threads", str(args.threads), "--device", str(args.device)]
    cuda = args.device.type == "cuda"
    name = torch.cuda.get_device_name(args.device) if cuda else f"CPU, {platform.machine()}"
    known = {
        "command": shlex.join(command),
        "torch": torch.__version__,
        "device": name,
        "cpus": os.cpu_count(),
        "threads": args.threads,
        "torchdeq": has_peer(),
    }
    one = args.threads == 1 and not cuda
    clock = "time between events" if cuda else "time of the thread" if one else "wall-clock time"
    peer = "" if has_peer() else ' torchdeq is not installed (`pip install -e ".[bench]"`).'
    known["text"] = (
        f"Made with `{known['command']}`; torch {torch.__version__}, {name}, {known['cpus']} CPUs, "
        f"{args.threads} thread(s); float32, relative tolerance {TOLERANCE:g}; medians of {clock}, "
        f"all in turn.{peer}"
    )
    return known


def main(arguments: list[str] | None = None) -> None:
    """Run all problems; write table, record and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few problems, under a minute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    console = Console()
    results = []
    for problem in problems(args.quick, not args.no_compile):
        results.append(measure(problem, args.device, 0.1 if args.quick else 0.5))
        print_table(console, results[-1])
    record = {"setting": setting(args), "targets": verdicts(results), "results": results}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"equilibrium-{args.device.type}{'-quick' if args.quick else ''}"
    (args.out / f"{stem}.md").write_text(markdown(record))
    (args.out / f"{stem}.json").write_text(json.dumps(finite(record), indent=2) + "\n")
    plot(results, args.out / f"{stem}.png")
    console.print(f"wrote {stem}.md, .json and .png to {args.out}")


if __name__ == "__main__":
    main()
