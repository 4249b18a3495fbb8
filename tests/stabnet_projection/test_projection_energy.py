"""A user's energy as a potential: zero at its center, and refused where it is seen to be none."""

from __future__ import annotations

import math

import pytest
import torch
from potential_checks import check_center, check_transforms, states, train
from stabnet_projection import Energy
from torch import nn

import stabnet
from stabnet import InvalidOptionError
from stabnet.interfaces import BoundsGrowth, BoundsSmoothness, Context

NAMED = [("pendulum", None), ("double_well", [-1.0, 0.0]), ("quartic", None)]


class _Learned(nn.Module):
    """A learned energy with its minimum at the origin, where it is 3."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, z):
        rise = self.network(z) - self.network(torch.zeros_like(z))
        return 3 + rise.square().sum(-1) + 0.1 * z.square().sum(-1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "center"), NAMED)
def test_named_energies_vanish_at_their_center_and_are_positive(name, center):
    potential = Energy((2,), name, center).double()
    check_center(potential)
    z, _ = states(potential, 1000)
    assert (potential(3 * z) >= 0).all()


def test_pendulum_and_double_well_are_the_energies_they_say():
    z = torch.tensor([[math.pi, 0.0], [0.0, 2.0], [math.pi / 2, 1.0]], dtype=torch.float64)
    value, gradient = Energy((2,), "pendulum").double().value_and_gradient(z)
    torch.testing.assert_close(value, torch.tensor([2.0, 2.0, 1.5]).double())
    torch.testing.assert_close(gradient, torch.stack([z[:, 0].sin(), z[:, 1]], 1))
    wells = Energy((3,), "double_well", [1.0, 0.0, 0.0]).double()
    z = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1, 1, 2]], dtype=torch.float64)
    torch.testing.assert_close(wells(z), torch.tensor([0, 0.25, 2.5]).double())
    quartic = Energy((2,), "quartic", convex=True).double()
    torch.testing.assert_close(quartic(z[2:, :2]), torch.tensor([1.5]).double())


@pytest.mark.parametrize(("name", "center"), NAMED)
def test_works_under_every_transform(name, center):
    check_transforms(Energy((2,), name, center).double())


def test_learned_energy_keeps_its_center_through_training():
    potential = Energy((4,), _Learned()).double()
    before = potential.function(torch.zeros(1, 4).double()) - 3
    train(potential, 1000)
    check_center(potential)
    assert torch.equal(potential(potential.center), torch.zeros(()).double())
    assert torch.equal(before, torch.zeros(1).double())
    check_transforms(potential)


def test_passes_gradcheck_in_states_centers_and_parameters():
    potential = Energy((4,), _Learned()).double()
    z, c = (t.requires_grad_() for t in states(potential, 3))

    def evaluate(z, c, *_):
        return potential.value_and_gradient(z, Context(center=c))

    assert torch.autograd.gradcheck(evaluate, (z, c, *potential.parameters()))


def test_curvature_at_the_center_is_the_energys_own():
    potential = Energy((2,), "double_well", [1.0, 0.0]).double()
    hessian = torch.func.hessian(potential)(potential.center)
    torch.testing.assert_close(hessian, torch.diag(torch.tensor([2.0, 1.0]).double()))


def test_center_of_the_context_moves_the_energy_along():
    potential = Energy((2,), "double_well", [1.0, 0.0]).double()
    z, c = states(potential, 20)
    torch.testing.assert_close(potential(z, Context(center=c)), potential(z - c + potential.center))


def test_function_takes_whole_states_of_any_shape():
    def energy(z):
        assert z.shape[1:] == (2, 3, 3)
        return nn.functional.avg_pool2d(z, 3).square().sum((1, 2, 3)) + z.square().sum((1, 2, 3))

    potential = Energy((2, 3, 3), energy)
    value, gradient = potential.value_and_gradient(torch.randn(5, 7, 2, 3, 3))
    assert value.shape == (5, 7)
    assert gradient.shape == (5, 7, 2, 3, 3)
    assert potential(torch.randn(2, 3, 3)).shape == ()


def test_autocast_does_not_touch_it():
    potential = Energy((4,), _Learned())
    z = torch.randn(9, 4)
    expected = potential.value_and_gradient(z)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(potential.value_and_gradient(z), expected, rtol=0, atol=0)
        torch.testing.assert_close(potential(z), expected[0], rtol=0, atol=0)
        assert potential.value_and_gradient(z.bfloat16())[1].dtype == torch.float32


def test_center_has_the_precision_of_the_function():
    assert Energy((4,), _Learned().double()).center.dtype == torch.float64


def test_construction_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    Energy((2,), "quartic", convex=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_claims_no_constants():
    potential = Energy((2,), "pendulum")
    assert not isinstance(potential, BoundsGrowth)
    assert not isinstance(potential, BoundsSmoothness)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(InvalidOptionError, match=r"did you mean 'pendulum'\?; available: double"):
        Energy((2,), "pendulun")


@pytest.mark.parametrize("function", [None, 3, nn.Linear, {"name": "icnn"}])
def test_what_is_no_function_is_refused(function):
    with pytest.raises(InvalidOptionError, match="must be a function"):
        Energy((2,), function)


def test_potential_is_no_function_of_an_energy():
    with pytest.raises(InvalidOptionError, match="a potential is none"):
        Energy((2,), stabnet.build("icnn", kind="potential", state_shape=(2,)))


def test_pendulum_needs_two_entries():
    with pytest.raises(InvalidOptionError, match=r"\(angle, speed\)"):
        Energy((4,), "pendulum")


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda z: z.square(), r"\(1, 2\)"),
        (lambda z: z.square().sum(-1, keepdim=True), r"\(1, 1\)"),
        (lambda z: z.square().sum(), r"\(\)"),
        (lambda z: 0.0, "float"),
    ],
)
def test_values_of_another_shape_are_refused(function, found):
    with pytest.raises(InvalidOptionError, match=rf"to {found}; it must give one value per state"):
        Energy((2,), function)


@pytest.mark.parametrize(
    ("function", "center", "words"),
    [
        ("pendulum", [0.1, 0.0], "no critical point"),
        ("quartic", [1.0, 1.0], "no critical point"),
        (nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), None, "no critical point"),
        (lambda z: z[:, 0].sqrt(), None, "no critical point"),  # not a number on one side
        ("pendulum", [math.pi, 0.0], "not least"),
        ("double_well", None, "not least"),
        (lambda z: -z.square().sum(1), None, "not least"),
    ],
)
def test_centers_that_are_no_minimum_are_refused(function, center, words):
    with pytest.raises(InvalidOptionError, match=words):
        Energy((2,), function, center)


def test_saddle_is_found_in_high_dimension():
    with pytest.raises(InvalidOptionError, match="not least"):
        Energy((50,), "double_well")
    Energy((50,), "double_well", [1.0] + [0.0] * 49)


def test_flat_and_rounded_minima_are_accepted():
    Energy((2,), lambda z: z.square().square().sum(1))
    Energy((2,), lambda z: 0 * z.sum(1) + z[:, 0].square())
    Energy((2,), "pendulum", [2 * math.pi, 0.0])


def test_energy_said_to_be_convex_is_searched_for_a_counterexample():
    assert not Energy((2,), "pendulum").convex
    assert Energy((2,), "quartic", convex=True).convex
    for name, center in (("pendulum", None), ("double_well", [1.0, 0.0])):
        with pytest.raises(InvalidOptionError, match="above its chord"):
            Energy((2,), name, center, convex=True)


def test_named_energy_is_saved_and_loaded(tmp_path):
    options = {"function": "double_well", "center": [-1.0, 0.0]}
    potential = stabnet.build("energy", kind="potential", state_shape=(2,), **options)
    loaded = stabnet.load(stabnet.save(potential, tmp_path / "energy.safetensors"))
    z = torch.randn(5, 2)
    assert torch.equal(loaded(z), potential(z))


def test_energy_without_a_name_is_not_saved(tmp_path):
    for function in (lambda z: z.square().sum(1), _Learned(2)):
        potential = stabnet.build("energy", kind="potential", state_shape=(2,), function=function)
        with pytest.raises(stabnet.UndescribedPartError, match=r"function .*register"):
            stabnet.save(potential, tmp_path / "energy.safetensors")


def test_energy_registered_in_a_script_is_saved_and_loaded(tmp_path):
    @stabnet.register.potential("learned_energy_of_a_test")
    def learned(*, state_shape, convex=False):
        """Return a learned energy."""
        return Energy(state_shape, _Learned(math.prod(state_shape)), convex=convex)

    potential = stabnet.build("learned_energy_of_a_test", kind="potential", state_shape=(2,))
    loaded = stabnet.load(stabnet.save(potential, tmp_path / "energy.safetensors"))
    z = torch.randn(5, 2)
    assert torch.equal(loaded(z), potential(z))
