r"""Every non-expansive block on MNIST, trained for one time, and what its certificate costs.

    python benchmarks/lipschitz.py             # MNIST, one thread, 90 CPU seconds of training each
    python benchmarks/lipschitz.py --quick     # scikit-learn's digits and small norms, in seconds

*Blocks.* All models of one kind of state pass through states of the same shapes: vectors of 784
pixels become 256 features, and three blocks keep those; images pass through convolutions of 16
channels of 14×14 pixels and 32 of 7×7, two blocks at each. Blocks that keep the width have a
`cayley` layer before them where it changes. Each is trained for so many seconds of CPU time, with
one recipe, at a learning rate that falls along a cosine in the share of the time, and certified on
all test images. The twin has the same states, a free affine layer where the width changes, and free
residual blocks ``z + Bσ(Az + b)`` with as many multiplications by a state as the block has.

*Norms.* The certified bound of the norm of one operator, a Gaussian matrix or convolution, beside
100 steps of power iteration, and how far both are from the norm.

Times are CPU times of one thread; those of a training step are medians, model and twin in turn.
Writes tables (Markdown) and everything measured (JSON), anew after every row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lipschitz_models import LEARNING_RATE, ROWS, Row, build, twin
from lipschitz_norms import LANCZOS_STEPS, POWER_ITERATIONS, geometries, measure_norm
from lipschitz_report import markdown
from measuring import Run, medians
from torch import Tensor, nn

import stabnet

CPU = torch.device("cpu")
EPS = (0.5, 1.0, 1.58)
OBJECTIVE = {"name": "margin_cross_entropy", "margin": 1.0, "temperature": 0.2}
BATCH = 128


def stepper(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor, float], None]:
    """Return a function that makes one training step, for chosen samples and a learning rate."""
    objective = stabnet.build(OBJECTIVE, kind="objective")
    optimizer = torch.optim.Adam(model.parameters())

    def step(chosen: Tensor, rate: float) -> None:
        optimizer.param_groups[0]["lr"] = rate
        loss, _ = objective(model, x[chosen], y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def train(model: nn.Module, x: Tensor, y: Tensor, seconds: float, highest: float) -> int:
    """Train for so many seconds of CPU time, and return the number of steps.

    The learning rate falls along a cosine.
    """
    step = stepper(model, x, y)
    generator = torch.Generator().manual_seed(0)
    model.train()
    start, steps = time.process_time(), 0
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            share = (time.process_time() - start) / seconds
            if share >= 1:
                return steps
            step(chosen, highest * (1 + math.cos(math.pi * share)) / 2)
            steps += 1


def step_times(row: Row, data: stabnet.data.Dataset, rounds: int) -> dict[str, float]:
    """Return the CPU time of a training step of a new model, and of its twin."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, *data.in_shape, generator=generator)
    y = torch.randint(data.num_outputs, (BATCH,), generator=generator)
    runs: dict[str, Run] = {}
    for name, model in (("model", build(row, data)), ("twin", twin(row, data))):
        runs[name] = partial(stepper(model, x, y), torch.arange(BATCH), row.learning_rate)
    return medians(runs, CPU, rounds)


def features_bound(model: nn.Module) -> tuple[float, float]:
    """Return the bound from pixels to the last layer, and the CPU time it took."""
    start = time.process_time()
    bound = stabnet.certify.lipschitz_bound(model).features
    return bound, time.process_time() - start


def measure(
    row: Row, data: stabnet.data.Dataset, seconds: float, images: int, rounds: int
) -> dict[str, Any]:
    """Train, certify and time one model."""
    torch.manual_seed(0)
    model = build(row, data)
    x, y = next(iter(stabnet.data.loader(data.train, batch_size=len(data.train))))
    steps = train(model, x, y, seconds, row.learning_rate)
    as_trained, _ = features_bound(model)
    stabnet.renormalize(model)
    bound, bound_seconds = features_bound(model)
    start = time.process_time()
    loader = stabnet.data.loader(data.test, batch_size=500)
    report = stabnet.certify.certified_accuracy(model, loader, EPS, max_images=images)
    certified_seconds = time.process_time() - start
    times = step_times(row, data, rounds)
    return {
        **asdict(row),
        "options": row.options(),
        "architecture": row.architecture(math.prod(data.in_shape)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "epochs": steps * BATCH / len(x),
        "images": report.images,
        "clean": report.clean_accuracy,
        "certified": [report.accuracy_at(e) for e in EPS],
        "bound_as_trained": as_trained,
        "bound": bound,
        "bound_seconds": bound_seconds,
        # Certifying begins with the bound.
        "radii_seconds": certified_seconds - bound_seconds,
        "step_seconds": times["model"],
        "twin_seconds": times["twin"],
    }


def quick_data() -> stabnet.data.Dataset:
    """Return scikit-learn's digits, every pixel as four, so that they can be halved twice."""
    digits = stabnet.data.load("digits")
    tensors: list[Tensor] = []
    for part in (digits.train, digits.test):
        x, y = next(iter(stabnet.data.loader(part, batch_size=len(part))))
        tensors += [x.repeat_interleave(2, 2).repeat_interleave(2, 3), y]
    return stabnet.data.from_tensors(*tensors, name="digits")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="digits and small norms, in seconds")
    parser.add_argument("--seconds", type=float, help="of training per model: 90, or 1 if quick")
    parser.add_argument("--images", type=int, default=10_000, help="test images to certify")
    parser.add_argument("--only", nargs="*", help="some of the models; none for norms alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    labels = [row.label for row in ROWS]
    unknown = set(args.only or ()) - set(labels)
    if unknown:
        parser.error(f"--only: unknown {sorted(unknown)}; choose from {labels}")
    words = ["python", "benchmarks/lipschitz.py", *(["--quick"] if args.quick else [])]
    words += [] if args.seconds is None else ["--seconds", f"{args.seconds:g}"]
    words += [] if args.images == 10_000 else ["--images", str(args.images)]
    words += [] if args.only is None else ["--only", *args.only]
    args.command = shlex.join(words)
    if args.seconds is None:
        args.seconds = 1.0 if args.quick else 90.0
    if not args.seconds > 0:
        parser.error(f"--seconds must be positive; got {args.seconds:g}")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure everything; write table and record after every row."""
    args = parsed(arguments)
    torch.set_num_threads(1)
    data = quick_data() if args.quick else stabnet.data.load("mnist")
    record: dict[str, Any] = {
        "data": data.name,
        "seconds": args.seconds,
        "eps": EPS,
        "objective": OBJECTIVE,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "power_iterations": POWER_ITERATIONS,
        "lanczos_steps": LANCZOS_STEPS,
        "models": [],
        "norms": [],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"lipschitz-cpu{'-quick' if args.quick else ''}"
    rounds = 3 if args.quick else 11

    def write() -> None:
        record["setting"] = (
            f"Made with `{args.command}`; torch {torch.__version__}, CPU, {platform.machine()}, "
            f"{os.cpu_count()} CPUs, 1 thread. Load average at the end: {os.getloadavg()[0]:.1f}."
        )
        stem.with_suffix(".md").write_text(markdown(record))
        stem.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")

    for row in ROWS:
        if args.only is None or row.label in args.only:
            found = measure(row, data, args.seconds, args.images, rounds)
            record["models"].append(found)
            write()
            print(row.label, found["steps"], found["clean"], found["certified"], flush=True)
    for geometry in geometries(args.quick):
        record["norms"].append(measure_norm(geometry, 3))
        write()
        print(geometry.state_shape, record["norms"][-1], flush=True)


if __name__ == "__main__":
    main()
