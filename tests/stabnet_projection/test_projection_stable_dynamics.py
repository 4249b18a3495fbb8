"""stable_dynamics: the input is the initial state, the flow is that of the field alone."""

from __future__ import annotations

import pytest
import torch
from stabnet_projection import ProjectedField, StableStep, stable_dynamics
from torch import nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError

SMALL = {
    "name": "projected",
    "vector_field": {"name": "mlp", "hidden": [8]},
    "potential": {"name": "icnn", "hidden": [8], "tangent": True},
    "alpha": 0.5,
}


def states(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def test_the_default_is_a_centered_projection_under_stable_steps():
    model = stabnet.build("stable_dynamics")
    field = model.dynamics.vector_field
    assert isinstance(field, ProjectedField)
    assert (field.alpha, field.centered, field.potential.tangent) == (0.01, True, True)
    assert isinstance(model.dynamics.integrator, StableStep)
    assert (model.in_shape, model.num_outputs) == ((2,), 2)
    assert torch.equal(model.velocity(0.0, torch.zeros(1, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_output_is_the_state_that_the_flow_carries_the_input_to(shape):
    torch.manual_seed(0)
    x = states(5, *shape)
    times = [0.0, 0.3, 0.8]
    model = stable_dynamics(in_shape=shape, vector_field=SMALL, times=times).double()
    solution = model.solve(x)
    assert solution.times.tolist() == [0.0, 0.3, 0.8]
    assert torch.equal(solution.states[0], x)
    assert torch.equal(model(x), solution.state.flatten(1))
    field = model.dynamics.vector_field
    assert torch.equal(model.velocity(0.0, x), field(0.0, x))
    exact = stabnet.build("dopri8", kind="integrator", rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        expected = exact(field, x, [0.0, 0.3, 0.8]).states
    torch.testing.assert_close(solution.states.detach(), expected, rtol=1e-3, atol=1e-3)


def test_the_potential_never_rises_along_the_default_steps_however_long_they_are():
    torch.manual_seed(0)
    method = {"name": "stable_step", "step_size": 1.0, "integrator": {"name": "rk4"}}
    model = stable_dynamics(in_shape=(4,), vector_field=SMALL, integrator=method).double()
    field = model.dynamics.vector_field
    with torch.no_grad():
        path = model.solve(3 * states(20, 4), [float(k) for k in range(8)]).states
        value = field.potential(path)
    assert (value[1:] <= torch.exp(torch.tensor(-0.5)) * value[:-1] * (1 + 1e-12)).all()


def test_a_plain_field_is_integrated_without_a_potential():
    model = stabnet.build("stable_dynamics", in_shape=(3,), vector_field="mlp")
    assert not isinstance(model.dynamics.integrator, StableStep)
    assert model.guarantees() == []
    assert model(torch.zeros(2, 3)).shape == (2, 3)


def test_guarantees_are_those_of_the_field_and_of_the_steps():
    parts = {g.part: g for g in stabnet.build("stable_dynamics").guarantees()}
    assert set(parts) == {"dynamics.vector_field", "dynamics.integrator"}
    assert all(g.status == "by construction" for g in parts.values())


@pytest.mark.parametrize("vector_field", [None, SMALL, "mlp"])
def test_saved_in_float64_it_is_loaded_with_the_same_field(tmp_path, vector_field):
    model = stabnet.build("stable_dynamics", in_shape=[4], vector_field=vector_field).double()
    stabnet.save(model, tmp_path / "model.safetensors")
    x = states(3, 4)
    with torch.no_grad():
        found = stabnet.load(tmp_path / "model.safetensors").double()
        assert torch.equal(found.velocity(0.0, x), model.velocity(0.0, x))


def test_gradients_reach_field_and_potential():
    torch.manual_seed(0)
    model = stable_dynamics(in_shape=(2,), vector_field=SMALL).double()
    x = states(20, 2)
    model(x).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant in the field cancels, for its value at the center is subtracted.
    assert without == ["dynamics.vector_field.vector_field.rest.1.bias"]


class _Driven(nn.Module):
    def __init__(self, state_shape, feature_shape):
        super().__init__()
        self.state_shape, self.feature_shape = state_shape, feature_shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (4,), "num_outputs": 2}, "num_outputs=2, but .* has 4 entries"),
        ({"in_shape": (0,)}, "in_shape=0"),
        ({"in_shape": ()}, "in_shape"),
        ({"vector_field": _Driven((3,), ())}, r"states of shape \(3,\), but in_shape is \(2,\)"),
        ({"vector_field": _Driven((2,), (5,))}, r"driven by features of shape \(5,\)"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        stable_dynamics(**options)


@pytest.mark.parametrize("times", [(0.0,), (0.0, 1.0, 1.0), (0.0, float("nan"))])
def test_times_that_form_no_interval_are_refused(times):
    with pytest.raises(InvalidInputError, match="times"):
        stable_dynamics(times=times)
