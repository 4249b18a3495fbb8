"""Tiny stand-ins for the tests of training: data, a model, an objective, and a killed run."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import stabnet
from stabnet.interfaces import Backbone, Cell, Objective, Solver, SolverResult

SIZES = {"train": 44, "validation": 20, "test": 21}


@dataclass
class Info:
    name: str = "tiny"
    task: str = "classification"
    in_shape: tuple[int, ...] = (1, 2, 3)
    num_outputs: int = 3
    augmentation: str = "noise"


@dataclass
class TinyData:
    """Separable blobs; augmentation draws from all three global generators."""

    dataset: Info = field(default_factory=Info)
    seed: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict(SIZES))

    def samples(self, split):
        generator = torch.Generator().manual_seed(self.seed + list(SIZES).index(split))
        n, classes = self.sizes[split], self.dataset.num_outputs
        labels = torch.randint(classes, (n,), generator=generator)
        centers = torch.eye(classes, 6).view(classes, 1, 2, 3)
        x = 0.5 * centers[labels] + 0.5 * torch.rand(n, 1, 2, 3, generator=generator)
        if self.dataset.task == "regression":
            return x, x.flatten(1)[:, :classes] ** 2
        return x, labels

    def loader(self, split, *, batch_size, shuffle, augment):
        def collate(samples):
            x, y = default_collate(samples)
            if augment:
                x = x + 0.01 * (torch.rand_like(x) + np.random.rand() + random.random())
            return x, y

        generator = torch.Generator()
        return DataLoader(
            TensorDataset(*self.samples(split)),
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=collate,
            generator=generator,
        )


class _Flat(Backbone):
    def __init__(self, in_shape):
        super().__init__()
        self.in_shape, self.out_shape = in_shape, (4,)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x.flatten(1))


class _Cell(Cell):
    def __init__(self):
        super().__init__()
        self.state_shape = self.feature_shape = (4,)
        self.linear = nn.Linear(4, 4, bias=False)
        nn.init.uniform_(self.linear.weight, -0.2, 0.2)

    def forward(self, z, u=None):
        return torch.tanh(self.linear(z) + u)


class _Picard(Solver):
    def forward(self, f, z0, u=None):
        z = z0
        for _ in range(6):
            z = f(z, u)
        residual = (f(z, u) - z).norm(dim=1) / z.norm(dim=1)
        return SolverResult(z, residual, residual < 1e-2, 7)


class _Head(nn.Module):
    """Batch norm, dropout, and a non-persistent buffer that training changes."""

    def __init__(self, outputs):
        super().__init__()
        self.norm, self.drop, self.linear = (
            nn.BatchNorm1d(4),
            nn.Dropout(0.3),
            nn.Linear(4, outputs),
        )
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, z):
        if self.training:
            self.scale.mul_(1.01)
        return self.linear(self.drop(self.norm(z))) * self.scale


@stabnet.register.model("tiny_for_training_tests", summary="a tiny equilibrium model")
def tiny(in_shape=(1, 2, 3), num_outputs=3):
    dynamics = stabnet.Equilibrium(_Cell(), _Picard())
    return stabnet.StabilityModel(
        in_shape, num_outputs, _Flat(tuple(in_shape)), dynamics, _Head(num_outputs)
    )


def make_model(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return stabnet.build("tiny_for_training_tests", **options)


class Loss(Objective):
    """Cross entropy, with what the dynamics did."""

    def forward(self, model, x, y):
        logits, solution = model.run(x)
        return F.cross_entropy(logits, y), {
            "accuracy": (logits.argmax(1) == y).float().mean(),
            "nfe": torch.tensor(float(solution.nfe)),
            "converged": solution.converged.float().mean(),
        }


class SquaredLoss(Objective):
    task = "regression"

    def forward(self, model, x, y):
        return F.mse_loss(model(x), y), {}


class KilledLoss(Loss):
    """Kills the process without warning at a training step."""

    def __init__(self, at):
        super().__init__()
        self.steps_left = at

    def forward(self, model, x, y):
        self.steps_left -= self.training
        if self.steps_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(model, x, y)


OPTIONS = dict(
    epochs=3, batch_size=8, learning_rate=0.05, gradient_clip=1.0, seed=3, device="cpu",
    progress=False,
)  # fmt: skip


if __name__ == "__main__":
    KilledLoss.__name__ = KilledLoss.__qualname__ = Loss.__qualname__
    KilledLoss.__module__ = "training_stand_ins"
    torch.set_num_threads(1)
    stabnet.training.fit(
        make_model(), TinyData(), objective=KilledLoss(int(sys.argv[2])), run_dir=sys.argv[1],
        **OPTIONS,
    )  # fmt: skip
