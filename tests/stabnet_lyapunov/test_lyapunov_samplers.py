"""Samplers: where states and times are drawn, and from which distribution."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import optimize, stats
from stabnet_lyapunov import (
    Ball,
    DataControlledField,
    Hypercube,
    Trajectory,
    ball_radius,
    hypercube_size,
)

import stabnet
from stabnet import Flow, InvalidOptionError

N = 3


def _flow(times=(0.0, 1.0), dropout=0.0):
    torch.manual_seed(0)
    field = DataControlledField((N,), (16,), dropout=dropout)
    return Flow(field, stabnet.build("rk4", kind="integrator", step_size=0.01), times=times)


def _features(batch=2, **options):
    return torch.randn(batch, 16, generator=torch.Generator().manual_seed(1), **options)


def _draw(sampler, samples, size=2.0, batch=2, seed=None, flow=None, u=None):
    torch.manual_seed(3)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    u = _features(batch) if u is None else u
    return sampler(_flow() if flow is None else flow, u, samples, size, generator)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("kappa", [0.5, 1.0, 5.0, 30.0])
def test_cross_entropy_at_the_corner_of_the_cube_is_what_decay_from_one_reaches(kappa, classes):
    def excess(s):
        others = math.log(classes - 1) - 2 * s
        return math.log(math.log1p(math.exp(others))) + kappa

    root = optimize.brentq(excess, 1e-9, 100, xtol=1e-14)
    assert hypercube_size(kappa, classes) == pytest.approx(root, rel=1e-9)
    if kappa <= 5:
        state = torch.full((classes,), -root, dtype=torch.float64)
        state[0] = root
        found = F.cross_entropy(state, torch.tensor(0)).item()
        assert found == pytest.approx(math.exp(-kappa), rel=1e-9)


def test_the_size_is_finite_for_any_rate():
    sizes = [hypercube_size(kappa, 10) for kappa in (1.0, 100.0, 690.0, 700.0, 1e4)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(0.5 * (math.log(9) + 1e4))


@pytest.mark.parametrize(("kappa", "classes"), [(0.36, 2), (1e-9, 2), (0.1, 1), (0.0, 5), (-1, 5)])
def test_no_cube_is_an_error_that_says_so(kappa, classes):
    with pytest.raises(InvalidOptionError, match=r"no cube|not defined"):
        hypercube_size(kappa, classes)


def test_the_least_rate_of_two_classes_is_that_of_the_documentation():
    least = -math.log(math.log(2))
    assert hypercube_size(least + 1e-6, 2) == pytest.approx(0, abs=1e-5)
    with pytest.raises(InvalidOptionError):
        hypercube_size(least - 1e-6, 2)


def test_the_ball_reaches_the_corners():
    corner = torch.full((7,), 1.5)
    assert ball_radius(1.5, 7) == pytest.approx(corner.norm().item())


@pytest.mark.parametrize("per_example", [False, True])
def test_cube_samples_are_uniform_and_independent(per_example):
    ((_, z),) = _draw(Hypercube(per_example=per_example), 4000)
    assert z.shape == (2 if per_example else 1, 4000, N)
    assert z.abs().max() <= 2
    for entry in z.reshape(-1, N).T:
        assert stats.kstest(entry.numpy(), stats.uniform(-2, 4).cdf).pvalue > 1e-3
    assert torch.corrcoef(z.flatten(0, 1).T).fill_diagonal_(0).abs().max() < 0.06
    if per_example:
        assert abs(torch.corrcoef(z[:, :, 0])[0, 1]) < 0.06


@pytest.mark.parametrize("per_example", [False, True])
def test_ball_samples_have_uniform_radius_and_direction(per_example):
    ((_, z),) = _draw(Ball(per_example=per_example), 4000)
    assert z.shape == (2 if per_example else 1, 4000, N)
    radius = z.norm(dim=-1).flatten()
    assert stats.kstest(radius.numpy(), stats.uniform(0, 2).cdf).pvalue > 1e-3
    # On the sphere in three dimensions each coordinate is uniform (Archimedes).
    for entry in F.normalize(z, dim=-1).reshape(-1, N).T:
        assert stats.kstest(entry.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([radius, z[..., 0].flatten() / radius]))[0, 1]) < 0.06


@pytest.mark.parametrize("make", [Hypercube, Ball])
def test_samples_are_split_evenly_among_times(make):
    groups = _draw(make(times=3), 10)
    assert [z.shape[1] for _, z in groups] == [4, 3, 3]
    assert len({t for t, _ in groups}) == 3
    assert len(_draw(make(times=5), 2)) == 2


@pytest.mark.parametrize("interval", [(0.0, 1.0), (2.0, 5.0), (1.0, -1.0)])
def test_times_are_uniform_in_the_interval_of_the_flow(interval):
    groups = _draw(Hypercube(times=3000), 3000, flow=_flow(interval))
    low, high = sorted(interval)
    times = [t for t, _ in groups]
    assert stats.kstest(times, stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("sampler", [Hypercube(2.0), Ball(2.0), Trajectory(3, 0.5)])
def test_training_draws_anew_and_a_generator_draws_the_same(sampler):
    def same(first, second):
        return all(s == t and torch.equal(y, z) for (s, y), (t, z) in zip(*pair, strict=True))

    torch.manual_seed(0)
    flow, u = _flow(), _features()
    pair = sampler(flow, u, 6, 2.0, None), sampler(flow, u, 6, 2.0, None)
    assert not same(*pair)
    pair = _draw(sampler, 6, seed=5), _draw(sampler, 6, seed=5)
    assert same(*pair)
    pair = _draw(sampler, 6, seed=5), _draw(sampler, 6, seed=6)
    assert not same(*pair)


@pytest.mark.parametrize(
    "sampler", [Hypercube(2.0, per_example=True), Ball(2.0, per_example=True), Trajectory(3, 0.5)]
)
def test_with_a_generator_an_example_gets_the_same_states_in_any_batch(sampler):
    flow, u = _flow(), _features(4)
    together = sampler(flow, u, 6, 2.0, torch.Generator().manual_seed(5))
    for rows in (slice(0, 1), slice(2, 4)):
        apart = sampler(flow, u[rows], 6, 2.0, torch.Generator().manual_seed(5))
        for (t, all_states), (s, some) in zip(together, apart, strict=True):
            assert s == t
            mine = all_states if len(all_states) == 1 else all_states[rows]
            torch.testing.assert_close(mine, some)


def test_trajectory_states_lie_on_the_trajectories_of_inference():
    flow, u = _flow(dropout=0.5).train(), _features()
    groups = _draw(Trajectory(4), 64, flow=flow, u=u)
    assert flow.training
    assert flow.vector_field.dropout.training
    flow.eval()
    assert 1 < len(groups) <= 4
    for t, z in groups:
        assert z.shape == (2, 1, N)
        assert not z.requires_grad
        torch.testing.assert_close(z.squeeze(1), flow(u, [0.0, t]).state, atol=1e-4, rtol=1e-4)


def test_trajectory_noise_fills_a_ball_around_each_state():
    flow, u = _flow().eval().requires_grad_(False), _features()
    groups = _draw(Trajectory(2, noise=0.3), 2000, flow=flow, u=u)
    assert [z.shape for _, z in groups] == [(2, 1000, N)] * 2
    for t, z in groups:
        around = z - flow(u, [0.0, t]).state.unsqueeze(1)
        radius = around.norm(dim=-1)
        assert stats.kstest(radius.flatten().numpy(), stats.uniform(0, 0.3).cdf).pvalue > 1e-3
        assert abs(torch.corrcoef(radius)[0, 1]) < 0.12


def test_trajectories_of_a_backward_flow_are_followed_backward():
    flow, u = _flow((1.0, 0.0)).eval(), _features()
    groups = _draw(Trajectory(3), 3, flow=flow, u=u)
    times = [t for t, _ in groups]
    assert times == sorted(times, reverse=True)
    assert all(0 <= t < 1 for t in times)


def test_fewer_samples_than_times_are_enough():
    ((t, z),) = _draw(Trajectory(times=8, noise=0.1), 1)
    assert 0 < t <= 1
    assert z.shape == (2, 1, N)


@pytest.mark.parametrize("sampler", [Hypercube(), Ball(), Trajectory(2, 0.1)])
def test_half_precision_features_get_states_in_single_precision(sampler):
    with torch.autocast("cpu", torch.bfloat16):
        groups = _draw(sampler, 4, u=_features().bfloat16())
    assert all(z.dtype == torch.float32 for _, z in groups)


@pytest.mark.parametrize("sampler", [Hypercube(), Ball(), Trajectory(2, 0.1)])
def test_double_precision_is_kept(sampler):
    groups = _draw(sampler, 4, flow=_flow().double(), u=_features().double())
    assert all(z.dtype == torch.float64 for _, z in groups)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Hypercube, {"size": 0.0}),
        (Hypercube, {"size": math.inf}),
        (Hypercube, {"times": 0}),
        (Ball, {"size": -1.0}),
        (Ball, {"times": 1.5}),
        (Ball, {"times": True}),
        (Trajectory, {"times": 0}),
        (Trajectory, {"noise": -0.1}),
        (Trajectory, {"noise": math.nan}),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(make, options):
    with pytest.raises(InvalidOptionError):
        make(**options)
