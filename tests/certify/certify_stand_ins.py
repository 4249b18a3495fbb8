"""Small models whose parts bound themselves, data for them, and an attack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import stabnet
from stabnet.bounds import interval
from stabnet.certify import margin_bounds
from stabnet.interfaces import Backbone, Dynamics, Solution


class Net(Backbone):
    """A backbone made of a plain network."""

    def __init__(self, net, in_shape, out_shape):
        super().__init__()
        self.net, self.in_shape, self.out_shape = net, in_shape, out_shape

    def forward(self, x):
        return self.net(x)

    def interval(self, lower, upper, *, sound=False):
        return interval(self.net, lower, upper, sound=sound)


class Settled(Dynamics):
    """Dynamics whose state is a known function of the features."""

    def __init__(self, width, bound=True):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        if bound:
            self.interval = self._interval

    def forward(self, u, times=None):
        return Solution(state=self.map(u))

    def _interval(self, lower, upper, *, sound=False):
        return interval(self.map, lower, upper, sound=sound)


class Unknown(Settled):
    """Dynamics that find no sound bound for half of the batch."""

    def __init__(self, width):
        super().__init__(width, bound=False)

    def interval(self, lower, upper, *, sound=False):
        lower, upper = interval(self.map, lower, upper, sound=sound)
        lower[::2], upper[::2] = -torch.inf, torch.inf
        return lower, upper


class Silent(Dynamics):
    """Dynamics that no bound is known of."""

    def forward(self, u, times=None):
        return Solution(state=u)


def build(dynamics=None, head=None, width=12, classes=3, size=6, seed=0):
    """Return a tiny model on images (1, size, 1)."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU())
    return stabnet.StabilityModel(
        (1, size, 1),
        classes,
        Net(net, (1, size, 1), (width,)),
        dynamics or Settled(width),
        head or nn.Linear(width, classes),
    )


def data(count=90, size=6, classes=3, seed=0):
    """Return noisy images (1, size, 1) with one bright pair of pixels per class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = 0.6 * torch.rand(count, 1, size, 1, generator=generator)
    for offset in (0, 1):
        x[torch.arange(count), 0, 2 * y + offset, 0] += 0.4
    return x, y


def trained(eps=0.08, steps=150):
    """Return a model trained on the worst case within ``eps``."""
    model, (x, y) = build(), data()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(steps):
        optimizer.zero_grad()
        radius = eps * min(1.0, step / (steps / 2))
        F.cross_entropy(-margin_bounds(model, x, y, radius), y).backward()
        optimizer.step()
    return model.eval()


def pgd(model, x, y, eps, steps=20, seed=0):
    """Return attacked images: gradient ascent on the worst margin, from a random start."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    at = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(low, high)
    for _ in range(steps):
        at.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
        at = (at.detach() + eps / 4 * gradient.sign()).clamp(low, high)
    return at
