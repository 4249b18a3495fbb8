from __future__ import annotations

import pytest
import torch
from stabnet_hamiltonian import Hamiltonian, PhaseLift, SeparableHamiltonian
from torch import nn

import stabnet

F64 = torch.float64
SCHEMES = ("symplectic_euler", "leapfrog", "yoshida4")


def field(kind: str) -> SeparableHamiltonian:
    """A field for each way in which its vector–Jacobian products are computed."""
    torch.manual_seed(0)
    if kind == "potential":
        return SeparableHamiltonian((4,), potential="icnn")
    if kind == "features":
        return SeparableHamiltonian((4,), feature_shape=(2,), potential=_Driven((2,)))
    if kind.startswith("conv"):
        return SeparableHamiltonian((2, 3, 3), hidden=3, activation=kind.split("-")[1])
    return SeparableHamiltonian((4,), hidden=3, activation=kind.split("-")[1])


class _Driven(stabnet.interfaces.Potential):
    """Half of the weighted squared distance to the features."""

    def __init__(self, state_shape):
        super().__init__()
        self.state_shape = state_shape
        self.weight = torch.nn.Parameter(torch.rand(state_shape) + 0.5)

    def forward(self, z, context=None):
        return (self.weight * (z - context.features).square()).sum(-1) / 2


KINDS = ("potential", "features", *(f"conv-{a}" for a in ("tanh", "sin")))
KINDS = (*KINDS, *(f"dense-{a}" for a in ("tanh", "sigmoid", "relu", "identity", "sin")))


def randomized(block: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    block = block.to(F64)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=F64).abs())
    return block


def states(block: Hamiltonian, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, *block.state_shape, generator=generator, dtype=F64)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_inverse_returns_preimage_and_the_gradients_of_autograd(kind, scheme):
    block = randomized(Hamiltonian(field(kind), scheme=scheme, step_size=0.3, time=0.7))
    z = states(block).requires_grad_()
    u = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    out = block(z, u)
    g = torch.randn_like(out)
    inputs = [z, u, *block.parameters()]
    expected = torch.autograd.grad(out, inputs, g, allow_unused=True)
    found_z, pull = block.inverse_with_vjp(out.detach(), u)
    torch.testing.assert_close(found_z, z.detach(), rtol=1e-12, atol=1e-12)
    for found, wanted in zip(pull(g), expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_only_what_requires_a_gradient_gets_one():
    block = randomized(Hamiltonian(field("dense-tanh")))
    block.vector_field.potential.requires_grad_(False)
    z = states(block)
    assert len(block.inverse_with_vjp(z, None)[1](z)) == 1 + 2


def test_gradients_reach_what_a_parametrized_weight_is_computed_from():
    block = randomized(Hamiltonian(field("dense-tanh")))
    energy = block.vector_field.potential
    torch.nn.utils.parametrizations.weight_norm(energy, "weight")
    z = states(block)
    out = block(z)
    expected = torch.autograd.grad(out.square().sum(), list(block.parameters()))
    found = block.inverse_with_vjp(out.detach())[1](2 * out.detach())
    for a, b in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["dense-tanh", "conv-tanh", "potential"])
def test_inverse_is_exact_up_to_rounding(kind, scheme):
    block = randomized(Hamiltonian(field(kind), scheme=scheme, step_size=0.3))
    z = states(block)
    torch.testing.assert_close(block.inverse(block(z)), z, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["dense-tanh", "conv-tanh"])
def test_jacobian_is_symplectic_and_its_norm_at_least_one(kind, scheme):
    block = randomized(Hamiltonian(field(kind), scheme=scheme, step_size=0.4))
    z = states(block, 1)
    n = z.numel()
    m = torch.autograd.functional.jacobian(block, z).reshape(n, n)
    eye, zero = torch.eye(n // 2, dtype=F64), torch.zeros(n // 2, n // 2, dtype=F64)
    j = torch.cat([torch.cat([zero, eye], 1), torch.cat([-eye, zero], 1)])
    norm = torch.linalg.matrix_norm(m, 2)
    assert torch.linalg.matrix_norm(m.T @ j @ m - j, 2) <= 1e-12 * norm**2
    assert norm > 1


def test_claim_of_symplecticity_is_open_for_a_field_that_is_not_known_to_be_hamiltonian():
    class Damped(stabnet.interfaces.VectorField):
        state_shape, feature_shape = (2,), ()

        def forward(self, t, z, u=None):
            raise AssertionError("a block calls velocity and force alone")

        def velocity(self, t, p, u=None):
            return p

        def force(self, t, q, u=None):
            return -q

    assert [g.status for g in Hamiltonian(Damped()).guarantees()][1] == "conditional"
    statuses = {g.status for g in Hamiltonian(field("dense-tanh")).guarantees()}
    assert statuses == {"by construction"}
    assert [g.status for g in Hamiltonian(field("potential")).guarantees()][1] == "conditional"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "euler"}, "symplectic_euler"),
        ({"scheme": ["leapfrog"]}, "symplectic_euler"),
        ({"vector_field": SeparableHamiltonian((6,))}, r"takes states of shape \(6,\)"),
        ({"step_size": 0.0}, "identity"),
        ({"step_size": float("nan")}, "finite"),
        ({"vector_field": "hamiltonian_field"}, "implicit_midpoint"),
        ({"state_shape": (3,)}, "even"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        stabnet.build("hamiltonian", kind="block", **{"state_shape": (4,), **options})


@pytest.mark.parametrize("field", ["separable_hamiltonian", nn.Linear(4, 4), None])
def test_what_is_no_field_is_refused(field):
    with pytest.raises(stabnet.InvalidOptionError, match=type(field).__name__):
        Hamiltonian(field)


def test_states_of_another_shape_are_refused():
    block = Hamiltonian(field("dense-tanh"))
    for call in (block, block.inverse, block.inverse_with_vjp):
        with pytest.raises(stabnet.InvalidInputError, match=r"\(batch, 4\)"):
            call(torch.zeros(2, 6))


def test_lift_puts_halves_of_the_input_into_positions_and_momenta():
    x = torch.tensor([[1.0, 2.0]])
    assert PhaseLift((2,), 4)(x).tolist() == [[1, 0, 2, 0]]
    assert PhaseLift((3,))(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1, 2, 3, 0]]
    assert (
        PhaseLift((1, 2, 2), 6)(torch.ones(2, 1, 2, 2)).sum((2, 3)).tolist() == [[4] + [0] * 5] * 2
    )
    for width in (3, 2):
        with pytest.raises(stabnet.InvalidOptionError, match="at least 4"):
            PhaseLift((3,), width)
