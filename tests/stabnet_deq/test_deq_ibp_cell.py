"""The cell of the IBP-MonDEQ: its constraint, and its boxes against samples and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_deq import IBPMonotoneCell
from stabnet_deq.ibp.enclosure import interval_image
from torch import Tensor, nn

import stabnet
from stabnet.bounds import NoBoundError, linear_interval

STOPS = (1, 2, 5, 50)


def _cell(n: int = 12, seed: int = 0, **options) -> IBPMonotoneCell:
    torch.manual_seed(seed)
    return IBPMonotoneCell((n,), (n,), **options)


def _features(n: int, batch: int, radius: float, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    center = 2 * torch.randn(batch, n, generator=generator, dtype=dtype)
    spread = radius * torch.rand(batch, n, generator=generator, dtype=dtype)
    return center - spread, center + spread


def _equilibria(cell: IBPMonotoneCell, u: Tensor, steps: int = 120) -> Tensor:
    weight, z = cell.weight(torch.float64).detach(), torch.zeros_like(u)
    for _ in range(steps):
        z = cell.sigma(z @ weight.T + u)
    return z


def _attacked(cell: IBPMonotoneCell, lower: Tensor, upper: Tensor, seed: int) -> Tensor:
    """Return equilibria pushed outwards along random directions, by gradients through the solve."""
    generator = torch.Generator().manual_seed(seed)
    u = lower + (upper - lower) * torch.rand(lower.shape, generator=generator).double()
    direction = torch.randn(lower.shape, generator=generator).double()
    for _ in range(5):
        u.requires_grad_()
        (g,) = torch.autograd.grad((_equilibria(cell, u, 60) * direction).sum(), u)
        # The objective is piecewise linear in u, so a step goes all the way to the corner.
        u = torch.where(g > 0, upper, torch.where(g < 0, lower, u)).detach()
    return _equilibria(cell, u)


def _symmetric_part_excess(cell: IBPMonotoneCell) -> float:
    magnitude = cell.weight(torch.float64).detach().abs()
    largest = torch.linalg.eigvalsh((magnitude + magnitude.T) / 2).max()
    return float(largest - (1 - cell.monotonicity))


@given(n=st.integers(1, 20), m=st.floats(0.05, 0.95), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_symmetric_part_of_the_magnitudes_stays_below_one_minus_m(n, m, seed):
    cell = _cell(n, seed, monotonicity=m)
    assert _symmetric_part_excess(cell) <= 1e-12
    assert torch.linalg.eigvals(cell.weight(torch.float64).abs()).abs().max() <= 1 - m + 1e-12


def test_the_constraint_holds_after_optimizer_steps():
    cell = _cell(10)
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.1)
    for step in range(30):
        u = torch.randn(4, 10, generator=torch.Generator().manual_seed(step))
        z = stabnet.Equilibrium(cell, stabnet.build("picard", kind="solver"))(u).state
        optimizer.zero_grad()
        (-(z**2).mean()).backward()
        optimizer.step()
    assert _symmetric_part_excess(cell) <= 1e-12


def test_zero_rows_and_columns_leave_a_state_uncoupled_and_weights_finite():
    cell = _cell(5).double()
    with torch.no_grad():
        cell.M[2], cell.M[:, 2] = 0, 0
    weight = cell.weight()
    assert weight.isfinite().all()
    assert not weight[2].any()
    assert not weight[:, 2].any()
    weight.sum().backward()
    assert cell.M.grad.isfinite().all()
    nn.init.zeros_(cell.M)
    lower, upper = _features(5, 3, 0.1)
    low, high = cell.equilibrium_interval(lower, upper, sound=True)
    torch.testing.assert_close(low, lower.relu(), atol=1e-9, rtol=0)
    torch.testing.assert_close(high, upper.relu(), atol=1e-9, rtol=0)


def test_weights_do_not_change_with_the_scale_of_the_free_matrix():
    cell = _cell(6).double()
    before = cell.weight().detach().clone()
    cell.M.data *= 37.0
    torch.testing.assert_close(cell.weight().detach(), before)


def test_weights_are_rounded_no_more_often_than_the_enclosure_assumes():
    n = 40
    cell = _cell(n, monotonicity=0.3)
    M = cell.M.detach().double().numpy().astype(np.longdouble)
    d = (abs(M).sum(0) + abs(M).sum(1)) / (2 * (1 - np.longdouble(0.3)))
    exact = M / np.sqrt(d)[:, None] / np.sqrt(d)
    error = abs(cell.weight(torch.float64).detach().numpy() - exact) / abs(exact)
    assert error.max() <= (2 * n + 10) * 2.0**-53


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
def test_sound_boxes_contain_sampled_and_attacked_equilibria(activation, stop, dtype):
    cell = _cell(seed=stop, activation=activation, monotonicity=0.1).to(dtype)
    lower, upper = (t.double() for t in _features(12, 20, 0.5, seed=stop, dtype=dtype))
    low, high = cell.equilibrium_interval(lower, upper, sound=True, max_evaluations=stop)
    assert low.dtype == high.dtype == torch.float64
    generator = torch.Generator().manual_seed(stop)
    share = torch.rand(500, 20, 12, generator=generator).double()
    corners = share[:250] > 0.5  # half of the 10,000 samples are corners
    share = torch.cat([corners.double(), share[250:]])
    z = _equilibria(cell, (lower + share * (upper - lower)).flatten(0, 1)).unflatten(0, (500, 20))
    attacked = torch.stack([_attacked(cell, lower, upper, seed) for seed in range(10)])
    for points in (z, attacked):
        assert (points >= low).all()
        assert (points <= high).all()


@pytest.mark.parametrize("stop", [1, 2])
def test_iterates_alone_are_not_sound(stop):
    cell = _cell(monotonicity=0.1).double()
    lower, upper = _features(12, 20, 0.5)
    low, high = cell.equilibrium_interval(lower, upper, max_evaluations=stop)
    z = _equilibria(cell, (lower + upper) / 2)
    assert bool(((z < low) | (z > high)).any())


@pytest.mark.parametrize("stop", STOPS)
def test_images_of_sound_boxes_lie_inside_them(stop):
    cell = _cell(seed=3).double()
    lower, upper = _features(12, 50, 0.3)
    box = cell.equilibrium_interval(lower, upper, sound=True, max_evaluations=stop)
    low, high = interval_image(cell.weight().detach(), cell.sigma, (lower, upper), box)
    assert (low >= box[0]).all()
    assert (high <= box[1]).all()


def test_early_stopped_sound_boxes_contain_the_converged_one():
    cell = _cell(seed=4).double()
    features = _features(12, 10, 0.3)
    tight = cell.equilibrium_interval(*features, sound=True)
    for stop in (1, 2, 5):
        loose = cell.equilibrium_interval(*features, sound=True, max_evaluations=stop)
        assert (loose[0] <= tight[0] + 1e-8).all()
        assert (loose[1] >= tight[1] - 1e-8).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_radius_the_box_is_the_equilibrium(dtype):
    cell = _cell(seed=5).to(dtype)
    u, _ = _features(12, 10, 0.0, dtype=dtype)
    z = _equilibria(cell, u.double())
    low, high = cell.equilibrium_interval(u, u, sound=True)
    assert (low <= z).all()
    assert (z <= high).all()
    assert (high - low).max() < 1e-7
    close = {"atol": 100 * torch.finfo(dtype).eps, "rtol": 0}
    for bound in cell.equilibrium_interval(u, u, tolerance=1e-15, max_evaluations=100):
        torch.testing.assert_close(bound.double(), z, **close)


def test_bounds_agree_with_dense_iteration():
    cell = _cell(seed=6).double()
    lower, upper = _features(12, 8, 0.4)
    weight = cell.weight().detach()
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    low, high = torch.zeros_like(lower), torch.zeros_like(upper)
    for _ in range(400):
        low, high = (
            (low @ positive.T + high @ negative.T + lower).relu(),
            (high @ positive.T + low @ negative.T + upper).relu(),
        )
    found = cell.equilibrium_interval(lower, upper, tolerance=1e-15, max_evaluations=200)
    proven = cell.equilibrium_interval(
        lower, upper, sound=True, tolerance=1e-15, max_evaluations=200
    )
    for box in (found, proven):
        torch.testing.assert_close(box[0].detach(), low, atol=1e-12, rtol=0)
        torch.testing.assert_close(box[1].detach(), high, atol=1e-12, rtol=0)


class _Bounds(nn.Module):
    def __init__(self, cell: IBPMonotoneCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, lower: Tensor, upper: Tensor) -> Tensor:
        box = self.cell.equilibrium_interval(lower, upper, tolerance=1e-14, max_evaluations=200)
        return torch.cat(box, 1)


def test_bounds_have_the_gradients_of_every_parameter_and_of_the_radius():
    bounds = _Bounds(_cell(5, seed=7).double())
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 4, generator=generator).double()

    def f(M, U, b, eps):
        features = linear_interval(x - eps, x + eps, U, b)
        return torch.func.functional_call(bounds, {"cell.M": M}, features)

    M = torch.randn(5, 5, generator=generator).double().requires_grad_()
    U = torch.randn(5, 4, generator=generator).double().requires_grad_()
    b = torch.rand(5, generator=generator).double().requires_grad_()
    eps = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (M, U, b, eps))


def test_rows_that_cannot_be_bounded_leave_the_others_alone():
    cell = _cell(6).double()
    lower, upper = _features(6, 4, 0.2)
    expected = cell.equilibrium_interval(lower, upper, sound=True)
    upper[1, 2] = torch.inf
    low, high = cell.equilibrium_interval(lower, upper, sound=True)
    assert (low[1] == -torch.inf).all()
    assert (high[1] == torch.inf).all()
    others = [0, 2, 3]
    torch.testing.assert_close(low[others], expected[0][others], atol=1e-8, rtol=0)
    torch.testing.assert_close(high[others], expected[1][others], atol=1e-8, rtol=0)


def test_equilibria_are_unique_and_found_by_every_solver():
    cell = _cell(8, seed=8, monotonicity=0.2).double()
    u, _ = _features(8, 6, 0.0)
    expected = _equilibria(cell, u, 400)
    for name in ("picard", "anderson"):
        solver = stabnet.build(name, kind="solver", tolerance=1e-12, max_evaluations=300)
        solution = stabnet.Equilibrium(cell, solver)(u)
        assert solution.converged.all()
        torch.testing.assert_close(solution.state.detach(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_shape": (2, 3), "feature_shape": (2, 3)}, "state vector"),
        ({"state_shape": (3,), "feature_shape": (4,)}, "state vector"),
        ({"monotonicity": 1.0}, "monotonicity"),
        ({"monotonicity": 0.0}, "monotonicity"),
        ({"activation": "gelu"}, "relu, leaky_relu, tanh"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        IBPMonotoneCell(**{"state_shape": [3], "feature_shape": [3], **options})


def test_bounds_that_are_no_box_are_refused():
    cell = _cell(3)
    with pytest.raises(stabnet.InvalidInputError, match="lower > upper"):
        cell.equilibrium_interval(torch.ones(2, 3), torch.zeros(2, 3))
    with pytest.raises(stabnet.InvalidInputError, match="shapes"):
        cell.equilibrium_interval(torch.ones(2, 4), torch.ones(2, 4))


def test_guarantees_say_what_is_proven_and_how():
    cell = _cell(3)
    assert [g.status for g in cell.guarantees()] == ["by construction", "verified"]
    cell.M.data[0, 0] = torch.nan
    assert cell.guarantees()[0].status == "falsified"


@pytest.mark.parametrize("size", [5e-324, 1e-160, 1e160, 1e308])
def test_weights_that_over_or_underflow_are_not_bounded(size):
    cell = _cell(3, monotonicity=0.3).double()
    cell.M.data[0, 1] = size
    with pytest.raises(NoBoundError, match="1 entries of M"):
        cell.equilibrium_interval(*_features(3, 2, 0.1), sound=True)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_nothing_is_proven_of_weights_that_are_not_finite(value):
    cell = _cell(3)
    cell.M.data[0, 1] = value
    low, high = cell.equilibrium_interval(*_features(3, 2, 0.1), sound=True)
    assert (low == -torch.inf).all()
    assert (high == torch.inf).all()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("monotonicity", [1e-9, 1e-14, 1e-17])
def test_boxes_hold_or_are_infinite_where_nothing_contracts_to_rounding(monotonicity, activation):
    cell = _cell(2, monotonicity=monotonicity, activation=activation)
    cell.M.data.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))  # |W| is a permutation times 1 − m
    lower, upper = _features(2, 20, 0.2)
    low, high = cell.equilibrium_interval(lower, upper, sound=True)
    assert not (low.isnan() | high.isnan()).any()
    for u in (lower, upper, (lower + upper) / 2):
        z = u  # solves to rounding, by damped steps, which converge as W is skew
        for _ in range(2000):
            z = (z + cell.sigma(z @ cell.weight(torch.float64).detach().T + u)) / 2
        assert ((low <= z + 1e-12) & (z - 1e-12 <= high)).all()


@pytest.mark.parametrize("monotonicity", [0.5, 0.05, 0.003])
def test_training_bounds_are_converged_whatever_the_monotonicity(monotonicity):
    cell = _cell(6, seed=9, monotonicity=monotonicity).double()
    cell.M.data.abs_()  # the slowest: |W| = W
    lower, upper = _features(6, 4, 0.3)
    lower, upper = lower.abs(), lower.abs() + upper - lower
    box = cell.equilibrium_interval(lower, upper, tolerance=1e-6)
    image = interval_image(cell.weight(), cell.sigma, (lower, upper), box)
    change = torch.cat(image, 1) - torch.cat(box, 1)
    assert (change.norm(dim=1) <= 1.01e-6 * torch.cat(image, 1).norm(dim=1)).all()
