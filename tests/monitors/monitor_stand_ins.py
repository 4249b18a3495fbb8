"""Blocks with known Jacobians, and models of them."""

from __future__ import annotations

import itertools

import torch
from torch import nn

import stabnet
from stabnet.interfaces import Backbone, Block, Integrator, Trajectory, VectorField


class Linear(Block):
    """``z ↦ Az``, or ``z ↦ tanh(Az)``, plus the features where it looks at them."""

    def __init__(self, matrix, bent=False, with_features=False):
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())
        self.state_shape, self.out_shape = (matrix.shape[1],), (matrix.shape[0],)
        self.bent, self.with_features = bent, with_features

    def forward(self, z, u=None):
        out = z @ self.matrix.T
        out = torch.tanh(out) if self.bent else out
        return out + u if self.with_features else out


class Chain(Block):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.state_shape = blocks[0].state_shape if blocks else (2,)

    def forward(self, z, u=None):
        for block in self.blocks:
            z = block(z, u)
        return z


class Reshaping(Block):
    """``(2, k) ↦ (2k,)``, whose pulled-back gradients are views of what is pulled back."""

    def __init__(self, width):
        super().__init__()
        self.state_shape, self.out_shape = (2, width), (2 * width,)

    def forward(self, z, u=None):
        return z.flatten(1)


class Same(Backbone):
    def __init__(self, in_shape):
        super().__init__()
        self.in_shape = self.out_shape = in_shape

    def forward(self, x):
        return x


class Spring(VectorField):
    """``H = (ω q)²/2 + p²/2``, with features as ω where there are any."""

    def __init__(self, feature_shape=()):
        super().__init__()
        self.state_shape, self.feature_shape = (2,), feature_shape

    def _stiffness(self, u):
        return 1.0 if u is None else u[..., 0] ** 2

    def forward(self, t, z, u=None):
        q, p = z.unbind(-1)
        return torch.stack([p, -self._stiffness(u) * q], -1)

    def energy(self, z, u=None):
        return (self._stiffness(u) * z[..., 0] ** 2 + z[..., 1] ** 2) / 2


class Euler(Integrator):
    """One explicit step between two times."""

    def forward(self, f, z0, times, u=None):
        states = [z0]
        for start, end in itertools.pairwise(times):
            states.append(states[-1] + (end - start) * f(start, states[-1], u))
        return Trajectory(torch.stack(states), len(times) - 1)


class SpringStep(Block):
    """A step of symplectic Euler on a field with an energy."""

    def __init__(self, step_size, feature_shape=()):
        super().__init__()
        self.vector_field, self.step_size = Spring(feature_shape), step_size
        self.state_shape = (2,)

    def forward(self, z, u=None):
        driving = u if self.vector_field.feature_shape else None
        q, p = z.unbind(-1)
        q = q + self.step_size * p
        return torch.stack([q, p - self.step_size * self.vector_field._stiffness(driving) * q], -1)


def model(dynamics, in_shape=(3,), head=None):
    return stabnet.StabilityModel(
        in_shape, 3, Same(in_shape), dynamics, nn.Identity() if head is None else head
    )


def stack(*stages, **options):
    return model(stabnet.Stack(stages), **options)


def matrix(m, n, values, seed=0):
    """Return an ``m × n`` matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)

    def orthogonal(size):
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q

    sigma = torch.zeros(m, n, dtype=torch.float64)
    sigma.diagonal()[:] = torch.tensor(values, dtype=torch.float64)
    return orthogonal(m) @ sigma @ orthogonal(n).T


def inputs(*shape, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
