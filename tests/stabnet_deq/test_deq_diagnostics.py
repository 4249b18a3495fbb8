"""Diagnostics of equilibria, against dense linear algebra and cells with known Jacobians."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from stabnet_deq import MultiscaleCell, diagnose, distance_travelled, spectral_radius
from stabnet_deq.arnoldi import arnoldi_radius
from stabnet_deq.equilibria import flatten, solve, transposed_jacobian
from torch import nn

import stabnet
from stabnet import Equilibrium, StabilityModel, Stack
from stabnet.interfaces import Block, Cell


class Linear(Cell):
    """``z ↦ A z + u``."""

    def __init__(self, matrix):
        super().__init__()
        self.state_shape = self.feature_shape = (len(matrix),)
        self.matrix = nn.Parameter(matrix)

    def forward(self, z, u=None):
        return z @ self.matrix.T + u


class Double(Block):
    """A later stage that looks at the features of the whole stack."""

    state_shape = (4,)

    def forward(self, z, u=None):
        return 2 * z + u


def picard(**options):
    return stabnet.build(
        "picard", kind="solver", **{"tolerance": 1e-10, "max_evaluations": 200, **options}
    )


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(angle, scale):
    c, s = math.cos(angle), math.sin(angle)
    return scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def dense(equilibrium, u):
    """Return the Jacobian of every sample at its equilibrium, by automatic differentiation."""
    z, cell = equilibrium(u).state, equilibrium.cell
    parts = z if isinstance(z, tuple) else (z,)
    sizes, shapes = [p[0].numel() for p in parts], [p.shape[1:] for p in parts]

    def f(flat, u):
        pieces = flat.split(sizes)
        state = tuple(p.reshape(1, *s) for p, s in zip(pieces, shapes, strict=True))
        return flatten(cell(state if isinstance(z, tuple) else state[0], u[None]))[0]

    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda q, i=i: f(q, u[i]), row)
            for i, row in enumerate(flatten(z).detach())
        ]
    )


KNOWN = {
    "rotation": (rotation(1.0, 0.9), 0.9, 1e-12),
    "expanding rotation": (rotation(2.0, 1.5), 1.5, 1e-12),
    "diagonal": (torch.diag(torch.tensor([0.1, -0.8, 0.5], dtype=torch.float64)), 0.8, 1e-12),
    "zero": (torch.zeros(3, 3, dtype=torch.float64), 0.0, 1e-12),
    "multiple of the identity": (-0.3 * torch.eye(4, dtype=torch.float64), 0.3, 1e-12),
    # A perturbation by rounding moves the eigenvalues of a Jordan block by its n-th root.
    "nilpotent": (torch.diag(torch.ones(4, dtype=torch.float64), 1), 0.0, 1e-2),
}


@pytest.mark.parametrize("name", KNOWN)
def test_spectral_radius_of_known_matrices(name):
    matrix, expected, tolerance = KNOWN[name]
    found = arnoldi_radius(lambda w: w @ matrix, random(5, len(matrix)), 10)
    assert found.shape == (5,)
    torch.testing.assert_close(
        found, torch.full_like(found, expected), rtol=0, atol=tolerance, equal_nan=False
    )


def test_every_row_has_a_matrix_of_its_own():
    matrices = random(6, 7, 7)
    expected = torch.linalg.eigvals(matrices).abs().amax(-1)
    found = arnoldi_radius(lambda w: torch.einsum("bij,bj->bi", matrices, w), random(6, 7), 7)
    torch.testing.assert_close(found, expected)
    # Scaled by anything, too.
    tiny = arnoldi_radius(
        lambda w: 1e-120 * torch.einsum("bij,bj->bi", matrices, w), random(6, 7), 7
    )
    torch.testing.assert_close(1e120 * tiny, expected)


def test_few_products_approach_the_radius_of_a_symmetric_matrix_from_below():
    q, _ = torch.linalg.qr(random(60, 60))
    matrix = (q * torch.linspace(-0.9, 0.8, 60, dtype=torch.float64)) @ q.T
    found = [arnoldi_radius(lambda w: w @ matrix, random(3, 60), k) for k in (2, 8, 20, 60)]
    for fewer, more in pairwise(found):
        assert bool((fewer <= more + 1e-12).all())
    assert bool((found[-2] > 0.87).all())
    torch.testing.assert_close(found[-1], torch.full_like(found[-1], 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_costs_no_more_than_its_rounding(dtype):
    matrix = rotation(0.7, 0.5).kron(torch.diag(torch.tensor([1.0, -0.6]).double())).to(dtype)
    found = arnoldi_radius(lambda w: w @ matrix, random(3, 4).to(dtype), 4)
    assert found.dtype == torch.float32
    error = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, torch.full_like(found, 0.5), rtol=error, atol=0)


def test_a_sample_whose_jacobian_is_not_finite_leaves_the_others_alone():
    scale = torch.tensor([0.5, math.nan, 0.7], dtype=torch.float64)
    found = arnoldi_radius(lambda w: scale[:, None] * w, random(3, 4), 4)
    torch.testing.assert_close(found, scale, equal_nan=True)


@pytest.mark.parametrize("name", ["deq", "conv", "multiscale"])
def test_spectral_radius_agrees_with_the_eigenvalues_of_the_dense_jacobian(name):
    torch.manual_seed(0)
    shape = (6,) if name == "deq" else (2, 3, 2)
    options = {} if name == "deq" else {"groups": 1}
    cell = stabnet.build(
        name, kind="cell", state_shape=shape, feature_shape=shape, weight_scale=0.8, **options
    )
    equilibrium = Equilibrium(cell, picard()).double().train()
    u = random(2, *shape)
    modes = [m.training for m in equilibrium.modules()]
    found = spectral_radius(equilibrium, u, products=100)
    assert modes == [m.training for m in equilibrium.modules()]
    jacobian = dense(equilibrium.eval(), u)
    torch.testing.assert_close(
        found, torch.linalg.eigvals(jacobian).abs().amax(-1), rtol=1e-6, atol=1e-6
    )
    solved = solve(equilibrium, u)
    product = transposed_jacobian(cell, solved.solution.state, u)
    w = random(2, jacobian.shape[-1], seed=4)
    torch.testing.assert_close(product(w), torch.einsum("bij,bi->bj", jacobian, w))


def model(stage=None, matrix=None, **options):
    """Return a classifier of four inputs, whose equilibrium may be a stage of a stack."""
    torch.manual_seed(0)
    cell = Linear(0.1 * random(4, 4) if matrix is None else matrix)
    equilibrium = Equilibrium(cell, picard(**options))
    stages = {None: equilibrium, 0: [equilibrium, Double()], 1: [Double(), equilibrium]}[stage]
    dynamics = stages if stage is None else Stack(stages)
    backbone = stabnet.build("linear", kind="backbone", in_shape=(4,), width=4)
    return StabilityModel((4,), 3, backbone, dynamics, nn.Linear(4, 3)).double()


def data(count=9):
    return random(count, 4, seed=5), torch.arange(count) % 3


@pytest.mark.parametrize("stage", [None, 0, 1])
def test_the_equilibrium_is_found_in_a_stack(stage):
    m = model(stage)
    x, y = data()
    with torch.no_grad():
        features = m.features(x)
        u = 3 * features if stage == 1 else features
        matrix = m.dynamics.cell.matrix if stage is None else m.dynamics.stages[stage].cell.matrix
        z = torch.linalg.solve(torch.eye(4).double() - matrix, u.T).T
        read = [z, u, torch.zeros_like(u)]
        if stage == 0:
            read = [2 * p + features for p in read]
        solved, first, start = (m.head(p).argmax(1) for p in read)
        rate = torch.linalg.eigvals(matrix).abs().max()
    torch.testing.assert_close(spectral_radius(m, x), rate.expand(9))
    distance = distance_travelled(m, x)
    torch.testing.assert_close(distance.total, z.norm(dim=1))
    torch.testing.assert_close(distance.beyond_first, (z - u).norm(dim=1) / z.norm(dim=1))
    found = diagnose(m, [(x[:4], y[:4]), (x[4:], y[4:])])
    assert found.samples == 9
    assert found.accuracy == pytest.approx(float((solved == y).double().mean()))
    assert found.accuracy_after_one == pytest.approx(float((first == y).double().mean()))
    assert found.accuracy_at_start == pytest.approx(float((start == y).double().mean()))
    assert found.same_after_one == pytest.approx(float((first == solved).double().mean()))
    assert found.distance.largest == pytest.approx(float(distance.total.max()))
    assert found.spectral_radius.median == pytest.approx(float(rate))
    assert found.contracting == found.converged == 1


def test_a_model_whose_solver_does_nothing_is_called_out():
    found = diagnose(model(matrix=1e-4 * random(4, 4)), [data()])
    (warning,) = found.warnings
    assert "next to nothing" in warning
    assert warning in str(found)
    rotated = diagnose(model(matrix=rotation(0.4, 0.8).kron(torch.eye(2))), [data()])
    assert not rotated.warnings


def test_a_model_that_reads_nothing_of_its_state_is_called_out():
    m = model()
    nn.init.zeros_(m.head.weight)
    assert any("does nothing" in w for w in diagnose(m, [data()]).warnings)


def test_a_cell_that_expands_is_called_out():
    found = diagnose(model(matrix=2 * rotation(0.4, 0.9).kron(torch.eye(2))), [data()])
    assert found.contracting == 0
    assert found.converged == 0
    assert [w for w in found.warnings if "does not contract around 100.0%" in w]
    assert [w for w in found.warnings if "missed the tolerance" in w]


def test_a_diagnosis_is_plain_data_and_changes_nothing():
    m = model().train()
    state = {k: v.clone() for k, v in m.state_dict().items()}
    generator = torch.get_rng_state()
    found = diagnose(m, [data()])
    again = json.loads(json.dumps(found.to_dict()))
    assert again["spectral_radius"] == {
        "median": found.spectral_radius.median,
        "largest": found.spectral_radius.largest,
    }
    assert again["warnings"] == list(found.warnings)
    assert m.training
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())
    with torch.inference_mode():
        assert diagnose(m, [data()]) == found


def test_a_tuple_state_is_diagnosed():
    torch.manual_seed(0)
    shape = (2, 4, 4)
    cell = MultiscaleCell(shape, shape, groups=1)
    backbone = stabnet.build("identity", kind="backbone", in_shape=shape)
    m = StabilityModel(
        shape, 3, backbone, Equilibrium(cell, picard(tolerance=1e-5)), nn.Linear(48, 3)
    )
    found = diagnose(m, [(torch.rand(3, *shape), torch.arange(3))], products=8)
    assert found.samples == 3
    assert 0 < found.spectral_radius.median < 2


def test_what_has_no_single_equilibrium_is_refused():
    x, y = data()
    for part in (nn.Linear(4, 4), Stack([Double()]), Stack([model().dynamics, model().dynamics])):
        with pytest.raises(stabnet.InvalidInputError, match="equilibria where one is expected"):
            spectral_radius(part, x)
    with pytest.raises(stabnet.InvalidOptionError, match="products must be at least 1; got 0"):
        spectral_radius(model(), x, products=0)
    for batches in ([], [(x[:0], y[:0])]):
        with pytest.raises(stabnet.InvalidInputError, match="no sample to diagnose"):
            diagnose(model(), batches)
    for targets in (y[:, None], y.double()):
        with pytest.raises(stabnet.InvalidInputError, match=r"class labels \(9,\)"):
            diagnose(model(), [(x, targets)])


def test_a_cell_that_couples_samples_in_eval_mode_is_refused():
    cell = Linear(0.1 * random(4, 4))
    cell.add_module("norm", nn.BatchNorm1d(4, track_running_stats=False))
    assert not cell.eval().per_sample
    with pytest.raises(stabnet.InvalidInputError, match="couples the samples"):
        spectral_radius(Equilibrium(cell, picard()), data()[0])
