"""The damped n-link pendulum: equations of motion, energy, and an accurate simulation.

``n`` massless links of length 1 hang from one another, each with a mass of 1 at its end. ``theta``
are the angles of the links against the vertical, ``omega`` their rates; a state is
``(theta, omega)``, one after the other. With ``c_ij = n - max(i, j)``, counted from 0,

    M(theta) omega' + C(theta, omega) + G(theta) + damping * omega = 0,
    M_ij = c_ij cos(theta_i - theta_j),
    C_i  = sum_j c_ij sin(theta_i - theta_j) omega_j^2,
    G_i  = gravity (n - i) sin(theta_i).

The energy E = omega^T M omega / 2 + gravity sum_i (n - i) (1 - cos(theta_i)) changes along
trajectories at the rate -damping |omega|^2: it never rises, and without damping it is conserved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet
from stabnet.interfaces import Features

__all__ = ["Pendulum"]


class Pendulum:
    """The right-hand side of a damped n-link pendulum, to be integrated as any vector field.

    Args:
        links: their number ``n``.
        damping: friction against the rate of each link, not negative.
        gravity: its acceleration.
    """

    def __init__(self, links: int, damping: float = 0.3, gravity: float = 9.81) -> None:
        self.links, self.damping, self.gravity = links, damping, gravity
        index = torch.arange(links, dtype=torch.float64)
        self.coupling = links - torch.maximum(index[:, None], index)

    def __call__(
        self, t: float | Tensor, z: Float[Tensor, "*batch 2n"], u: Features = None
    ) -> Float[Tensor, "*batch 2n"]:
        """Return how fast states change."""
        theta, omega = z.chunk(2, -1)
        mass, difference, carried = self._parts(theta)
        force = (self.coupling.to(z) * difference.sin() * omega[..., None, :].square()).sum(-1)
        force = force + self.gravity * carried * theta.sin() + self.damping * omega
        return torch.cat([omega, -torch.linalg.solve(mass, force)], -1)

    def energy(self, z: Float[Tensor, "*batch 2n"]) -> Float[Tensor, "*batch"]:
        """Return the energy, which is zero at rest."""
        theta, omega = z.chunk(2, -1)
        mass, _, carried = self._parts(theta)
        kinetic = (omega[..., None, :] @ mass @ omega[..., None]).flatten(-2).sum(-1) / 2
        return kinetic + self.gravity * (carried * (1 - theta.cos())).sum(-1)

    @torch.no_grad()
    def simulate(
        self, z: Float[Tensor, "batch 2n"], times: Sequence[float]
    ) -> Float[Tensor, "times batch 2n"]:
        """Return the states at ``times``, in float64, to a tolerance of 1e-10 per step."""
        method = stabnet.build("dopri8", kind="integrator", rtol=1e-10, atol=1e-10)
        return method(self, z.double(), times).states

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``M``, the differences of the angles, and how many masses each link carries."""
        difference = theta[..., :, None] - theta[..., None, :]
        coupling = self.coupling.to(theta)
        return coupling * difference.cos(), difference, coupling.diagonal()
