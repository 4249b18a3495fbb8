r"""Memory and time of a training step of Hamiltonian blocks against their number.

    python benchmarks/depth.py            # the full size, one thread, some minutes
    python benchmarks/depth.py --quick    # small sizes, in seconds

One chain of blocks is differentiated in five ways, in its input and in all parameters.
*Reversible* recomputes every state by inverting; *reversible, √depth* keeps one state every
:math:`\sqrt{\text{depth}}` blocks besides. *Stored* keeps the activations, as autograd does.
*Checkpoint, √depth* is ``torch.utils.checkpoint.checkpoint_sequential`` with that many segments,
and *checkpoint, each* a checkpoint around every block; both without the state of random numbers,
which nothing here needs, and not reentrant, as torch advises: reentrant ones take less time where
states are small, but have no gradients for ``torch.autograd.grad``. All ways share their
parameters, and every run compares their gradients, in both precisions. The gradients of a block are
formulas in closed form where the chain is reversible, and autograd's in the other ways; those of
potentials of the registry, of which *icnn* is measured, are autograd's in all ways.

*Saved* bytes are those of all storages that autograd holds for the backward pass after the forward
pass, each counted once, parameters left out; of *checkpoint, √depth* they include the activations
of the last segment, which torch does not run again. The *peak* is the greatest sum of the storages
that live at one time of the whole step: also what checkpoints recompute, and the gradients of the
parameters, which grow with depth in every way; on a GPU it is the allocator's.

Times are of all ways in turn: on one thread time of that thread, which does not count waiting, but
other processes still take caches and memory bandwidth. So both medians and minima are reported,
as ratios to stored activations in the same run. Large states are timed at small depths only, for
ratios hardly depend on depth.

Writes a table (Markdown), everything measured (JSON) and a plot (PNG).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import torch
from depth_report import STORED, markdown, plot, verdicts
from measuring import Run, peak_bytes, seconds
from stabnet_hamiltonian import Reversible
from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import stabnet
from stabnet.interfaces import Block

DEPTHS = (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Case:
    """Blocks, and states that go through them.

    Attributes:
        state_shape: shape of one state.
        batch: how many.
        scheme: of every block.
        depths: numbers of blocks at which saved bytes are counted.
        timed: those of them at which a whole step is run.
        compared: number of blocks at which gradients are compared.
        potential: K and U of every block, by name; energies of one layer if empty.
    """

    state_shape: tuple[int, ...]
    batch: int
    scheme: str
    depths: tuple[int, ...] = DEPTHS
    timed: tuple[int, ...] = DEPTHS
    compared: int = 200
    potential: str = ""


@final
class Problem:
    """A chain of blocks with random weights, random states, and a gradient behind the chain.

    Args:
        case: blocks and states.
        depth: how many blocks.
        device: where they are.
        dtype: their precision.
    """

    def __init__(self, case: Case, depth: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        field: dict[str, Any] = {"name": "separable_hamiltonian"}
        if case.potential:
            field |= {"kinetic_potential": case.potential, "potential": case.potential}
        step = {"name": "hamiltonian", "vector_field": field, "scheme": case.scheme}
        options: dict[str, Any] = {"state_shape": case.state_shape, "block": step, "depth": depth}
        chain = stabnet.build("reversible", kind="block", **options).to(device, dtype)
        self.blocks = cast("list[Block]", list(chain.blocks))
        self.parameters = list(chain.parameters())
        states = torch.randn(2, case.batch, *case.state_shape, dtype=dtype).to(device)
        self.z, self.gradient = states[0].clone().requires_grad_(), states[1].clone()

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """Return the ways to run the chain forward."""
        blocks, z, root = self.blocks, self.z, round(math.sqrt(len(self.blocks)))

        def each() -> Tensor:
            state = z
            for block in blocks:
                state = checkpoint(block, state, use_reentrant=False, preserve_rng_state=False)
            return state

        reversible, sparse = Reversible(blocks), Reversible(blocks, checkpoint_every=root)
        stored = Reversible(blocks, stored=True)
        random: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return {
            "reversible": lambda: reversible(z),
            "reversible, √depth": lambda: sparse(z),
            STORED: lambda: stored(z),
            "checkpoint, √depth": lambda: checkpoint_sequential(blocks, root, z, **random),
            "checkpoint, each": each,
        }

    def step(self, forward: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """Return the gradients of the states and of all parameters."""
        return torch.autograd.grad(forward(), (self.z, *self.parameters), self.gradient)


def saved_bytes(forward: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Return how much autograd holds for the backward pass of a function, parameters left out.

    Args:
        forward: the function.
        parameters: tensors whose storages are not counted.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: a result that its own node holds would never be freed.
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        forward()
    return sum(held.values())


def disagreement(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return how far the gradients of all ways are from those of stored activations.

    Relative, of the state and of each parameter; the largest.
    """
    problem = Problem(case, case.compared, device, dtype)
    ways = problem.ways()
    wanted = problem.step(ways.pop(STORED))
    found = {}
    for name, forward in ways.items():
        pairs = zip(problem.step(forward), wanted, strict=True)
        found[name] = torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max().item()
    return found


def measure(case: Case, depth: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return saved bytes and, where the case wants them, peaks and times of all ways."""
    problem = Problem(case, depth, device, torch.float32)
    ways, parameters = problem.ways(), problem.parameters
    row: dict[str, Any] = {"depth": depth}
    row["parameters"] = sum(p.untyped_storage().nbytes() for p in parameters)
    if depth in case.timed:
        steps = {name: partial(problem.step, forward) for name, forward in ways.items()}
        # The first of two calls within is what warms everything up.
        row["peak"] = {name: peak_bytes(step, device) for name, step in steps.items()}
        row["seconds"] = in_turn(steps, device, repeats)
    # Last, for a backward pass makes a chain keep more states where rounding would spoil it.
    row["saved"] = {name: saved_bytes(forward, parameters) for name, forward in ways.items()}
    return row


def in_turn(runs: Mapping[str, Run], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Return the times of several runs in turn, so that what slows one slows all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return times


def cases(quick: bool) -> list[Case]:
    """Return what is measured."""
    euler, leapfrog = "symplectic_euler", "leapfrog"
    if quick:
        few = (4, 8)
        shapes: tuple[tuple[int, ...], ...] = ((16,), (4, 4, 4))
        return [Case(shape, 64, way, few, few, 8) for way in (euler, leapfrog) for shape in shapes]
    return [
        Case((64,), 128, euler, compared=max(DEPTHS)),
        Case((512,), 128, euler, timed=(50, 100)),
        Case((16, 14, 14), 32, euler, timed=(50, 100)),
        Case((64,), 128, leapfrog, (50, 200, 800), (50, 200)),
        Case((512,), 128, leapfrog, (50, 800), (50,)),
        Case((16, 14, 14), 32, leapfrog, (50, 800), (50,)),
        Case((64,), 128, euler, (50, 800), (50,), 50, "icnn"),
    ]


def record_of(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Return everything measured about a case."""
    rows = [
        # The relative noise of a long step is smaller.
        measure(case, depth, args.device, args.repeats if depth <= 100 else min(args.repeats, 3))
        for depth in case.depths
    ]
    differences = {
        str(dtype).removeprefix("torch."): disagreement(
            replace(case, batch=min(case.batch, 4)), args.device, dtype
        )
        for dtype in (torch.float32, torch.float64)
    }
    return {**asdict(case), "rows": rows, "differences": differences}


def setting(args: argparse.Namespace) -> str:
    """Return what the figures depend on besides the code."""
    command = ["python", "benchmarks/depth.py", *(["--quick"] if args.quick else [])]
    command += ["--device", str(args.device), "--repeats", str(args.repeats)]
    cuda = args.device.type == "cuda"
    name = torch.cuda.get_device_name(args.device) if cuda else f"CPU, {platform.machine()}"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"Made with `{shlex.join(command)}`; torch {torch.__version__}, {name}, {os.cpu_count()} "
        f"CPUs, 1 thread; float32 unless said otherwise. Load average at the end: {load}."
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure everything; write table, record and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=5, help="at depths beyond 100 at most 3")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record: dict[str, Any] = {"cases": []}
    for case in cases(args.quick):
        record["cases"].append(record_of(case, args))
        print(case, flush=True)
    record["targets"] = verdicts(record)
    record["setting"] = setting(args)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"depth-{args.device.type}{'-quick' if args.quick else ''}"
    (args.out / f"{stem}.md").write_text(markdown(record))
    (args.out / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(record, args.out / f"{stem}.png")
    print(f"wrote {stem}.md, .json and .png")


if __name__ == "__main__":
    main()
