"""LyaNet on images: the protocol of Table 1 of [LyaNet], with attacks as released and correct.

Jimenez Rodriguez, Ames, Yue: "LyaNet: A Lyapunov framework for training neural ODEs", 2022. The
paper's five models, or some of them, on any registered data set:

    python examples/lyanet_images.py --data mnist --epochs 2

CIFAR-10 as JPEG (`cifar10_jpeg.tar.gz` in the folder that STABNET_DATA names), with the paper's
encoder and optimizer, on a GPU:

    python examples/lyanet_images.py --data cifar10_jpeg --models LyaNet --backbone resnet18 \
        --width 128 --optimizer nero --learning-rate 0.01 --epochs 120

Each model is attacked twice by each of the paper's attacks, 10 steps of 2/255 from a random start:
correctly, on the images in [0, 1]; and as the released code did, on the *normalized* images, which
it nevertheless clamped to [0, 1], so that its radius is a fraction of what it says and most pixels
change before the attack begins. The learning rate falls along a cosine; the release divided it by
ten. Writes one table, as Markdown and as JSON, into the output folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import tarfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from stabnet_lyapunov import decay_share, early_termination
from torch import Tensor, nn

import stabnet

LINF, L2, STEP, STEPS = 8 / 255, 127 / 255, 2 / 255, 10
TIMES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
BATCH = {"LyaNet": 64}
RELEASED_NERO = {"name": "nero", "beta": 0.9, "constrained": "convolutions"}
MODELS = ("ResNet-18", "Continuous net", "Continuous LyaNet", "Neural ODE", "LyaNet")


def build(label: str, args: argparse.Namespace, dataset: stabnet.data.Dataset) -> nn.Module:
    """Return one of the paper's models."""
    common = {
        "in_shape": dataset.in_shape,
        "num_outputs": dataset.num_outputs,
        "mean": dataset.mean,
        "std": dataset.std,
    }
    if label == "ResNet-18":
        stem = "imagenet" if args.mode == "official" else "cifar"
        return stabnet.build("resnet18", stem=stem, **common)
    if label.startswith("Continuous"):
        return stabnet.build("continuous_net", **common)
    backbone = {"name": args.backbone, "width": args.width**2}
    if args.backbone == "resnet18":
        backbone["stem"] = "imagenet" if args.mode == "official" else "cifar"
    name = "lyanet" if label == "LyaNet" else "neural_ode"
    return stabnet.build(name, mode=args.mode, backbone=backbone, **common)


def objective(label: str, args: argparse.Namespace, batches: int) -> str | dict:
    """Return what a model is trained on."""
    if label == "LyaNet":
        # The release let the gain shrink for the first half of its 120 epochs.
        schedule = {"gain_switch": args.epochs * batches // 2} if args.mode == "official" else {}
        options = {"mode": args.mode, "samples": args.samples, **schedule}
        return {"name": "lyapunov_monte_carlo", **options}
    if label == "Continuous LyaNet":
        options = {"mode": args.mode, "condition": "discrete", "terminal_weight": 1.0}
        return {"name": "lyapunov_path_integral", **options}
    return "cross_entropy"


def released_attack(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Return what the released attack finds: in normalized pixels, clamped to [0, 1]."""
    clean = model.normalize(x)
    inner = copy.deepcopy(model)
    inner.normalize = nn.Identity()
    eps = LINF if norm == "linf" else L2

    def project(d: Tensor) -> Tensor:
        if norm == "linf":
            return d.clamp(-eps, eps)
        return d * (eps / d.flatten(1).norm(dim=1).clamp(min=eps)).view(-1, 1, 1, 1)

    adversarial = (clean + project(eps * (2 * torch.rand_like(clean) - 1))).clamp(0, 1)
    for _ in range(STEPS):
        adversarial.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(inner(adversarial), y), adversarial)
        size = g.flatten(1).norm(dim=1).clamp(min=1e-10).view(-1, 1, 1, 1)
        step = STEP * (g.sign() if norm == "linf" else g / size)
        adversarial = (clean + project(adversarial.detach() + step - clean)).clamp(0, 1)
    return inner(adversarial).argmax(1) == y


def clamped(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return what is right after the clamp of the released attack alone, without any attack."""
    inner = copy.deepcopy(model)
    inner.normalize = nn.Identity()
    return inner(model.normalize(x).clamp(0, 1)).argmax(1) == y


def robustness(model: nn.Module, dataset: stabnet.data.Dataset, args: argparse.Namespace) -> dict:
    """Return the accuracy under both attacks, correct and as released, and the clamp alone."""
    found = {}
    released = {"clamp alone": (clamped, 0.0)}
    for norm, attack, eps in (("linf", "pgd", LINF), ("l2", "pgd_l2", L2)):
        options = {"name": attack, "eps": eps, "step_size": STEP, "steps": STEPS}
        batches = stabnet.data.loader(dataset.test, batch_size=500)
        result = stabnet.robustness.attack_model(
            model, batches, options, max_images=args.images, seed=args.seed
        )
        found[f"{norm} correct"] = result.to_dict()
        released[f"{norm} as released"] = (partial(released_attack, norm=norm), eps)
    device = next(model.parameters()).device
    model.eval()
    for name, (attack, eps) in released.items():
        right = total = 0
        torch.manual_seed(args.seed)
        for x, y in stabnet.data.loader(dataset.test, batch_size=500):
            x, y = (t[: args.images - total].to(device) for t in (x, y))
            right += int(attack(model, x, y).sum())
            total += len(y)
            if total == args.images:
                break
        found[name] = {"accuracy": right / total, "images": total, "eps": eps}
    return found


def experiment(label: str, data: stabnet.data.Splits, args: argparse.Namespace) -> dict:
    """Train one model, attack it, watch its flow, and return its row of the table."""
    torch.manual_seed(args.seed)
    dataset = data.dataset
    model = build(label, args, dataset)
    size = BATCH.get(label, 128)
    steps = len(data.loader("train", batch_size=size, shuffle=True, augment=False))
    cpu = time.process_time()
    fitted = stabnet.training.fit(
        model,
        data,
        objective=objective(label, args, steps),
        epochs=args.epochs,
        batch_size=size,
        learning_rate=args.learning_rate,
        optimizer=RELEASED_NERO if args.optimizer == "nero" else args.optimizer,
        run_dir=args.out / label.replace(" ", "-"),
        seed=args.seed,
        device=args.device,
        time_limit=args.time_limit,
    )
    row = {
        "label": label,
        "config": model.config,
        "batch_size": size,
        "train_seconds": round(fitted.seconds, 1),
        "train_cpu_seconds": round(time.process_time() - cpu, 1),
        "complete": fitted.complete,
        "test": dict(fitted.test),
        "robustness": robustness(model, dataset, args),
    }
    test = stabnet.data.loader(dataset.test, batch_size=500)
    step = stabnet.training.step_size_sensitivity(model, test)
    row["step_size"] = None if step is None else asdict(step)
    if label in ("Neural ODE", "LyaNet"):
        row["inference"] = asdict(early_termination(model, test, TIMES))
        x, y = next(iter(stabnet.data.loader(dataset.test, batch_size=1000)))
        device = next(model.parameters()).device
        row["decay"] = asdict(decay_share(model, x.to(device), y.to(device), args.kappa))
    return row


def markdown(rows: list[dict], args: argparse.Namespace) -> str:
    """Return the tables."""
    name = "CIFAR-10 (JPEG)" if args.data == "cifar10_jpeg" else args.data
    attacked = next(iter(rows[0]["robustness"].values()))["images"]
    lines = [
        f"# Lyapunov training on {name}",
        "",
        f"Mode `{args.mode}`, encoder `{args.backbone}` ({args.width} x {args.width} features), "
        f"{args.epochs} epochs, {args.optimizer} at {args.learning_rate:g}, seed {args.seed}. "
        f"Clean figures: all test images. Attacks: the first {attacked} test images, PGD with "
        f"{STEPS} steps of 2/255 from one random start, l-infinity 8/255 and l2 127/255 (which ten "
        "such steps do not reach the edge of). `released` is the released attack, in normalized "
        "pixels with a clamp to [0, 1]; it cannot be compared with the correct one. No model was "
        "trained against attacks, and none is guaranteed to withstand one.",
        "",
        "| model | clean error % | linf | linf released | l2 | l2 released | clamp alone | "
        "accuracy at step h and h/10 | train s (CPU s) |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        cells = [100 * (1 - row["test"]["accuracy"])]
        attacks = (
            "linf correct",
            "linf as released",
            "l2 correct",
            "l2 as released",
            "clamp alone",
        )
        cells += [100 * (1 - row["robustness"][a]["accuracy"]) for a in attacks]
        step, label = row["step_size"], row["label"] + ("" if row["complete"] else " (cut short)")
        steps = "-" if step is None else f"{step['accuracy']:.4f}, {step['refined_accuracy']:.4f}"
        time_cell = f"{row['train_seconds']:.0f} ({row['train_cpu_seconds']:.0f})"
        lines.append(
            f"| {label} | " + " | ".join(f"{c:.2f}" for c in cells) + f" | {steps} | {time_cell} |"
        )
    lines += [
        "",
        "The columns of attacks hold the error in %; `clamp alone` is that of the released "
        "clamp without an attack, which its columns cannot be read without.",
        "",
    ]
    flows = [row for row in rows if "inference" in row]
    if flows:
        lines += [
            f"Mean test loss over inference time, and the share of 1,000 test images x times with "
            f"V(t) <= 1.01 V(0) exp(-{args.kappa:g} t):",
            "",
            "| model | " + " | ".join(f"t = {t:g}" for t in TIMES) + " | decay share |",
            "|---" * (len(TIMES) + 2) + "|",
        ]
        for row in flows:
            losses = " | ".join(f"{v:.4f}" for v in row["inference"]["loss"])
            lines.append(f"| {row['label']} | {losses} | {row['decay']['share']:.4f} |")
        lines.append("")
    return "\n".join(lines)


def load(args: argparse.Namespace) -> stabnet.data.Dataset:
    """Return the data set; CIFAR-10 as JPEG is unpacked first."""
    if args.data != "cifar10_jpeg":
        return stabnet.data.load(args.data)
    root = Path("runs") / "cache" / "cifar10_jpeg"
    if not root.exists():
        unpacking = root.with_name("unpacking")
        with tarfile.open(stabnet.data.data_root() / "cifar10_jpeg.tar.gz") as archive:
            archive.extractall(unpacking, filter="data")
        unpacking.rename(root)
    return stabnet.data.load("image_folder", root=root, in_memory=True, augmentation="crop_flip")


def main() -> None:
    """Run the experiment that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="mnist", help="a registered data set, or cifar10_jpeg")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["Neural ODE", "LyaNet"])
    parser.add_argument("--mode", choices=("paper", "official"), default="paper")
    parser.add_argument("--backbone", default="convnet", help="encoder of neural ODE and LyaNet")
    parser.add_argument("--width", type=int, default=32, help="h; the features are h x h")
    parser.add_argument("--samples", type=int, default=512, help="of the Monte Carlo loss")
    parser.add_argument("--kappa", type=float, default=5.0, help="decay to look for in the flows")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--optimizer", default="adam", help="adam, …, or nero as it was released")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--images", type=int, default=1000, help="test images to attack")
    parser.add_argument("--device", help="such as cuda; the best there is by default")
    parser.add_argument("--time-limit", type=float, help="seconds of training for each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="output folder, new or empty")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / f"lyanet-{args.data}"
    data = stabnet.data.split(load(args), seed=args.seed)
    rows = []
    for label in args.models:
        rows.append(experiment(label, data, args))
        table = markdown(rows, args)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "table.md").write_text(table)
        record = {"command": vars(args) | {"out": None}, "torch": torch.__version__, "rows": rows}
        (args.out / "table.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    main()
