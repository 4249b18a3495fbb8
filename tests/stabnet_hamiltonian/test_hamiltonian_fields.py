"""Fields: J∇H of their energies, closed gradients, samples, features, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_hamiltonian import HamiltonianField, LayerEnergy, SeparableHamiltonian
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Separable

ACTIVATIONS = ("tanh", "sigmoid", "relu", "sin", "identity")


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _trained(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module in float64 with all parameters away from where they started."""
    generator = torch.Generator().manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).double())
    return module


FIELDS = {
    "dense": lambda: SeparableHamiltonian((6,), hidden=5),
    "conv": lambda: SeparableHamiltonian((2, 2, 3), hidden=3, activation="sigmoid"),
    "potentials": lambda: SeparableHamiltonian((4,), None, "quadratic", "icnn"),
    "mixed": lambda: SeparableHamiltonian((4,), potential="icnn", activation="sin"),
    "general": lambda: HamiltonianField((6,), hidden=7),
    "general_conv": lambda: HamiltonianField([2, 2, 2], kernel_size=1),
    "general_potential": lambda: HamiltonianField((4,), potential="icnn"),
}


@pytest.fixture(params=FIELDS)
def field(request):
    torch.manual_seed(0)
    return _trained(FIELDS[request.param]())


def test_field_is_the_symplectic_gradient_of_its_energy(field):
    z = _random(3, *field.state_shape).requires_grad_()
    (slope,) = torch.autograd.grad(field.energy(z).sum(), z)
    q_slope, p_slope = slope.chunk(2, 1)
    torch.testing.assert_close(field(0.0, z), torch.cat([p_slope, -q_slope], 1))


def test_energy_does_not_change_along_the_field(field):
    z = _random(3, *field.state_shape).requires_grad_()
    (slope,) = torch.autograd.grad(field.energy(z).sum(), z)
    rates = (slope * field(0.0, z).detach()).flatten(1).sum(1)
    assert float(rates.abs().max()) <= 1e-13 * float(slope.square().sum())


def test_samples_of_a_state_are_states(field):
    z = _random(1, 5, *field.state_shape)
    torch.testing.assert_close(field(0.0, z)[0], field(0.0, z[0]))
    torch.testing.assert_close(field.energy(z)[0], field.energy(z[0]))


def test_gradients_are_those_of_differences(field):
    z = _random(2, *field.state_shape).requires_grad_()
    torch.autograd.gradcheck(lambda z, *_: field(0.0, z), (z, *field.parameters()), fast_mode=True)


def test_states_of_another_shape_are_refused(field):
    with pytest.raises(stabnet.InvalidInputError, match="expected states"):
        field(0.0, torch.zeros(3, *(n + 2 for n in field.state_shape)))


def test_guarantees_are_of_the_state_and_of_the_exact_flow(field):
    claims = field.guarantees()
    known = not any(isinstance(m, stabnet.interfaces.Potential) for m in field.modules())
    assert {g.status for g in claims} == {"by construction" if known else "conditional"}
    assert any("MᵀJM = J" in g.formula for g in claims)
    assert all(any("flow is exact" in a for a in g.assumptions) for g in claims)


def test_guarantees_say_what_they_need_of_relus_and_of_potentials():
    relu = SeparableHamiltonian((4,), activation="relu").guarantees()[0]
    assert any("almost every state" in a for a in relu.assumptions)
    given = HamiltonianField((4,), potential="icnn").guarantees()[0]
    assert "twice differentiable" in given.detail
    assert "batch normalization" in given.detail


def test_separable_field_is_that_of_the_chapter():
    torch.manual_seed(0)
    field = _trained(SeparableHamiltonian((6,), hidden=5))
    z = _random(3, 6)
    q, p = z.chunk(2, 1)
    K, U = field.kinetic_potential, field.potential
    velocity = torch.tanh(p @ K.weight.T + K.bias) @ K.weight
    force = -torch.tanh(q @ U.weight.T + U.bias) @ U.weight
    torch.testing.assert_close(field.velocity(0.0, p), velocity)
    torch.testing.assert_close(field.force(0.0, q), force)
    torch.testing.assert_close(field(0.0, z), torch.cat([velocity, force], 1))
    assert isinstance(field, Separable)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_closed_gradient_is_that_of_the_energy(shape, activation):
    energy = _trained(LayerEnergy(shape, hidden=3, activation=activation))
    x = 2 * _random(5, *shape).requires_grad_()
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    torch.testing.assert_close(energy.gradient(x), slope)


def test_logarithm_of_cosh_neither_overflows_nor_cancels():
    energy = LayerEnergy((1,)).double()
    with torch.no_grad():
        energy.weight.fill_(1)
    x = torch.tensor([1e-8, 0.01, 1.0, 3.0, 700.0, 1e5], dtype=torch.float64)
    near = [5e-17, math.log1p(2 * math.sinh(0.005) ** 2)]
    far = [*(math.log(math.cosh(v)) for v in (1.0, 3.0, 700.0)), 1e5 - math.log(2)]
    expected = torch.tensor([*near, *far], dtype=torch.float64)
    torch.testing.assert_close(energy(x[:, None]), expected, rtol=1e-14, atol=0)


def test_convolution_is_undone_by_its_adjoint_in_the_inner_product():
    energy = _trained(LayerEnergy((2, 4, 5), hidden=3, activation="identity")).requires_grad_(False)
    with torch.no_grad():
        energy.bias.zero_()
    x, y = _random(1, 2, 4, 5), _random(2, 2, 4, 5)[1:]
    # AᵀA is symmetric: 〈y, AᵀAx〉 = 〈AᵀAy, x〉, and 〈x, AᵀAx〉 = 2E(x).
    assert float((y * energy.gradient(x)).sum()) == pytest.approx(
        float((energy.gradient(y) * x).sum()), rel=1e-12
    )
    assert float((x * energy.gradient(x)).sum()) == pytest.approx(2 * float(energy(x)), rel=1e-12)


class _Tracking(stabnet.interfaces.Potential):
    """``|z − u|²/2``, whose features are where it vanishes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.state_shape = shape

    def forward(self, z, context=None):
        u = context.features
        return (z - (u.unsqueeze(1) if z.ndim == 3 else u)).square().sum(-1) / 2


def test_features_reach_the_potentials_at_samples_too():
    field = SeparableHamiltonian((4,), (2,), potential=_Tracking((2,))).double()
    z, u = _random(1, 5, 4), _random(3, 2)
    found = field(0.0, z, u)
    assert found.shape == (3, 5, 4)
    torch.testing.assert_close(found[..., 2:], u[:, None] - z[..., :2].expand(3, 5, 2))
    torch.testing.assert_close(field(0.0, z[0, :3], u)[:, 2:], u - z[0, :3, :2])
    assert field.energy(z, u).shape == (3, 5)
    with pytest.raises(stabnet.InvalidInputError, match="Pass u"):
        field(0.0, z)
    with pytest.raises(stabnet.InvalidInputError, match="got \\(3, 5\\)"):
        field(0.0, z, _random(3, 5))


def test_energies_of_one_layer_refuse_features():
    with pytest.raises(stabnet.InvalidOptionError, match="initial='features'"):
        SeparableHamiltonian((4,), (3,))
    assert SeparableHamiltonian((4,), ()).feature_shape == ()


@pytest.mark.parametrize("build", [SeparableHamiltonian, HamiltonianField])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_shape": (5,)}, "even"),
        ({"state_shape": (4, 3)}, "vectors"),
        ({"state_shape": (4,), "activation": "gelu"}, "antiderivative"),
        ({"state_shape": (4, 3, 3), "kernel_size": 2}, "odd"),
        ({"state_shape": (4,), "activation": ["tanh"]}, "antiderivative"),
        ({"state_shape": (4,), "hidden": 0}, "hidden"),
        ({"state_shape": (4,), "potential": nn.Linear(4, 1)}, "needs a potential.*got Linear"),
        ({"state_shape": (6,), "potential": LayerEnergy((4,))}, r"got LayerEnergy of .*\(4,\)"),
    ],
)
def test_options_out_of_range_are_refused(build, options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        build(**options)


def test_hidden_without_an_energy_of_one_layer_is_refused():
    with pytest.raises(stabnet.InvalidOptionError, match="Give it to the potential"):
        HamiltonianField((4,), potential="icnn", hidden=8)
    SeparableHamiltonian((4,), potential="icnn", hidden=8)
    with pytest.raises(stabnet.InvalidOptionError, match="Give it to the potential"):
        SeparableHamiltonian((4,), potential="icnn", kinetic_potential="quadratic", hidden=8)


def test_field_works_in_a_flow_that_starts_at_its_features():
    flow = stabnet.Flow(
        SeparableHamiltonian((4,)),
        stabnet.build("leapfrog", kind="integrator", step_size=0.5),
        initial="features",
    )
    assert flow(torch.ones(3, 4)).state.shape == (3, 4)
