"""The monotone cell: its constraint, its equilibria, and their Lipschitz constant."""

from __future__ import annotations

import itertools

import pytest
import scipy.optimize
import torch
from stabnet_deq import Anderson, ForwardBackward, MonotoneCell, PeacemanRachford, Picard
from stabnet_deq.monotone import ACTIVATIONS, ProximalActivation
from torch import Tensor

import stabnet
from stabnet import Equilibrium

SHAPES = {"vector": (7,), "image": (2, 3, 4), "odd image": (3, 5, 3)}


def _cell(shape, seed=0, scale=1.0, **options) -> MonotoneCell:
    torch.manual_seed(seed)
    cell = MonotoneCell(list(shape), list(shape), **options).double()
    for p in cell.parameters():
        p.data.mul_(scale)
    return cell


def _features(shape, batch=4, seed=1, scale=2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


def _matrix(operator, shape) -> Tensor:
    """Return a linear map of states as a matrix, column by column."""
    n = int(torch.tensor(shape).prod())
    with torch.no_grad():
        return operator(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, n).T


def _trained(cell: MonotoneCell, steps=8) -> MonotoneCell:
    """Fit random targets at a rate that drives the weights far from where they started."""
    u, target = _features(cell.state_shape, 6), _features(cell.state_shape, 6, seed=2)
    equilibrium = Equilibrium(cell, PeacemanRachford(1e-4, 100))
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        (equilibrium(u).state - target).square().mean().backward()
        optimizer.step()
    return cell


@pytest.mark.parametrize("monotonicity", [0.05, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_smallest_eigenvalue_stays_above_the_monotonicity_through_training(shape, monotonicity):
    cell = _cell(shape, monotonicity=monotonicity)
    before = [p.clone() for p in cell.parameters()]
    _trained(cell)
    assert all((p - q).abs().max() > 0.1 for p, q in zip(cell.parameters(), before, strict=True))
    W = cell.weight()
    dense = torch.eye(W(torch.zeros(1, *shape).double()).numel()).double() - _matrix(W, shape)
    smallest = torch.linalg.eigvalsh((dense + dense.T) / 2).min().item()
    assert smallest >= monotonicity - 1e-12
    assert W.monotonicity() == pytest.approx(smallest, abs=1e-11)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_adjoint_resolvent_and_norm_are_those_of_the_matrix(shape, scale):
    W = _cell(shape, scale=scale, monotonicity=0.3).weight()
    dense = _matrix(W, shape)
    identity = torch.eye(len(dense), dtype=torch.float64)
    torch.testing.assert_close(_matrix(W.adjoint(), shape), dense.T)
    inverse = torch.linalg.inv(identity + 0.7 * (identity - dense))
    torch.testing.assert_close(_matrix(W.resolvent(0.7), shape), inverse, rtol=1e-9, atol=1e-12)
    norm = torch.linalg.matrix_norm(identity - dense, 2).item()
    assert W.complement_norm() == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
def test_image_weight_is_made_of_circular_convolutions(kernel_size):
    """Against sums of rolled images."""
    cell = _cell((2, 4, 5), kernel_size=kernel_size, monotonicity=0.4)
    z = _features((2, 4, 5))
    offsets = list(itertools.product(range(kernel_size), repeat=2))

    def convolve(kernel: Tensor, z: Tensor) -> Tensor:
        return sum(
            torch.einsum("oc,bchw->bohw", kernel[:, :, i, j], z.roll((i, j), (2, 3)))
            for i, j in offsets
        )

    def transposed(kernel: Tensor, z: Tensor) -> Tensor:
        return sum(
            torch.einsum("oc,bohw->bchw", kernel[:, :, i, j], z.roll((-i, -j), (2, 3)))
            for i, j in offsets
        )

    A, B = cell.weight.A, cell.weight.B
    expected = 0.6 * z - transposed(A, convolve(A, z)) + convolve(B, z) - transposed(B, z)
    torch.testing.assert_close(cell.weight()(z), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_map_at_fixed_features_is_the_cell(shape):
    cell, z, u = _cell(shape), _features(shape), _features(shape, seed=5)
    assert torch.equal(cell.at(u)(z), cell(z, u))
    torch.testing.assert_close(cell.at(u[1:3])(z[1:3]), cell(z, u)[1:3])


def _root(cell: MonotoneCell, u: Tensor) -> Tensor:
    def residual(z):
        z = torch.from_numpy(z).reshape(1, *cell.state_shape)
        with torch.no_grad():
            return (cell(z, u) - z).flatten().numpy()

    found = scipy.optimize.root(residual, u.flatten().numpy(), method="hybr", tol=1e-13)
    if not found.success:
        found = scipy.optimize.root(residual, found.x, method="lm", tol=1e-14)
    assert abs(residual(found.x)).max() < 1e-9
    return torch.from_numpy(found.x).reshape(1, *cell.state_shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)], ids=["vector", "image"])
def test_every_solver_from_any_start_finds_the_solution_that_scipy_finds(shape, activation):
    cell = _cell(shape, activation=activation, monotonicity=0.7)
    u = _features(shape, 2)
    expected = torch.cat([_root(cell, u[:1]), _root(cell, u[1:])])
    solvers = (
        Anderson(1e-10, 2000),
        ForwardBackward(1e-10, 2000),
        PeacemanRachford(1e-10, 500, splitting_step=0.4),
        PeacemanRachford(1e-10, 500),
    )
    for solver, seed in itertools.product(solvers, (None, 3)):
        start = None if seed is None else _features(shape, 2, seed=seed, scale=20.0)
        solution = Equilibrium(cell, solver)(u, initial=start)
        assert solution.converged.all(), solver
        torch.testing.assert_close(solution.state, expected, rtol=1e-8, atol=1e-8)


def test_picard_agrees_where_the_cell_contracts_and_need_not_converge_elsewhere():
    mild, wild = _cell((7,), scale=0.2), _cell((7,), scale=3.0)
    u = _features((7,))
    exact = Equilibrium(mild, PeacemanRachford(1e-12, 500))(u).state
    torch.testing.assert_close(Equilibrium(mild, Picard(1e-12, 500))(u).state, exact)
    assert not Equilibrium(wild, Picard(1e-6, 500))(u).converged.any()
    assert Equilibrium(wild, PeacemanRachford(1e-6, 500))(u).converged.all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus", "leaky_relu"])
@pytest.mark.parametrize("monotonicity", [0.2, 1.0])
def test_measured_lipschitz_constant_in_the_features_is_within_the_bound(monotonicity, activation):
    """On random pairs far and near, and on pairs found by ascent on the ratio."""
    cell = _cell((6,), activation=activation, monotonicity=monotonicity, scale=0.5)
    bound = cell.feature_lipschitz_bound()
    assert bound == 1 / monotonicity
    solve = Equilibrium(cell, PeacemanRachford(1e-10, 500))
    u = _features((6,), 32, scale=3.0)
    step = _features((6,), 32, seed=4) * torch.logspace(-2, 1, 32, dtype=torch.float64)[:, None]
    step.requires_grad_()

    def ratios() -> Tensor:
        difference = solve(u + step).state - solve(u).state
        return difference.norm(dim=1) / step.norm(dim=1)

    found = [ratios().detach()]
    for _ in range(8):
        (ascent,) = torch.autograd.grad(ratios().sum(), step)
        size = step.detach().norm(dim=1, keepdim=True)
        moved = step.detach() + 0.5 * size * ascent / ascent.norm(dim=1, keepdim=True).clamp(1e-30)
        step = (moved * size / moved.norm(dim=1, keepdim=True)).requires_grad_()
        found.append(ratios().detach())
    assert torch.stack(found).max() <= bound * (1 + 1e-6)
    assert found[-1].mean() > found[0].mean()  # the ascent does look for the worst


def test_lipschitz_bound_is_attained():
    """With no weights, W = (1 − m)I, and the equilibrium is u/m where that is positive."""
    cell = _cell((3,), scale=0.0, monotonicity=0.5)
    u = _features((3,)).abs()
    state = Equilibrium(cell, PeacemanRachford(1e-12, 500))(u).state
    torch.testing.assert_close(state, 2 * u)


def test_guarantees_name_the_features_and_hold_by_construction():
    claims = _cell((4,), monotonicity=0.5).guarantees()
    assert [g.status for g in claims] == ["by construction"] * 2
    assert "1/m = 2" in claims[1].claim
    assert all("features" in g.claim for g in claims)


def test_guarantees_are_weaker_for_a_given_activation_and_void_for_nan_weights():
    given = ProximalActivation(torch.atan, lambda x: 1 / (1 + x**2))
    cell = _cell((4,), activation=given)
    assert {g.status for g in cell.guarantees()} == {"conditional"}
    cell.weight.A.data[0, 0] = torch.nan
    assert {g.status for g in cell.guarantees()} == {"falsified"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8,), (2, 4, 4)])
def test_lower_precision_is_solved_to_what_it_resolves(shape, dtype):
    cell, u = _cell(shape), _features(shape)
    exact = Equilibrium(cell, PeacemanRachford(1e-12, 500))(u).state
    low = cell.to(dtype)
    solution = Equilibrium(low, PeacemanRachford())(u.to(dtype))
    assert solution.state.dtype == dtype
    assert solution.converged.all()
    tolerance = 64 * torch.finfo(dtype).eps + 1e-4
    torch.testing.assert_close(solution.state.double(), exact, rtol=0, atol=10 * tolerance)


def test_autocast_leaves_the_weight_monotone():
    cell = _cell((8,)).float()
    with torch.autocast("cpu", torch.bfloat16):
        blocks = cell.weight().blocks
        solution = Equilibrium(cell, PeacemanRachford())(_features((8,)).float())
    assert torch.equal(blocks, cell.weight().blocks)
    assert solution.converged.all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"state_shape": (3,), "feature_shape": (4,)}, "features"),
        ({"state_shape": (3, 4), "feature_shape": (3, 4)}, "image"),
        ({"monotonicity": 0.0}, "monotonicity"),
        ({"monotonicity": float("nan")}, "monotonicity"),
        ({"activation": "gelu"}, "proximal operator"),
        ({"kernel_size": 3}, "kernel_size"),
        ({"state_shape": (2, 3, 4), "feature_shape": (2, 3, 4), "kernel_size": 4}, "kernel_size"),
        ({"state_shape": (2, 2, 4), "feature_shape": (2, 2, 4)}, "kernel_size"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, word):
    with pytest.raises(stabnet.InvalidOptionError, match=word):
        MonotoneCell(**{"state_shape": (3,), "feature_shape": (3,), **options})


def test_model_is_built_trained_and_described():
    torch.manual_seed(0)
    model = stabnet.build("mondeq", in_shape=(1, 4, 4), num_classes=3, backbone={"name": "linear"})
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.solve(x).converged.all()
    assert any("unique" in g.claim and g.status == "by construction" for g in model.guarantees())
    again = stabnet.build(**model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("backbone", ["identity", {"name": "stem", "channels": 4, "stride": 2}])
def test_model_is_convolutional_where_features_are_images(backbone):
    torch.manual_seed(0)
    model = stabnet.build("mondeq", in_shape=(2, 8, 8), num_outputs=3, backbone=backbone)
    logits, solution = model.run(torch.rand(5, 2, 8, 8))
    logits.square().sum().backward()
    assert solution.converged.all()
    assert solution.state.shape[1:] == model.backbone.out_shape
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
