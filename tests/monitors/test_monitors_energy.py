from __future__ import annotations

import pytest
import torch
from monitor_stand_ins import Euler, Linear, Spring, SpringStep, inputs, model, stack

import stabnet
from stabnet.monitors import energies, energy_changes


def flow(initial="features", feature_shape=(), times=(0.0, 0.1, 0.2)):
    return stabnet.Flow(Spring(feature_shape), Euler(), initial, times)


def test_energy_of_explicit_euler_grows_by_one_plus_h_squared_a_step():
    h, steps = 0.1, 50
    x = inputs(3, 2)
    times = [h * k for k in range(steps + 1)]
    found = energies(model(flow(), (2,)), x, times)
    start = x.square().sum(1) / 2
    expected = start * (1 + h**2) ** torch.arange(steps + 1).double()[:, None]
    assert found.shape == (steps + 1, 3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_energies_are_at_the_own_times_of_a_flow_by_default():
    net = model(flow(), (2,))
    torch.testing.assert_close(
        energies(net, torch.ones(1, 2)), energies(net, torch.ones(1, 2), (0.0, 0.1, 0.2))
    )
    assert energies(net, torch.ones(1, 2)).shape == (3, 1)


def test_energies_depend_on_the_features_that_drive_the_flow():
    net = model(flow("learned", (2,)), (2,))
    with torch.no_grad():
        net.dynamics.start.copy_(torch.tensor([1.0, 0.0]))
    found = energies(net, torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
    torch.testing.assert_close(found[0], torch.tensor([2.0, 4.5]))
    assert not found.requires_grad


def test_symplectic_euler_keeps_its_own_quantity_and_changes_the_energy_accordingly():
    h, z = 0.3, inputs(4, 2)
    net = stack(*[SpringStep(h) for _ in range(5)], in_shape=(2,))
    changes = energy_changes(net, z)
    assert changes.shape == (5, 4)
    # The scheme keeps q² + p² + hqp, so that H changes by −h/2 times the change of qp.
    step, before = SpringStep(h), z
    for change in changes:
        after = step(before)
        torch.testing.assert_close(change, h / 2 * (before.prod(1) - after.prod(1)))
        before = after


def test_layers_without_an_energy_are_nan_among_those_that_have_one():
    chain = stack(Linear(torch.eye(2)), SpringStep(0.5), in_shape=(2,))
    changes = energy_changes(chain, torch.ones(2, 2))
    assert changes[0].isnan().all()
    assert changes[1].isfinite().all()


def test_fields_get_features_only_if_they_take_them():
    u, z = torch.tensor([[2.0]]), torch.tensor([[1.0, 0.0]])
    # q̂ = 1, p̂ = −h ω² = −2: the energy 2 becomes 4; without features 1/2 becomes 5/8.
    driven = energy_changes(SpringStep(0.5, (1,)), z, u=u)
    torch.testing.assert_close(driven, torch.tensor([[2.0]]))
    alone = energy_changes(SpringStep(0.5), z, u=u)
    torch.testing.assert_close(alone, torch.tensor([[0.125]]))


def test_blocks_of_the_hamiltonian_net_have_energies_that_hardly_change_in_short_steps():
    torch.manual_seed(0)
    sizes = []
    for h in (0.1, 0.01):
        net = stabnet.build(
            "hamiltonian_net", in_shape=(4,), num_outputs=2, blocks=2, step_size=h
        ).double()
        changes = energy_changes(net, inputs(3, 4))
        assert changes[0].isnan().all()  # the lift
        sizes.append(changes[1:].abs().max())
    assert 0 < sizes[1] < sizes[0] / 20  # local error of order two


def test_models_without_energies_are_refused_with_the_way_out():
    linear = stack(Linear(torch.eye(2)), in_shape=(2,))
    with pytest.raises(stabnet.InvalidInputError, match=r"no layer of a model .* Stack"):
        energy_changes(linear, torch.zeros(1, 2))
    with pytest.raises(stabnet.InvalidInputError, match=r"dynamics is a Stack.*energy_changes"):
        energies(linear, torch.zeros(1, 2))
    with pytest.raises(stabnet.InvalidInputError, match="a SpringStep"):
        energies(SpringStep(0.1), torch.zeros(1, 2))
    (example,) = (e.example for e in stabnet.entries(kind="model") if e.name == "neural_ode")
    plain = stabnet.build("neural_ode", **example)
    with pytest.raises(stabnet.InvalidInputError, match=r"has no energy"):
        energies(plain, torch.rand(1, *plain.in_shape))
