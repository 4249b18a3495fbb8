"""Samples of a batch are problems of their own: what one does leaves the others as they are."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_deq import (
    Anderson,
    Broyden,
    ConvCell,
    DEQCell,
    ForwardBackward,
    MonotoneCell,
    PeacemanRachford,
    Picard,
)
from torch import Tensor, nn

from stabnet import ConvergenceError, Equilibrium, InvalidOptionError
from stabnet.interfaces import Cell

F64 = torch.float64
SOLVERS = {"picard": Picard, "anderson": Anderson, "broyden": Broyden}


@pytest.fixture(autouse=True)
def _without_gradients():
    """As solvers are called, but for unrolled gradients, for which no row may leave."""
    with torch.no_grad():
        yield


solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _symmetric(n: int, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(_normal(n, n, seed=seed))[0]
    return (q * torch.linspace(-1, 1, n, dtype=F64)) @ q.T


class _Mixed:
    """Rows of several kinds, told apart by the first feature; the second scales a linear map.

    It counts evaluations, and keeps the row numbers (the third feature) of each.
    """

    def __init__(self, n: int = 6, seed: int = 0) -> None:
        self.matrix = _symmetric(n, seed)
        self.b = _normal(1, n, seed=seed + 1)
        self.calls: list[Tensor] = []

    def __call__(self, z: Tensor, u: Tensor) -> Tensor:
        self.calls.append(u[:, 2])
        kind, strength = u[:, :1], u[:, 1:2]
        linear = strength * (z @ self.matrix.to(z.dtype).T) + (1 + strength) * self.b.to(z.dtype)
        image = torch.where(kind == 1, z.square() + 1, linear)  # z² + 1 = z has no root
        image = torch.where(kind == 2, torch.full_like(z, 0.5), image)  # harmless
        far = len(self.calls) > 4
        image = torch.where(kind == 3, math.nan if far else z.square() + 2, image)
        image = torch.where(kind == 4, torch.where(z > 0, -1.0, 1.0).to(z.dtype), image)
        return torch.where(kind == 5, torch.nan, image)  # never defined


KINDS = {"diverging": 1, "undefined after a while": 3, "oscillating": 4, "never defined": 5}


def _features(kinds: list[int]) -> Tensor:
    count = len(kinds)
    strength = torch.linspace(0.3, 0.95, count, dtype=F64)
    return torch.stack([torch.tensor(kinds, dtype=F64), strength, torch.arange(count)], 1)


GOOD = [0, 2, 3, 5]


# ── bad samples ──


@solvers
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("evaluations", [3, 9, 40, 150])
def test_bad_samples_change_no_bit_of_the_others_without_compaction(solver, kind, evaluations):
    found = []
    for kinds in ([0, kind, 0, 0, kind, 0], [0, 2, 0, 0, 2, 0]):
        u, f = _features(kinds), _Mixed()
        z0 = 0.1 * _normal(6, 6, seed=3)
        found.append(solver(1e-11, evaluations, compaction=1.0)(f, z0, u))
    bad, harmless = found
    assert torch.equal(bad.state[GOOD], harmless.state[GOOD])
    assert torch.equal(bad.residual[GOOD], harmless.residual[GOOD])
    assert torch.equal(bad.converged[GOOD], harmless.converged[GOOD])
    assert not bad.converged[[1, 4]].any()


@solvers
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("compaction", [0.01, 0.2, 1.0])
def test_the_others_end_as_they_would_alone(solver, kind, compaction):
    u = _features([0, kind, 0, 0, kind, 0])
    z0 = 0.1 * _normal(6, 6, seed=3)
    together = solver(1e-11, 300, compaction=compaction)(_Mixed(), z0, u)
    for i in GOOD:
        alone = solver(1e-11, 300)(_Mixed(), z0[[i]], u[[i]])
        torch.testing.assert_close(together.state[[i]], alone.state, rtol=1e-9, atol=1e-9)
        assert together.converged[i] == alone.converged[0]


@solvers
def test_ties_are_told_alike_whatever_the_others_do(solver):
    """On a quarter turn every iterate has the same residual, and one has to be the best."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)

    def f(z, u):
        return torch.where(u == 0, z @ turn.T, torch.where(u == 1, 0.5 * z + 1, torch.nan))

    z0 = _normal(3, 2, seed=5)
    found = [
        solver(1e-9, 6, compaction=1.0)(f, z0, torch.tensor([[0.0], [mate], [0.0]], dtype=F64))
        for mate in (0.0, 1.0, 2.0)
    ]
    for other in found[1:]:
        assert torch.equal(other.state[[0, 2]], found[0].state[[0, 2]])


@solvers
@pytest.mark.parametrize("seed", range(4))
def test_slow_mates_change_no_bit(solver, seed):
    """Mates that stall, jump at random or settle at once, beside rows that need long."""
    matrix = _normal(4, 8, 8, seed=seed)
    matrix *= torch.tensor([0.9, 1.2, 0.99, 1.05])[:, None, None] / torch.linalg.matrix_norm(
        matrix, 2, keepdim=True
    )
    b, noise = _normal(4, 8, seed=seed + 50), _normal(200, 8, seed=seed + 70)

    def run(mate: str):
        calls = 0

        def f(z, u):
            nonlocal calls
            calls += 1
            image = torch.tanh(torch.einsum("ri,rji->rj", z, matrix) + b)
            image[1] = {"random": z[1] + noise[calls], "settled": b[1], "nan": b[1] * math.nan}[
                mate
            ]
            return image

        return solver(1e-10, 120, compaction=1.0)(f, torch.zeros(4, 8, dtype=F64), b)

    expected, *others = (run(mate).state[[0, 2, 3]] for mate in ("settled", "random", "nan"))
    for other in others:
        assert torch.equal(other, expected)


@solvers
def test_a_bad_sample_ends_at_its_best_finite_iterate(solver):
    f, u = _Mixed(), _features([1, 3, 5])
    z0 = 0.1 * _normal(3, 6, seed=3)
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(z, u):
        image = f(z, u)
        seen.append((z, image))
        return image

    result = solver(1e-9, 30, compaction=1.0)(watched, z0, u)
    assert result.state.isfinite().all()
    residuals = torch.stack(
        [
            ((image - z).norm(dim=1) / image.norm(dim=1)).nan_to_num(nan=math.inf)
            for z, image in seen
        ]
    )
    for row in (0, 1):
        best = residuals[:, row].argmin()
        assert torch.equal(result.state[row], seen[best][0][row])
        torch.testing.assert_close(result.residual[row], residuals[best, row])
    assert torch.equal(result.state[2], z0[2])
    assert result.residual[2] == math.inf


def test_a_singular_sample_neither_raises_nor_spoils_the_batch():
    """Residuals that stand still make a Gram matrix of zeros."""
    matrix = 0.9 * torch.eye(3, dtype=F64).roll(1, 0)
    f = lambda z, u: torch.where(u > 0, z + 1, z @ matrix.T + 1)  # noqa: E731
    u = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)
    for memory in (1, 5):
        result = Anderson(1e-10, 200, memory=memory)(f, torch.zeros(3, 3, dtype=F64), u)
        assert result.converged.tolist() == [True, False, True]
        assert result.state.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_squares_that_leave_the_range_do_not_end_a_sample(dtype):
    """``tanh 2z`` is finite everywhere; only the solver's own products underflow near zero."""
    result = Anderson(1e-5, 60)(
        lambda z, u: torch.tanh(2 * z), torch.full((1, 1), 0.1, dtype=dtype)
    )
    assert result.nfe == 60 or result.converged.all()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("scale", [1e-22, 1e18, 1e20, 1e22, 1e30])
@solvers
def test_norms_beyond_single_precision_are_no_obstacle(solver, scale, every):
    matrix, b = (0.4 * torch.eye(8).roll(1, 0)), scale * torch.linspace(1, 2, 8)
    result = solver(1e-5, 60, check_every=every)(lambda z, u: z @ matrix.T + b, torch.zeros(3, 8))
    assert result.converged.all()


# ── batch-mates ──


CELLS = {
    "deq": lambda: (DEQCell((8,), (8,), weight_scale=0.5), (8,)),
    "conv": lambda: (ConvCell((4, 3, 3), (4, 3, 3), groups=2), (4, 3, 3)),
    "monotone": lambda: (MonotoneCell((8,), (8,)), (8,)),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["anderson", "broyden", "peaceman_rachford"])
def test_batch_mates_change_an_answer_within_the_tolerance_only(cell, name):
    torch.manual_seed(0)
    chosen, shape = CELLS[cell]()
    if name == "peaceman_rachford":
        chosen, shape = CELLS["monotone"]()
    solver = {**SOLVERS, "peaceman_rachford": PeacemanRachford}[name](1e-10, 500)
    equilibrium = Equilibrium(chosen.double().eval(), solver)
    u = _normal(12, *shape, seed=1)
    u[5] *= 30
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    together, shuffled = equilibrium(u), equilibrium(u[order])
    alone = torch.cat([equilibrium(row[None]).state for row in u])
    assert together.converged.all()
    torch.testing.assert_close(together.state, alone, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(shuffled.state, together.state[order], rtol=1e-7, atol=1e-7)


def _wasted(calls: list[Tensor], f: _Mixed, u: Tensor, z0: Tensor, solver) -> float:
    """Return the share of row-evaluations after a row's own last one, when solved alone."""
    needed = [solver(f, z0[[i]], u[[i]]).nfe for i in range(len(u))]
    spent = torch.bincount(torch.cat(calls).long(), minlength=len(u))
    wasted = (spent - torch.tensor(needed)).clamp(min=0)
    return float(wasted.sum() / spent.sum())


@solvers
def test_a_stiff_sample_does_not_make_the_easy_ones_wait(solver):
    u = _features([0] * 128)
    u[:, 1] = 0.3 + 0.2 * torch.rand(128, generator=torch.Generator().manual_seed(0))
    u[77, 1] = 0.99
    z0 = torch.zeros(128, 24, dtype=F64)
    f = _Mixed(24)
    result = solver(1e-8, 3000)(f, z0, u)
    assert result.converged.all()
    calls = list(f.calls)
    assert _wasted(calls, f, u, z0, solver(1e-8, 3000)) < 0.2
    assert sum(len(rows) for rows in calls) < 0.5 * 128 * result.nfe
    exact = torch.linalg.solve(
        torch.eye(24, dtype=F64) - u[:, 1, None, None] * f.matrix,
        ((1 + u[:, 1:2]) * f.b)[..., None],
    )[..., 0]
    torch.testing.assert_close(result.state, exact, rtol=1e-4, atol=1e-4)  # and in their order


class _Strength(Cell):
    """A linear cell whose rows the first feature makes easy or stiff, and which counts rows."""

    state_shape = (24,)
    feature_shape = (24,)

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(_symmetric(24))
        self.rows: list[int] = []

    def forward(self, z, u=None):
        if z.requires_grad:
            z.register_hook(lambda g: self.rows.append(len(g)))  # one product each
        return u[:, :1] * (z @ self.matrix.T) + u


@solvers
@torch.enable_grad()
def test_easy_samples_leave_the_backward_pass_too(solver):
    cell, u = _Strength(), _normal(64, 24, seed=4)
    u[:, 0] = 0.3
    u[40, 0] = 0.99
    u.requires_grad_()
    equilibrium = Equilibrium(cell, solver(1e-9, 3000))
    solution = equilibrium(u)
    (found,) = torch.autograd.grad(solution.state.square().sum(), u)
    rows = cell.rows[:-1] if len(cell.rows) > solution.backward.nfe else cell.rows
    assert solution.backward.converged.all()
    assert min(rows) == 1
    assert sum(rows) < 0.6 * 64 * solution.backward.nfe
    kept = Equilibrium(cell, solver(1e-9, 3000, compaction=1.0))
    (expected,) = torch.autograd.grad(kept(u).state.square().sum(), u)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@solvers
@pytest.mark.parametrize("compaction", [0.01, 0.5, 1.0])
def test_rows_come_back_in_their_order(solver, compaction):
    f, u = _Mixed(), _features([0, 2, 0, 2, 0, 0, 2, 0])
    u[:, 1] = torch.tensor([0.9, 0.1, 0.2, 0.5, 0.99, 0.0, 0.3, 0.6])
    result = solver(1e-11, 4000, compaction=compaction)(f, torch.zeros(8, 6, dtype=F64), u)
    assert result.converged.all()
    identity = torch.eye(6, dtype=F64)
    exact = torch.linalg.solve(
        identity - u[:, 1, None, None] * f.matrix, ((1 + u[:, 1:2]) * f.b)[..., None]
    )[..., 0]
    exact = torch.where(u[:, :1] == 2, 0.5, exact)
    torch.testing.assert_close(result.state, exact, rtol=1e-8, atol=1e-8)


# ── asked for more, or for little ──


@solvers
def test_failures_raise_on_request_with_their_number(solver):
    u = _features([0, 1, 0, 1, 3, 0])
    with pytest.raises(ConvergenceError, match=r"3 of 6 .*1e-08.*\[1, 3, 4\]"):
        solver(1e-8, 1000, throw=True)(_Mixed(), torch.zeros(6, 6, dtype=F64), u)
    assert solver(1e-8, 1000, throw=True)(_Mixed(), torch.zeros(3, 6, dtype=F64), u[[0, 2, 5]]).nfe


@solvers
@pytest.mark.parametrize("compaction", [0.2, 1.0])
def test_exact_start_costs_one_evaluation(solver, compaction):
    f, u = _Mixed(), _features([2, 2, 2])
    exact = torch.full((3, 6), 0.5, dtype=F64)
    result = solver(1e-12, 50, compaction=compaction)(f, exact, u)
    assert result.nfe == len(f.calls) == 1
    assert result.converged.all()
    assert (result.residual == 0).all()
    assert torch.equal(result.state, exact)


@solvers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("evaluations", [1, 2, 60])
def test_small_problems_of_every_shape(solver, dtype, batch, n, evaluations):
    f, u = _Mixed(n), _features([0] * batch).to(dtype)
    u[:, 1] = 0.3
    result = solver(1e-5, evaluations)(f, torch.zeros(batch, n, dtype=dtype), u)
    assert result.state.shape == (batch, n)
    assert result.state.dtype == dtype
    assert result.residual.shape == result.converged.shape == (batch,)
    assert 1 <= result.nfe == len(f.calls) <= evaluations
    if evaluations == 60:
        assert result.converged.all()
    if batch and evaluations == 1:
        assert not result.converged.any()
        assert (result.residual == 1).all()


@pytest.mark.parametrize("solver", [Anderson, Broyden])
@pytest.mark.parametrize("memory", [1, 2, 40])
def test_every_memory_works(solver, memory):
    f, u = _Mixed(), _features([0] * 4)
    result = solver(1e-10, 3000, memory=memory)(f, torch.zeros(4, 6, dtype=F64), u)
    assert result.converged.all()


@solvers
def test_how_often_is_looked_changes_an_answer_within_the_tolerance_only(solver):
    u, found = _features([0, 0, 2, 0, 1, 0]), []
    for every in (1, 3, 7):
        f = _Mixed()
        result = solver(1e-9, 600, check_every=every)(f, torch.zeros(6, 6, dtype=F64), u)
        assert result.nfe == len(f.calls)
        assert result.converged.tolist() == [True, True, True, True, False, True]
        found.append(result.state[[0, 1, 2, 3, 5]])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=1e-6)


@solvers
def test_looks_come_no_oftener_than_asked(solver):
    f, u = _Mixed(), _features([0] * 3)
    result = solver(1e-6, 500, check_every=7)(f, torch.zeros(3, 6, dtype=F64), u)
    assert result.converged.all()
    assert result.nfe % 7 == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": -1e-3}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"tolerance": math.inf}, "tolerance"),
        ({"max_evaluations": 0}, "max_evaluations"),
        ({"max_evaluations": 10.5}, "max_evaluations"),
        ({"max_evaluations": math.inf}, "max_evaluations"),
        ({"check_every": 0}, "check_every"),
        ({"check_every": 1.5}, "check_every"),
        ({"compaction": 0.0}, "compaction"),
        ({"compaction": 1.1}, "compaction"),
        ({"compaction": math.nan}, "compaction"),
        ({"throw": True, "fixed_iterations": True}, "throw"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, word):
    for solver in SOLVERS.values():
        with pytest.raises(InvalidOptionError, match=word):
            solver(**options)
    for splitting in (ForwardBackward, PeacemanRachford):
        if "compaction" not in options:
            with pytest.raises(InvalidOptionError, match=word):
                splitting(splitting_step=0.1, **options)


@pytest.mark.parametrize("solver", [Anderson, Broyden])
@pytest.mark.parametrize("memory", [0, -1])
def test_memory_out_of_range_is_refused(solver, memory):
    with pytest.raises(InvalidOptionError, match="memory"):
        solver(memory=memory)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "exact"},
        {"gradient": "phantom", "phantom_steps": 0},
        {"gradient": "phantom", "phantom_damping": 0.0},
        {"gradient": "phantom", "phantom_damping": 1.5},
        {"gradient": "phantom", "phantom_damping": math.nan},
    ],
)
def test_gradient_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidOptionError, match=next(reversed(options))):
        Equilibrium(DEQCell((3,), (3,)), Picard(), **options)


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_undefined_features_leave_other_rows_of_a_splitting_alone(solver, value):
    torch.manual_seed(0)
    equilibrium = Equilibrium(MonotoneCell((6,), (6,)).double(), solver(1e-9, 1000))
    u = _normal(5, 6, seed=2)
    found = []
    for bad in (value, 0.0):
        u[1], u[3, 2] = bad, bad
        found.append(equilibrium(u))
    good = [0, 2, 4]
    torch.testing.assert_close(found[0].state[good], found[1].state[good], rtol=1e-8, atol=1e-8)
    assert found[0].state.isfinite().all()
    assert found[0].converged.tolist() == [True, False, True, False, True]
