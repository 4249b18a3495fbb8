"""Integrators: symplectic to rounding, orders, energies of oscillators, gradients, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_hamiltonian import (
    HamiltonianField,
    ImplicitMidpoint,
    SeparableHamiltonian,
    SymplecticIntegrator,
)
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import FixedStep, VectorField

EXPLICIT = ("symplectic_euler", "leapfrog", "yoshida4")
ALL = (*EXPLICIT, "implicit_midpoint")
ORDERS = {"symplectic_euler": 1, "leapfrog": 2, "yoshida4": 4, "implicit_midpoint": 2}


class Kepler(VectorField):
    """A user's physical field: two bodies in the plane, ``H = |p|²/2 − 1/|q|``."""

    state_shape, feature_shape = (4,), ()

    def velocity(self, t: float | Tensor, p: Tensor, u: object = None) -> Tensor:
        return p

    def force(self, t: float | Tensor, q: Tensor, u: object = None) -> Tensor:
        return -q / q.norm(dim=-1, keepdim=True) ** 3

    def forward(self, t: float | Tensor, z: Tensor, u: object = None) -> Tensor:
        q, p = z.chunk(2, -1)
        return torch.cat([self.velocity(t, p), self.force(t, q)], -1)


class Oscillator(VectorField):
    """``H = (q² + p²)/2``."""

    state_shape, feature_shape = (2,), ()

    def velocity(self, t: float | Tensor, p: Tensor, u: object = None) -> Tensor:
        return p

    def force(self, t: float | Tensor, q: Tensor, u: object = None) -> Tensor:
        return -q

    def forward(self, t: float | Tensor, z: Tensor, u: object = None) -> Tensor:
        q, p = z.chunk(2, -1)
        return torch.cat([p, -q], -1)


def _built(name: str, step_size: float = 0.25) -> nn.Module:
    return stabnet.build(name, kind="integrator", step_size=step_size)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tethered(stabnet.interfaces.Potential):
    """A spring to the features that grows weaker with the distance, with weights."""

    def __init__(self, state_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.state_shape = state_shape
        self.weight = nn.Parameter(torch.rand(state_shape) + 0.5)

    def forward(self, z: Tensor, context: stabnet.interfaces.Context | None = None) -> Tensor:
        distance = 1 + (self.weight * (z - context.features)).square().sum(-1)
        return distance.sqrt() - 1


FIELDS = {
    "dense": lambda: SeparableHamiltonian((6,), hidden=5),
    "conv": lambda: SeparableHamiltonian((2, 2, 2), activation="sin"),
    "potentials": lambda: SeparableHamiltonian((4,), None, "quadratic", "icnn"),
    "features": lambda: SeparableHamiltonian((4,), (2,), potential=Tethered((2,))),
    "kepler": Kepler,
    "general_features": lambda: HamiltonianField((4,), (4,), potential=Tethered((4,))),
    "general": lambda: HamiltonianField((6,)),
    "general_potential": lambda: HamiltonianField((4,), potential="icnn"),
}
CASES = [
    (integrator, field)
    for field in FIELDS
    for integrator in (("implicit_midpoint",) if field.startswith("general") else ALL)
]


def _driving(field: VectorField, batch: int) -> Tensor | None:
    """Return features for a field that has them."""
    return _random(batch, *field.feature_shape, seed=4) if field.feature_shape else None


def _jacobian(integrator: nn.Module, field: VectorField, z: Tensor) -> Tensor:
    u = _driving(field, len(z))

    def carried(z: Tensor) -> Tensor:
        return integrator(field, z, (0.0, 0.5), u).states[-1]

    return torch.autograd.functional.jacobian(carried, z).reshape(z.numel(), z.numel())


def _symplectic_fault(M: Tensor) -> float:
    """Return ``‖MᵀJM − J‖ / ‖J‖``, relative to ``‖M‖²`` where that is large."""
    n = len(M) // 2
    zero, one = torch.zeros(n, n).double(), torch.eye(n).double()
    J = torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])
    return float((M.T @ J @ M - J).norm() / J.norm() / max(1.0, float(M.norm(2)) ** 2))


def _train(field: VectorField, integrator: nn.Module) -> None:
    """Fit the flow to other states for some dozen large steps."""
    # Midpoints are found where h times the Lipschitz constant is below 2.
    rate = 0.03 if isinstance(integrator, ImplicitMidpoint) else 0.1
    optimizer = torch.optim.Adam(field.parameters(), lr=rate)
    z, target = _random(3, *field.state_shape), _random(3, *field.state_shape, seed=1)
    u = _driving(field, 3)
    for _ in range(24):
        optimizer.zero_grad()
        (integrator(field, z, (0.0, 0.5), u).states[-1] - target).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "field_name"), CASES)
def test_jacobians_are_symplectic_before_and_after_training(name, field_name):
    torch.manual_seed(0)
    field, integrator = FIELDS[field_name]().double(), _built(name)
    for trained in (False, True):
        if trained and any(True for _ in field.parameters()):
            before = [p.detach().clone() for p in field.parameters()]
            _train(field, integrator)
            assert any(
                not torch.equal(p, b) for p, b in zip(field.parameters(), before, strict=True)
            )
        for seed in (2, 3):
            z = _random(1, *field.state_shape, seed=seed)
            if isinstance(field, Kepler):  # away from the singularity, where steps are too long
                z = z.sign() + z
            M = _jacobian(integrator, field, z)
            assert _symplectic_fault(M) <= 1e-12
            assert float(torch.linalg.matrix_norm(M, 2)) >= 1 - 1e-12


@pytest.mark.parametrize("shape", [(6,), (2, 2, 2)])
def test_explicit_euler_on_the_same_field_is_the_chapters_baseline_and_not_symplectic(shape):
    torch.manual_seed(0)
    field, h, z = SeparableHamiltonian(shape).double(), 0.5, _random(1, *shape)
    for energy in (field.kinetic_potential, field.potential):
        torch.nn.init.normal_(energy.bias)
    found = _built("euler", h)(field, z, (0.0, h)).states[-1]
    q, p = z.chunk(2, 1)
    if len(shape) == 1:  # [SNN] (26), written out
        (B, b), (C, c) = ((e.weight, e.bias) for e in (field.kinetic_potential, field.potential))
        expected = [q + h * torch.tanh(p @ B.T + b) @ B, p - h * torch.tanh(q @ C.T + c) @ C]
        torch.testing.assert_close(found, torch.cat(expected, 1), rtol=0, atol=1e-15)
    assert torch.equal(found, z + h * field(0.0, z))
    M = _jacobian(_built("euler", h), field, z)
    assert _symplectic_fault(M) > 1e-4
    # Of one step, det (I + h² K″U″), and both Hessians are positive: the volume grows.
    n = z.numel() // 2
    grown = torch.linalg.det(torch.eye(n).double() - M[:n, n:] @ M[n:, :n])
    assert float(torch.linalg.det(M)) == pytest.approx(float(grown), rel=1e-12)
    assert float(grown) > 1 + 1e-3


@pytest.mark.parametrize("name", ALL)
def test_error_falls_with_the_order_on_an_elliptic_orbit(name):
    # Eccentricity 0.2; the reference is the eighth-order method at a tight tolerance.
    z = torch.tensor([[0.8, 0.0, 0.0, math.sqrt(1.2 / 0.8)]], dtype=torch.float64)
    tight = stabnet.build("dopri8", kind="integrator", rtol=1e-12, atol=1e-12)
    exact = tight(Kepler(), z, (0.0, 1.0)).states[-1]
    errors = [
        float((_built(name, h)(Kepler(), z, (0.0, 1.0)).states[-1] - exact).norm())
        for h in (1 / 16, 1 / 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.15)


class Swing(VectorField):
    """``H = cos(3t) (q² + p²)/2``, whose flow turns states by ``sin(3t)/3``."""

    state_shape, feature_shape = (2,), ()

    def velocity(self, t: float | Tensor, p: Tensor, u: object = None) -> Tensor:
        return math.cos(3 * t) * p

    def force(self, t: float | Tensor, q: Tensor, u: object = None) -> Tensor:
        return -math.cos(3 * t) * q

    def forward(self, t: float | Tensor, z: Tensor, u: object = None) -> Tensor:
        q, p = z.chunk(2, -1)
        return torch.cat([self.velocity(t, p), self.force(t, q)], -1)


@pytest.mark.parametrize("name", ALL)
def test_error_falls_with_the_order_for_a_field_that_depends_on_time(name):
    z, angle = torch.tensor([[0.6, 0.8]], dtype=torch.float64), math.sin(3) / 3
    q, p = z.unbind(-1)
    cosine, sine = math.cos(angle), math.sin(angle)
    exact = torch.stack([cosine * q + sine * p, cosine * p - sine * q], -1)
    errors = [
        float((_built(name, h)(Swing(), z, (0.0, 1.0)).states[-1] - exact).norm())
        for h in (1 / 16, 1 / 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("h", [0.01, 0.3])
def test_energy_of_explicit_euler_grows_on_the_oscillator(h):
    z, steps = torch.tensor([[0.6, 0.8]], dtype=torch.float64), 200
    times = [h * k for k in range(steps + 1)]
    states = _built("euler", h)(Oscillator(), z, times).states
    grown = states.square().sum(-1).flatten() / float(z.square().sum())
    expected = (1 + h**2) ** torch.arange(steps + 1, dtype=torch.float64)
    torch.testing.assert_close(grown, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("h", [0.125, 1.875])
def test_energy_of_symplectic_euler_stays_within_its_bounds_for_many_steps(h):
    z = torch.tensor([[0.6, 0.8], [0.8, -0.6], [-1.0, 0.0]], dtype=torch.float64)
    integrator, field, steps = _built("symplectic_euler", h), Oscillator(), 100_000
    with torch.no_grad():  # times that are exact, so that all steps have one length
        states = integrator(field, z, [h * k for k in range(steps + 1)]).states
    energy = states.square().sum(-1) / z.square().sum(-1)
    ratio = (2 + h) / (2 - h)
    assert float(energy.max()) <= ratio * (1 + 1e-9)
    assert float(energy.min()) >= (1 - 1e-9) / ratio
    # The modified energy that the map keeps exactly, which proves the bounds.
    q, p = states.unbind(-1)
    kept = q.square() + p.square() + h * q * p
    torch.testing.assert_close(kept, kept[:1].expand_as(kept), rtol=1e-9, atol=0)


def test_implicit_midpoint_keeps_quadratic_energies():
    states = _built("implicit_midpoint", 0.5)(Oscillator(), _random(2, 2), (0.0, 10.0, 20.0)).states
    energy = states.square().sum(-1)
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [*EXPLICIT[1:], "implicit_midpoint"])
def test_symmetric_integrators_go_back_where_they_came_from(name):
    torch.manual_seed(0)
    field, z = SeparableHamiltonian((6,)).double(), _random(3, 6)
    there = _built(name)(field, z, (0.0, 1.0)).states[-1]
    back = _built(name)(field, there, (1.0, 0.0)).states[-1]
    torch.testing.assert_close(back, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_gradients_in_state_features_and_parameters_are_those_of_differences(name):
    torch.manual_seed(0)
    field = SeparableHamiltonian((4,)).double()
    z = _random(2, 4).requires_grad_()
    integrator = _built(name)
    torch.autograd.gradcheck(
        lambda z, *_: integrator(field, z, (0.0, 0.5)).states[-1], (z, *field.parameters())
    )


class Driven(nn.Module):
    """``H = p²/2 + |q − u|⁴/4``."""

    def velocity(self, t: float | Tensor, p: Tensor, u: Tensor) -> Tensor:
        return p

    def force(self, t: float | Tensor, q: Tensor, u: Tensor) -> Tensor:
        return -((q - u) ** 3)

    def forward(self, t: float | Tensor, z: Tensor, u: Tensor) -> Tensor:
        q, p = z.chunk(2, 1)
        return torch.cat([self.velocity(t, p, u), self.force(t, q, u)], 1)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_features(name):
    z, u = _random(2, 2).requires_grad_(), _random(2, 1, seed=1).requires_grad_()
    integrator = _built(name)
    torch.autograd.gradcheck(lambda z, u: integrator(Driven(), z, (0.0, 0.5), u).states[-1], (z, u))


@pytest.mark.parametrize("name", EXPLICIT)
def test_gradients_reach_times(name):
    z, times = _random(2, 2), torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)
    integrator = _built(name)
    torch.autograd.gradcheck(
        lambda times: integrator(Oscillator(), z, times).states, times.requires_grad_()
    )


def test_a_velocity_and_a_force_count_as_one_evaluation():
    counts = {name: _built(name)(Kepler(), torch.ones(1, 4), (0.0, 1.0)).nfe for name in EXPLICIT}
    # The half kicks of neighboring steps are one, but the first and the last stand alone.
    assert counts == {"symplectic_euler": 4, "leapfrog": 5, "yoshida4": 13}


@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit_integrators_compile_as_one_graph(name):
    integrator, field = _built(name), SeparableHamiltonian((4,))

    def carried(z: Tensor) -> Tensor:
        return integrator(field, z, (0.0, 0.5)).states

    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(carried, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), carried(z))


@pytest.mark.parametrize("name", EXPLICIT)
def test_fields_that_are_not_separable_are_refused_by_name(name):
    with pytest.raises(stabnet.InvalidInputError, match=f"{name}.*HamiltonianField"):
        _built(name)(HamiltonianField((4,)), torch.zeros(2, 4), (0.0, 1.0))


@pytest.mark.parametrize("scheme", ["verlet", ["leapfrog"], None])
def test_unknown_schemes_are_refused(scheme):
    with pytest.raises(stabnet.InvalidOptionError, match=r"is unknown; .*leapfrog"):
        SymplecticIntegrator(scheme, 0.1)


@pytest.mark.parametrize("name", ALL)
def test_times_of_a_tensor_are_cut_into_as_many_steps_as_numbers_are(name):
    # In float32 the interval is longer than a step by its rounding.
    integrator, z = _built(name, 0.1), torch.ones(1, 4)
    one = integrator(Kepler(), z, torch.tensor([0.3, 0.4]))
    assert one.nfe == integrator(Kepler(), z, (0.3, 0.4)).nfe


@pytest.mark.parametrize("name", ALL)
def test_step_size_can_be_changed_and_is_positive(name):
    integrator = _built(name)
    assert isinstance(integrator, FixedStep)
    coarse = integrator(Kepler(), torch.ones(1, 4), (0.0, 1.0)).nfe
    integrator.step_size = 0.125
    assert integrator(Kepler(), torch.ones(1, 4), (0.0, 1.0)).nfe > coarse
    with pytest.raises(stabnet.InvalidOptionError, match="step_size"):
        _built(name, 0.0)


def test_implicit_midpoint_refuses_what_it_cannot_differentiate():
    integrator, z = ImplicitMidpoint(), torch.ones(2, 4)
    with pytest.raises(stabnet.InvalidInputError, match="module"):
        integrator(lambda t, z, u: z, z, (0.0, 1.0))
    with pytest.raises(stabnet.InvalidInputError, match="gradient"):
        integrator(Kepler(), z, torch.tensor([0.0, 1.0], requires_grad=True))
    for wrong in (torch.ones(4), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(stabnet.InvalidInputError, match="floating point; got shape"):
            integrator(Kepler(), wrong, (0.0, 1.0))
    with pytest.raises(stabnet.ConvergenceError, match=r"1 of 2 .* not all finite"):
        integrator(Kepler(), z * torch.tensor([[1.0], [torch.nan]]), (0.0, 1.0))


def test_implicit_midpoint_says_where_no_midpoint_was_found():
    class Stiff(nn.Module):
        def forward(self, t: float, z: Tensor, u: Tensor | None = None) -> Tensor:
            return 1e3 * torch.sin(1e3 * z)

    integrator = ImplicitMidpoint(1.0, {"name": "picard", "max_evaluations": 5})
    with pytest.raises(stabnet.ConvergenceError, match="2 of 2 samples with step_size=1"):
        integrator(Stiff(), torch.ones(2, 4), (0.0, 1.0))


@pytest.mark.parametrize("frequency", [1.9, 6.0, 20.0])
def test_implicit_midpoint_makes_steps_that_are_no_contraction(frequency):
    class Oscillator(nn.Module):
        def forward(self, t: float, z: Tensor, u: Tensor | None = None) -> Tensor:
            q, p = z.chunk(2, -1)
            return torch.cat([p, -(frequency**2) * q], -1)

    z = _random(3, 2)
    states = ImplicitMidpoint(1.0)(Oscillator(), z, tuple(range(11))).states
    energies = (frequency * states[..., 0]).square() + states[..., 1].square()
    torch.testing.assert_close(energies, energies[:1].expand_as(energies), rtol=1e-11, atol=0)


def test_implicit_midpoint_under_vmap_is_nan_where_no_midpoint_was_found():
    class Stiff(VectorField):
        state_shape, feature_shape = (2,), ()

        def forward(self, t: float | Tensor, z: Tensor, u: object = None) -> Tensor:
            return torch.where(z.abs() > 1, 1e3 * torch.sin(1e3 * z), -z)

    solver = {"name": "picard", "tolerance": 1e-6, "max_evaluations": 30, "fixed_iterations": True}
    integrator, field = ImplicitMidpoint(0.25, solver), Stiff()

    def carried(z: Tensor) -> Tensor:
        return integrator(field, z, (0.0, 0.5)).states[-1]

    z = torch.tensor([[0.5, 0.2], [2.0, 0.1], [-0.1, 0.3]], dtype=torch.float64)
    found = torch.vmap(lambda z: carried(z[None])[0])(z)
    torch.testing.assert_close(found[::2], carried(z[::2]))
    assert found[1].isnan().all()


def test_implicit_midpoint_takes_a_solver_of_the_registry():
    z, loose = _random(2, 4) + 2, {"name": "picard", "tolerance": 1e-3}
    exact = ImplicitMidpoint(0.1)(Kepler(), z, (0.0, 1.0))
    found = ImplicitMidpoint(0.1, loose)(Kepler(), z, (0.0, 1.0))
    assert found.nfe < exact.nfe
    torch.testing.assert_close(found.states, exact.states, rtol=0, atol=5e-2)


@pytest.mark.parametrize("name", ALL)
def test_guarantee_leaves_open_what_the_field_must_be(name):
    (claim,) = _built(name).guarantees()
    assert claim.status == "conditional"
    assert "‖M‖₂ ≥ 1" in claim.formula
    assert "nothing of convergence" in claim.claim
