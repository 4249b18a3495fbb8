"""The convolutional and the multi-scale cell."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from stabnet_deq import ConvCell, MultiscaleCell, spectral_radius
from torch import nn

import stabnet
from stabnet import Equilibrium, StabilityModel
from stabnet.interfaces import Solver, SolverResult

GRID = (4, 3, 5)


def conv(**options):
    torch.manual_seed(0)
    return ConvCell(GRID, GRID, **{"groups": 2, **options}).double()


def multiscale(state_shape=((2, 3, 5), (4, 2, 3)), groups=2, **options):
    torch.manual_seed(0)
    finest = state_shape if isinstance(state_shape[0], int) else state_shape[0]
    return MultiscaleCell(state_shape, finest, groups=groups, **options).double()


def features(cell, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *cell.feature_shape, generator=generator, dtype=torch.float64)


def state(cell, batch=3, seed=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(shape):
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    shapes = cell.state_shape
    return tuple(map(draw, shapes)) if isinstance(shapes[0], tuple) else draw(shapes)


def parts(z):
    return z if isinstance(z, tuple) else (z,)


def solver(tolerance=1e-12, **options):
    return stabnet.build(
        "picard", kind="solver", tolerance=tolerance, max_evaluations=400, **options
    )


class Picard(Solver):
    """A fixed number of plain steps, so that tracing sees no decision."""

    def forward(self, f, z0, u=None):
        z = z0
        for _ in range(3):
            z = f(z, u)
        residual = torch.linalg.vector_norm(f(z, u) - z, dim=-1)
        return SolverResult(z, residual, residual < 1, 4)


CELLS = [conv, multiscale]


def test_conv_cell_is_the_residual_block_of_its_docstring():
    cell = conv(hidden=6)
    z, u = state(cell), features(cell)
    with torch.no_grad():
        for p in cell.parameters():
            p.uniform_(-1, 1)
    branch = cell.branch

    def normalized(x, norm):
        grouped = x.unflatten(1, (2, -1))
        mean = grouped.mean((2, 3, 4), keepdim=True)
        variance = grouped.var((2, 3, 4), keepdim=True, unbiased=False)
        x = ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        return x * norm.weight[:, None, None] + norm.bias[:, None, None]

    q = normalized(F.relu(F.conv2d(z, branch.inner.weight, padding=1)), branch.inner_norm)
    b = normalized(u + F.conv2d(q, branch.outer.weight, padding=1), branch.outer_norm)
    torch.testing.assert_close(cell(z, u), normalized(F.relu(z + b), cell.norm))


def test_multiscale_cell_with_one_scale_is_the_conv_cell():
    one, cell = multiscale((GRID,)), conv()
    names = {"branches.0": "branch", "norms.0": "norm"}
    weights = {
        name.replace(old, new): w
        for name, w in one.state_dict().items()
        for old, new in names.items()
        if name.startswith(old)
    }
    cell.load_state_dict(weights)
    assert len(weights) == len(one.state_dict())
    z, u = state(cell), features(cell)
    torch.testing.assert_close(one((z,), u)[0], cell(z, u), rtol=0, atol=0)


@pytest.mark.parametrize("make", CELLS)
@pytest.mark.parametrize("training", [True, False])
def test_a_sample_depends_on_itself_alone_in_every_mode(make, training):
    cell = make().train(training)
    assert cell.per_sample
    z, u = state(cell), features(cell)
    for i in range(3):
        alone = cell(
            tuple(p[i : i + 1] for p in z) if isinstance(z, tuple) else z[i : i + 1], u[[i]]
        )
        for one, together in zip(parts(alone), parts(cell(z, u)), strict=True):
            torch.testing.assert_close(one[0], together[i])


@pytest.mark.parametrize("make", CELLS)
def test_the_map_at_fixed_features_is_the_cell(make):
    cell = make()
    z, u = state(cell), features(cell)
    for one, other in zip(parts(cell.at(u)(z)), parts(cell(z, u)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", CELLS)
def test_a_fresh_cell_contracts(make):
    shape = (8, 5, 4)
    torch.manual_seed(0)
    cell = (ConvCell if make is conv else MultiscaleCell)(shape, shape, groups=4)
    equilibrium = Equilibrium(cell, solver(1e-4))
    u = features(cell).float().relu()  # as the stem gives them
    assert bool(equilibrium(u).converged.all())
    assert float(spectral_radius(equilibrium, u).max()) < 0.95


@pytest.mark.parametrize("make", CELLS)
def test_gradients_through_the_equilibrium_agree_with_differences(make):
    small = {"state_shape": ((2, 2, 3), (2, 1, 2))} if make is multiscale else {}
    cell = make(**small)
    equilibrium = Equilibrium(cell, solver(1e-13))
    u = features(cell, batch=1).requires_grad_()
    name = "cell.branches.1.outer.weight" if make is multiscale else "cell.branch.outer.weight"
    weight = equilibrium.get_parameter(name).detach().clone().requires_grad_()

    def solved(u, weight):
        solution = torch.func.functional_call(equilibrium, {name: weight}, (u,))
        return tuple(p.pow(2) for p in parts(solution.state))

    assert torch.autograd.gradcheck(solved, (u, weight), fast_mode=True)


@pytest.mark.parametrize(
    ("cell", "size"),
    [
        ({"name": "conv", "groups": 2}, 4 * 5 * 4),
        ({"name": "multiscale", "groups": 2}, 4 * 5 * 4 + 8 * 3 * 2),
    ],
    ids=["conv", "multiscale"],
)
def test_a_model_with_a_state_on_grids_is_read_by_its_head(cell, size):
    torch.manual_seed(0)
    backbone = stabnet.build("stem", kind="backbone", in_shape=(1, 9, 8), channels=4, stride=2)
    shape = backbone.out_shape
    built = stabnet.build(cell, kind="cell", state_shape=shape, feature_shape=shape)
    model = StabilityModel(
        (1, 9, 8), 3, backbone, Equilibrium(built, solver(1e-5)), nn.Linear(size, 3)
    )
    logits, solution = model.run(torch.rand(5, 1, 9, 8))
    assert logits.shape == (5, 3)
    assert bool(solution.converged.all())
    logits.sum().backward()
    # The last normalization undoes some weights' scale, but every one of them has a gradient.
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_coarse_scales_matter_to_the_fine_one():
    cell = multiscale(weight_scale=1.0)
    z, u = state(cell), features(cell)
    moved = (z[0], z[1] + torch.linspace(0, 1, 3, dtype=torch.float64))
    with torch.no_grad():
        change = cell(moved, u)[0] - cell(z, u)[0]
    assert float(change.abs().max()) > 1e-3


@pytest.mark.parametrize("make", CELLS)
def test_one_evaluation_compiles_and_exports(make):
    cell = make()
    z, u = state(cell), features(cell)
    expected = parts(cell(z, u))
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(cell, (z, u)).module()
    for traced in (compiled, exported):
        for one, other in zip(parts(traced(z, u)), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_an_equilibrium_of_a_tuple_state_compiles():
    cell = multiscale()
    equilibrium = Equilibrium(cell, Picard()).eval()
    u = features(cell)
    with torch.no_grad():
        expected = equilibrium(u).state
        compiled = torch.compile(equilibrium, fullgraph=True, backend="aot_eager")(u).state
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("state_shape", "scales", "expected"),
    [
        ((2, 7, 5), None, ((2, 7, 5), (4, 4, 3))),
        ([2, 8, 8], 3, ((2, 8, 8), (4, 4, 4), (8, 2, 2))),
        ([2, 7, 1], 4, ((2, 7, 1), (4, 4, 1), (8, 2, 1), (16, 1, 1))),
        ([[2, 7, 5], [6, 4, 3]], None, ((2, 7, 5), (6, 4, 3))),
    ],
)
def test_scales_halve_the_grid_and_round_up(state_shape, scales, expected):
    cell = MultiscaleCell(state_shape, (2, *expected[0][1:]), scales=scales, groups=2)
    assert cell.state_shape == expected
    z = tuple(torch.rand(2, *shape) for shape in expected)
    image = cell(z, torch.rand(2, *expected[0]))
    assert tuple(tuple(p.shape[1:]) for p in image) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvCell((4,), (4,)), "both need one shape.*'stem' or 'identity'"),
        (lambda: ConvCell((4, 3, 3), (8, 3, 3)), "both need one shape"),
        (lambda: ConvCell((4, 3, 3), (4, 3, 3)), "groups=8 must divide.*4"),
        (lambda: ConvCell((4, 3, 3), (4, 3, 3), hidden=3, groups=2), "must divide.*3"),
        (lambda: ConvCell((2, 1, 1), (2, 1, 1), groups=2), "one number to a group"),
        (lambda: MultiscaleCell((4,), (4,)), r"\(channels, height, width\) of the finest"),
        (lambda: MultiscaleCell((), ()), r"\(channels, height, width\) of the finest"),
        (lambda: MultiscaleCell(((2, 4, 4), (2, 4)), (2, 4, 4)), "one such shape per scale"),
        (lambda: MultiscaleCell(((2, 5, 4), (2, 2, 2)), (2, 5, 4)), r"rounding up.*\(2, 3, 2\)"),
        (lambda: MultiscaleCell(((2, 4, 4),), (2, 4, 4), scales=2), "leave scales=2 out"),
        (lambda: MultiscaleCell((2, 4, 4), (2, 4, 4), scales=0), "scales must be at least 1"),
        (lambda: MultiscaleCell((2, 4, 4), (3, 4, 4)), "features enter.*'stem' or 'identity'"),
    ],
)
def test_impossible_cells_are_refused(make, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        make()
