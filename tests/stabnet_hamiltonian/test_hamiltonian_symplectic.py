"""What is claimed of every Hamiltonian block, at random states, before and after training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_hamiltonian import (
    SCHEMES,
    Hamiltonian,
    Reversible,
    SeparableHamiltonian,
    reconstruction_error,
)
from torch import Tensor, nn

import stabnet

F64 = torch.float64


class Driven(stabnet.interfaces.Potential):
    """Half of the weighted squared distance to the features, and a quartic."""

    def __init__(self, state_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.state_shape = state_shape
        self.weight = nn.Parameter(torch.rand(state_shape) + 0.5)

    def forward(self, z: Tensor, context: stabnet.interfaces.Context | None = None) -> Tensor:
        distance = (z - context.features).square()
        return (self.weight * (distance + distance.square() / 8)).sum(-1) / 2


FIELDS = {
    "dense": lambda: SeparableHamiltonian((6,), hidden=5),
    "dense-sin": lambda: SeparableHamiltonian((4,), activation="sin"),
    "dense-relu": lambda: SeparableHamiltonian((4,), activation="relu"),
    "conv": lambda: SeparableHamiltonian((2, 2, 3), hidden=3),
    "conv-sigmoid": lambda: SeparableHamiltonian((4, 2, 2), activation="sigmoid"),
    "potentials": lambda: SeparableHamiltonian((4,), None, "quadratic", "icnn"),
    "features": lambda: SeparableHamiltonian((4,), (2,), potential=Driven((2,))),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def trained(chain: Reversible, u: Tensor, steps: int) -> None:
    """Fit a chain to other states, in steps so large that weights end far from their start."""
    optimizer = torch.optim.Adam(chain.parameters(), lr=0.1)
    z, target = random(4, *chain.state_shape), random(4, *chain.state_shape, seed=1)
    for _ in range(steps):
        optimizer.zero_grad()
        (chain(z, u) - target).square().sum().backward()
        optimizer.step()


def jacobians(block: nn.Module, z: Tensor, u: Tensor) -> Tensor:
    """Return one matrix per sample."""
    z = z.clone().requires_grad_()
    out = block(z, u).flatten(1)
    rows = [
        torch.autograd.grad(out[:, k].sum(), z, retain_graph=True)[0] for k in range(len(out.T))
    ]
    return torch.stack([row.flatten(1) for row in rows], 1)


def structure(n: int) -> Tensor:
    one, zero = torch.eye(n // 2, dtype=F64), torch.zeros(n // 2, n // 2, dtype=F64)
    return torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("steps", [0, 36])
def test_jacobians_are_symplectic_with_singular_values_in_pairs_and_norms_of_at_least_one(
    name, scheme, steps
):
    torch.manual_seed(0)
    blocks = [Hamiltonian(FIELDS[name](), scheme=scheme, step_size=0.4) for _ in range(2)]
    chain, u = Reversible(blocks).double(), random(4, 2, seed=2)
    before = [p.detach().clone() for p in chain.parameters()]
    trained(chain, u, steps)
    moved = [
        float((p.detach() - b).abs().max()) for p, b in zip(chain.parameters(), before, strict=True)
    ]
    # The matrix of the quadratic potential is the only parameter that has settled.
    assert not steps or sorted(moved)[len(moved) // 2] > 0.3
    for block in (*blocks, chain):
        M = jacobians(block, random(4, *chain.state_shape, seed=3), u)
        J, size = structure(M.shape[-1]), torch.linalg.matrix_norm(M, 2) ** 2
        fault = torch.linalg.matrix_norm(M.mT @ J @ M - J, 2)
        assert (fault <= 1e-12 * size).all()
        values = torch.linalg.svdvals(M)
        assert (values[:, 0] >= 1 - 1e-14).all()
        assert ((values * values.flip(1) - 1).abs().amax(1) <= 1e-12 * size).all()
        assert (values[:, 0] > 1 + 1e-3).any()


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from([name for name in FIELDS if name != "features"]),
    scheme=st.sampled_from(list(SCHEMES)),
    depth=st.integers(1, 12),
    step_size=st.floats(-1, 1).filter(lambda h: abs(h) > 1e-3),
    scale=st.floats(0.1, 3),
    size=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    dtype=st.sampled_from([torch.float32, F64]),
    seed=st.integers(0, 1000),
)
def test_inverse_is_exact_to_a_small_multiple_of_its_bound(
    name, scheme, depth, step_size, scale, size, dtype, seed
):
    torch.manual_seed(seed)
    field = FIELDS[name]
    blocks = [Hamiltonian(field(), scheme=scheme, step_size=step_size) for _ in range(depth)]
    chain = Reversible(blocks).to(dtype)
    with torch.no_grad():
        for p in chain.parameters():
            p.mul_(scale).add_(0.1 * torch.randn_like(p).abs())
    z = size * random(3, *chain.state_shape, seed=seed).to(dtype)
    found = reconstruction_error(chain, z, iterations=6)
    reached = torch.isfinite(found.bound_estimate)
    assert (found.error[reached] <= 100 * found.bound_estimate[reached]).all()


def test_error_of_the_reconstruction_is_above_rounding_so_that_its_bound_says_something():
    torch.manual_seed(0)
    blocks = [Hamiltonian(SeparableHamiltonian((6,)), step_size=1.0) for _ in range(20)]
    found = reconstruction_error(Reversible(blocks).double(), random(3, 6))
    assert (found.error > 1e-17).all()
    assert (found.bound_estimate < 1e-6).all()
