"""trajectory_matching: what is predicted from where, and what a gap between segments is."""

from __future__ import annotations

import math

import pytest
import torch

import stabnet
from stabnet import InvalidInputError, InvalidOptionError

A = torch.tensor([[-0.3, 2.0], [-2.0, -0.5]], dtype=torch.float64)
INTERVAL = 0.2


def flow(x: torch.Tensor, time: float) -> torch.Tensor:
    return x @ torch.linalg.matrix_exp(A * time).T


def trajectories(count: int, steps: int, noise: float = 0.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1
    y = torch.stack([flow(x, INTERVAL * (j + 1)) for j in range(steps)], 1)
    return x, y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)


def linear_model(matrix: torch.Tensor = A, step_size: float = INTERVAL / 20):
    model = stabnet.build(
        "stable_dynamics",
        in_shape=(2,),
        vector_field={"name": "mlp", "hidden": []},
        integrator={"name": "rk4", "step_size": step_size},
    ).double()
    with torch.no_grad():
        model.dynamics.vector_field.first.weight.copy_(matrix)
        model.dynamics.vector_field.first.bias.zero_()
    return model


def objective(**options):
    options.setdefault("interval", INTERVAL)
    return stabnet.build("trajectory_matching", kind="objective", **options)


@pytest.mark.parametrize("segment", [None, 1, 2, 3, 7, 50])
def test_the_true_field_has_no_loss_however_trajectories_are_cut(segment):
    x, y = trajectories(5, 7)
    loss, logs = objective(segment=segment)(linear_model(), x, y)
    assert loss < 1e-14
    assert logs["relative_error"] < 1e-7


@pytest.mark.parametrize("segment", [None, 1, 2, 3, 4, 6, 7, 9])
@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_the_loss_is_that_of_its_definition(segment, weight):
    """A loop over trajectories, segments and steps, with exact exponentials, agrees."""
    steps, count = 7, 3
    x, y = trajectories(count, steps, noise=0.1, seed=1)
    matrix = A + 0.2
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    length = segment or steps
    errors, gaps = [], []
    for i in range(count):
        observed = [x[i], *y[i]]
        for j in range(1, steps + 1):
            node = (j - 1) // length * length
            carried = torch.linalg.matrix_exp(matrix * INTERVAL * (j - node)) @ observed[node]
            error = ((carried - observed[j]) / scale).square().mean()
            errors.append(error)
            if j % length == 0 and j < steps:
                gaps.append(error)
    expected = torch.stack(errors).mean()
    if gaps:
        expected = expected + weight * torch.stack(gaps).mean()
    matching = objective(segment=segment, continuity_weight=weight, scale=[0.5, 2.0])
    loss, logs = matching(linear_model(matrix), x, y)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)
    assert ("gap" in logs) == bool(gaps)
    if gaps:
        torch.testing.assert_close(logs["gap"], torch.stack(gaps).mean(), rtol=1e-6, atol=0)


def test_all_segments_are_integrated_as_one_batch():
    x, y = trajectories(4, 12)
    model = linear_model(step_size=INTERVAL)
    _, whole = objective()(model, x, y)
    _, cut = objective(segment=3)(model, x, y)
    assert whole["nfe"] == 4 * 12
    assert cut["nfe"] == 4 * 3


def test_a_trajectory_does_not_depend_on_the_others():
    x, y = trajectories(4, 5, noise=0.1)
    model, matching = linear_model(A + 0.1), objective(segment=2)
    together = matching(model, x, y)[0]
    alone = [matching(model, x[i : i + 1], y[i : i + 1])[0] for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_states_observed_once_need_no_axis_of_times():
    x, y = trajectories(4, 1, noise=0.1)
    model, matching = linear_model(A + 0.1), objective(segment=3)
    assert torch.equal(matching(model, x, y)[0], matching(model, x, y[:, 0])[0])


def test_outputs_of_a_flow_that_starts_elsewhere_are_matched_without_segments():
    torch.manual_seed(0)
    model = stabnet.build(
        "lyanet", in_shape=(5,), num_outputs=2, backbone={"name": "linear", "width": 4},
        vector_field="mlp",
    ).double()  # fmt: skip
    x, y = torch.randn(3, 5).double(), torch.randn(3, 4, 2).double()
    loss, _ = objective()(model, x, y)
    states = model.solve(x, [INTERVAL * j for j in range(5)]).states[1:]
    expected = torch.stack([model.read(z) for z in states], 1)
    torch.testing.assert_close(loss, (expected - y).square().mean())
    with pytest.raises(InvalidOptionError, match="several segments needs"):
        objective(segment=2)(model, x, y)


def test_the_gradient_goes_through_the_flow_of_every_segment():
    x, y = trajectories(3, 4, noise=0.1)
    matching = objective(segment=2, continuity_weight=1.5)
    model = linear_model(step_size=0.1)
    field = model.dynamics.vector_field

    def loss(weight):
        before = field.first.weight
        del field.first.weight
        field.first.weight = weight
        try:
            return matching(model, x, y)[0]
        finally:
            del field.first.weight
            field.first.weight = before

    assert torch.autograd.gradcheck(loss, (A + 0.1).requires_grad_())


def test_fit_learns_a_linear_system_from_noisy_trajectories_and_reports_it(tmp_path):
    torch.manual_seed(0)
    noisy, clean = trajectories(60, 6, noise=0.01), trajectories(40, 6, seed=1)
    data = stabnet.data.from_tensors(*noisy, *clean, name="spiral")
    model = stabnet.build(
        "stable_dynamics",
        in_shape=data.in_shape,
        num_outputs=data.num_outputs,
        vector_field={"name": "hurwitz"},
        integrator={"name": "rk4", "step_size": INTERVAL},
    )
    result = stabnet.training.fit(
        model,
        stabnet.data.split(data, 0.2),
        objective={"name": "trajectory_matching", "interval": INTERVAL, "segment": 3},
        epochs=20,
        batch_size=16,
        learning_rate=5e-2,
        run_dir=tmp_path / "run",
        device="cpu",
        progress=False,
    )
    assert result.test["relative_error"] < 0.1
    report = result.report.read_text()
    assert "relative_error" in report
    assert "gap" in report
    found = stabnet.training.evaluate(
        model,
        stabnet.data.split(data).loader("test", batch_size=40),
        {"name": "trajectory_matching", "interval": INTERVAL},
    )
    assert found["nfe"] == 4 * 6
    assert math.isfinite(found["loss"])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 4, 3), None), ((2, 4, 2), None), ((3,), None), ((3, 0, 2), None), ((3, 1, 4, 2), None),
     ((3, 4, 2), torch.int64)],
)  # fmt: skip
def test_observations_of_another_shape_are_refused(shape, dtype):
    y = torch.zeros(shape, dtype=dtype or torch.float64)
    with pytest.raises(InvalidInputError, match="observations are floating-point numbers of shape"):
        objective()(linear_model(), torch.zeros(3, 2).double(), y)


@pytest.mark.parametrize(
    "options",
    [{"interval": 0.0}, {"interval": -1.0}, {"segment": 0}, {"segment": 1.5},
     {"continuity_weight": -1.0}, {"scale": [0.0, 1.0]}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        objective(**options)


def test_a_model_without_a_flow_is_refused():
    model = stabnet.build(
        "deq", in_shape=(2,), num_outputs=2, backbone={"name": "linear", "width": 4}
    )
    with pytest.raises(InvalidOptionError, match="dynamics is one Flow"):
        objective()(model, torch.zeros(3, 2), torch.zeros(3, 4, 2))


@pytest.mark.parametrize("segment", [None, 2])
def test_a_batch_without_samples_is_refused_since_its_mean_is_none(segment):
    x, y = trajectories(1, 5)
    with pytest.raises(InvalidInputError, match="no observations; a mean needs at least one"):
        objective(segment=segment)(linear_model(), x[:0], y[:0])


@pytest.mark.parametrize("segment", [None, 2])
def test_observations_in_double_precision_fit_a_model_in_single(segment):
    x, y = trajectories(4, 5, noise=0.1)
    expected, _ = objective(segment=segment)(linear_model(A + 0.1), x, y)
    loss, _ = objective(segment=segment)(linear_model(A + 0.1).float(), x.float(), y)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
