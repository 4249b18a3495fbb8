"""1,000 Hamiltonian layers on MNIST, beside a ResNet as deep: accuracy, memory, gradients.

A layer of `hamiltonian_net` moves a state (q, p) by one step of symplectic Euler, of length h, on
the energy K(p) + U(q) [SNN, (24)-(28)]. Every product of Jacobians is symplectic, so that none has
an operator norm below 1; and a layer can be inverted, so that training keeps the first and the
last state only. A layer of the ResNet is Euler's step z + h B relu(A z + b), of the same length and
about as many parameters, on states of the same size. Both are trained in the same way:

    python examples/deep_hamiltonian.py                  # about a quarter of an hour of one core
    python examples/deep_hamiltonian.py --data digits --depth 100 --epochs 5

Images of MNIST are averaged over squares of 2 x 2 pixels; their upper half is q, the lower one p.
Writes tables (Markdown, JSON) and a plot (PNG) into the output folder. A net that a run with the
same options has left there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from command_line import command_of
from deep_hamiltonian_figures import draw, markdown
from torch import Tensor, nn

import stabnet

LABELS = {"hamiltonian": "Hamiltonian", "resnet": "ResNet"}
POOL = {"mnist": 2, "digits": 1}  # side of the squares of pixels that are averaged
EXAMINED = 64  # validation images whose gradients are looked at during training
LONGER = 10  # times as long steps, to see what the short ones are good for
VALIDATED = 500  # validation images whose accuracy is looked at during training


@stabnet.register.block("euler_residual", override=True)
class EulerResidual(stabnet.interfaces.Block):
    """Euler's step z + h B relu(A z + b); A, B and b as a Hamiltonian layer has them at first."""

    def __init__(self, state_shape: Sequence[int], hidden: int, step_size: float) -> None:
        super().__init__()
        self.state_shape, self.step_size = tuple(state_shape), step_size
        (n,) = self.state_shape
        scale = math.sqrt(n) + math.sqrt(hidden)
        self.weight = nn.Parameter(torch.randn(hidden, n) / scale)
        self.outgoing = nn.Parameter(torch.randn(hidden, n) / scale)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the states one step later."""
        slope = F.linear(z, self.weight, self.bias).relu() @ self.outgoing
        return torch.add(z, slope, alpha=self.step_size)


def flat(name: str) -> stabnet.data.Dataset:
    """Return a data set of images as vectors."""
    images = stabnet.data.load(name)

    def vectors(samples: stabnet.data.Samples) -> tuple[Tensor, Tensor]:
        loaded = zip(*stabnet.data.loader(samples, batch_size=1000), strict=True)
        x, y = (torch.cat(parts) for parts in loaded)
        return F.avg_pool2d(x, POOL[name]).flatten(1), y

    parts = *vectors(images.train), *vectors(images.test)
    return stabnet.data.from_tensors(*parts, name=name, num_outputs=images.num_outputs)


def make(
    label: str, data: stabnet.data.Dataset, depth: int, args: argparse.Namespace
) -> stabnet.StabilityModel:
    """Return an untrained net; it normalizes all pixels alike."""
    torch.manual_seed(args.seed)
    (size,), (spread, center) = data.in_shape, torch.std_mean(data.train.x)
    shapes = {"in_shape": (size,), "num_outputs": data.num_outputs}
    shapes |= {"mean": [center.item()] * size, "std": [spread.item()] * size}
    if label == "hamiltonian":
        field = {"name": "separable_hamiltonian", "hidden": args.hidden, "activation": "relu"}
        options = {"blocks": depth, "vector_field": field, "step_size": args.step_size}
        return stabnet.build("hamiltonian_net", **shapes, **options)
    # Two matrices of all of a state have the entries of two of half a state, of half the rows.
    block = {"name": "euler_residual", "hidden": args.hidden // 2, "step_size": args.step_size}
    sizes = {"channels": (), "blocks": (), "features": (size,) * depth}
    return stabnet.build("resnet_twin", **shapes, **sizes, dense_block=block)


def chain_of(model: nn.Module) -> nn.Module | None:
    """Return the chain of a Hamiltonian net that recomputes its states; a ResNet has none."""
    last = model.dynamics.stages[-1]
    return last if hasattr(last, "stored") else None


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return all layers of one net but what comes before them, a lift or a flattening."""
    chain = chain_of(model)
    return list(model.dynamics.stages[1:] if chain is None else chain.blocks)


def monitor(x: Tensor, y: Tensor) -> Callable[[nn.Module], dict[str, Any]]:
    """Return what looks at a net during training, on some images."""

    def look(model: nn.Module) -> dict[str, Any]:
        started = time.process_time()
        blocks, device = blocks_of(model), next(model.parameters()).device
        images, labels = x.to(device), y.to(device)
        few = images[:EXAMINED], labels[:EXAMINED]
        norms = stabnet.monitors.gradient_norms(model, *few)[-len(blocks) - 1 :].tolist()
        ends = [list(b.parameters()) for b in (blocks[0], blocks[-1])]
        with torch.enable_grad():  # and through the recomputed states, as in training
            loss = F.cross_entropy(model(few[0]), few[1])
            found = torch.autograd.grad(loss, ends[0] + ends[1])
        halves = found[: len(ends[0])], found[len(ends[0]) :]
        weights = [torch.cat([g.flatten() for g in half]).norm().item() for half in halves]
        with torch.no_grad():
            accuracy = (model(images).argmax(1) == labels).double().mean().item()
        return {
            "accuracy": accuracy,
            "gradients": norms[:: max(len(blocks) // 10, 1)],
            "ratio": norms[0] / norms[-1],
            "ratio of weights": weights[0] / weights[1],
            "reconstruction": reconstruction(model, few[0]),
            "CPU seconds": time.process_time() - started,
        }

    return look


@torch.no_grad()
def reconstruction(model: nn.Module, x: Tensor) -> float | None:
    """Return how far the first states are from those recomputed from the last, relatively."""
    chain = chain_of(model)
    if chain is None:
        return None
    z = model.dynamics.stages[0](model.features(x))
    return ((chain.inverse(chain(z)) - z).norm(dim=1) / z.norm(dim=1)).max().item()


def saved_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return how much is kept for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return t.detach()  # a result that its own node held would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = F.cross_entropy(model(x), y)
    kept = sum(held.values())
    del loss  # only now may storages be reused
    return kept


def peak_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int | None:
    """Return the most memory allocated on a GPU during a step, beyond that before it."""
    if x.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    F.cross_entropy(model(x), y).backward()
    return torch.cuda.max_memory_allocated(x.device) - before


def memory(
    label: str, data: stabnet.data.Splits, device: torch.device, args: argparse.Namespace
) -> list[dict]:
    """Return what a training step keeps, at several depths."""
    rows, batch = [], next(iter(data.loader("train", batch_size=args.batch_size)))
    x, y = (t.to(device) for t in batch)
    for depth in sorted({max(args.depth // d, 1) for d in (1, 3, 10, 30, 100)}):
        model = make(label, data.dataset, depth, args).to(device)
        chain = chain_of(model)
        for stored in (True,) if chain is None else (True, False):
            if chain is not None:
                chain.stored = stored
            name = LABELS[label] + ("" if chain is None else ", stored" * stored)
            found = {"saved": saved_bytes(model, x, y), "peak": peak_bytes(model, x, y)}
            rows.append({"net": name, "depth": depth, **found})
    return rows


def train(label: str, data: stabnet.data.Splits, args: argparse.Namespace) -> dict:
    """Train and examine one net, and return what was found."""
    model = make(label, data.dataset, args.depth, args)
    x, y = next(iter(data.loader("validation", batch_size=VALIDATED)))
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        model,
        data,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        run_dir=args.out / label,
        seed=args.seed,
        device=args.device,
        monitor=monitor(x, y),
        monitor_every=args.monitor_every,
        progress=False,
    )
    cpu = time.process_time() - cpu
    monitored = [dict(m) for m in fitted.monitored]
    return {
        "net": LABELS[label],
        "parameters": sum(p.numel() for p in model.parameters()),
        "test accuracy": fitted.test["accuracy"],
        "validation accuracy": fitted.best_validation,
        "best epoch": fitted.best_epoch,
        "steps": monitored[-1]["step"],
        "CPU seconds": cpu,
        "CPU seconds of monitoring": sum(m["CPU seconds"] for m in monitored),
        "monitored": monitored,
        "memory": memory(label, data, next(model.parameters()).device, args),
    }


def with_long_steps(label: str, data: stabnet.data.Splits, args: argparse.Namespace) -> dict:
    """Return gradients and reconstruction of an untrained net of longer steps."""
    longer = argparse.Namespace(**vars(args) | {"step_size": LONGER * args.step_size})
    model = make(label, data.dataset, args.depth, longer)
    x, y = next(iter(data.loader("validation", batch_size=EXAMINED)))
    norms = stabnet.monitors.gradient_norms(model, x, y)[-args.depth - 1 :]
    ratio = (norms[0] / norms[-1]).item()
    return {"net": LABELS[label], "ratio": ratio, "reconstruction": reconstruction(model, x)}


def remembered(label: str, data: stabnet.data.Splits, args: argparse.Namespace) -> dict:
    """Return what was found for one net, now or by a run with the same options."""
    file = args.out / f"{label}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("command") != args.command:
        kept = {"command": args.command, "row": train(label, data, args)}
        file.write_text(json.dumps(kept) + "\n")
    return kept["row"]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="mnist", choices=POOL)
    parser.add_argument("--depth", type=int, default=1000, help="layers")
    parser.add_argument("--hidden", type=int, default=8, help="rows of the matrices of an energy")
    parser.add_argument("--step-size", type=float, default=0.1, help="h")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--monitor-every", type=int, default=25, help="steps between looks")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/deep-hamiltonian"))
    args = parser.parse_args(argv)
    if args.depth < 1 or args.hidden < 2:
        parser.error("--depth is at least 1, and --hidden at least 2: the ResNet has half the rows")
    args.command = command_of(__file__, parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment that the command line asks for."""
    args = parsed(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    data = stabnet.data.split(flat(args.data), seed=args.seed)
    record = {
        "command": args.command,
        "options": {n: v for n, v in vars(args).items() if n not in ("out", "command")},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "training images": len(data.train),
        "pool": POOL[args.data],
        "state": data.dataset.in_shape[0],
        "longer": LONGER,
        "long steps": [with_long_steps(label, data, args) for label in LABELS],
        "rows": [remembered(label, data, args) for label in LABELS],
    }
    draw(record, args.out / "deep-hamiltonian.png")
    text = markdown(record)
    (args.out / "deep-hamiltonian.md").write_text(text)
    (args.out / "deep-hamiltonian.json").write_text(json.dumps(record, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
