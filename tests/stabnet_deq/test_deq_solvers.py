"""Solvers against closed forms, scipy and each other."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_deq import Anderson, Picard
from torch import Tensor

import stabnet


def _symmetric(seed: int, n: int, radius: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    spectrum = torch.linspace(-radius, radius, n, dtype=torch.float64)
    return (q * spectrum) @ q.T, torch.randn(3, n, generator=generator, dtype=torch.float64)


def _affine(matrix: Tensor, b: Tensor):
    solution = torch.linalg.solve(torch.eye(len(matrix), dtype=b.dtype) - matrix, b.T).T
    return lambda z, u=None: z @ matrix.T + b, torch.zeros_like(b), solution


def _rotation(angle: float, radius: float):
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def _nilpotent(n: int) -> Tensor:
    return torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)


def _dense(seed: int, n: int, norm: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    b = torch.randn(3, n, generator=generator, dtype=torch.float64)
    return matrix * (norm / torch.linalg.matrix_norm(matrix, 2)), b


def _scipy(f, shape: tuple[int, ...]) -> Tensor:
    def residual(z):
        z = torch.from_numpy(z).reshape(shape)
        return (f(z) - z).flatten().numpy()

    found = scipy.optimize.root(
        residual, torch.zeros(shape, dtype=torch.float64).flatten().numpy(), tol=1e-13
    )
    assert found.success
    return torch.from_numpy(found.x).reshape(shape)


def _tanh_problem():
    matrix, b = _dense(3, 12, 0.9)
    f = lambda z, u=None: torch.tanh(z @ matrix.T + b)  # noqa: E731
    return f, torch.zeros_like(b), _scipy(f, b.shape)


def _cosine_problem():
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    # The Dottie number, and a map with slope close to minus one at its fixed point.
    f = lambda z, u=None: torch.stack([z[0].cos(), 0.95 * (2.5 * z[1]).cos() / 2.5])  # noqa: E731
    return f, z0, _scipy(f, (2, 1))


def _relu_problem():
    matrix, b = _dense(5, 20, 0.8)
    f = lambda z, u=None: torch.relu(z @ matrix.T + b)  # noqa: E731
    return f, torch.zeros_like(b), _scipy(f, b.shape)


PROBLEMS = {
    "easy symmetric": _affine(*_symmetric(0, 16, 0.5)),
    "stiff symmetric": _affine(*_symmetric(1, 32, 0.99)),
    "stiff positive": _affine(*((lambda m, b: (m @ m, b))(*_symmetric(2, 24, 0.995)))),
    "non-normal": _affine(*_dense(4, 16, 0.95)),
    "nilpotent": _affine(_nilpotent(8), torch.ones(2, 8, dtype=torch.float64)),
    "rotation": _affine(_rotation(1.0, 0.95), torch.ones(3, 2, dtype=torch.float64)),
    "constant": _affine(torch.zeros(4, 4, dtype=torch.float64), torch.ones(2, 4).double()),
    "stiff scalar": _affine(torch.tensor([[-0.999]]).double(), torch.tensor([[3.0]]).double()),
    "tanh": _tanh_problem(),
    "cosine": _cosine_problem(),
    "relu": _relu_problem(),
}


@pytest.mark.parametrize("solver", [Picard, Anderson])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_solver_agrees_with_closed_form_or_scipy(solver, problem):
    f, z0, expected = PROBLEMS[problem]
    result = solver(tolerance=1e-13, max_evaluations=40_000)(f, z0)
    assert result.converged.all()
    torch.testing.assert_close(result.state, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_reported_residual_is_that_of_the_returned_state(problem):
    f, z0, _ = PROBLEMS[problem]
    for solver in (Picard(max_evaluations=7), Anderson(max_evaluations=7)):
        result = solver(f, z0)
        image = f(result.state)
        expected = (image - result.state).norm(dim=1) / image.norm(dim=1)
        torch.testing.assert_close(result.residual, expected, rtol=1e-9, atol=1e-15)
        assert (result.converged == (result.residual <= solver.control.tolerance)).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_anderson_solves_a_stiff_map_where_picard_crawls(seed):
    f, z0, _ = _affine(*_symmetric(seed, 64, 0.99))
    anderson = Anderson(memory=10, max_evaluations=2000)(f, z0)
    picard = Picard(max_evaluations=2000)(f, z0)
    assert anderson.converged.all()
    assert anderson.nfe <= 100 < picard.nfe


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_number_of_evaluations_does_not_depend_on_the_scale(factor):
    f, z0, _ = PROBLEMS["non-normal"]
    scaled = lambda z, u=None: factor * f(z / factor)  # noqa: E731
    for solver in (Picard(max_evaluations=500), Anderson(max_evaluations=500)):
        assert abs(solver(f, z0).nfe - solver(scaled, z0).nfe) <= 1


def test_exact_start_costs_one_evaluation():
    f, _, solution = PROBLEMS["constant"]
    for solver in (Picard(), Anderson()):
        result = solver(f, solution)
        assert result.nfe == 1
        assert result.converged.all()


def test_origin_as_fixed_point_is_recognized():
    for solver in (Picard(), Anderson()):
        result = solver(lambda z, u: z / 2, torch.zeros(2, 3))
        assert result.converged.all()
        assert (result.residual == 0).all()


@pytest.mark.parametrize("solver", [Picard(max_evaluations=300), Anderson(max_evaluations=300)])
def test_bad_samples_leave_the_others_as_they_are(solver):
    """One row diverges, one turns NaN; the others end as they would alone."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    matrix = _dense(7, 6, 0.9)[0]
    diverging, spoiled = torch.eye(5, dtype=torch.bool)[[1, 3]][:, :, None]

    def mixed(z, u):
        image = torch.where(diverging, z.square() + 1, z @ matrix.T + u)  # z² + 1 = z has no root
        started = z.norm(dim=1, keepdim=True) > 0
        return torch.where(spoiled & started, torch.nan, image)

    result = solver(mixed, torch.zeros_like(u), u)
    assert result.converged.tolist() == [True, False, True, False, True]
    assert torch.isfinite(result.state).all()
    good = [0, 2, 4]
    alone = solver(lambda z, u: z @ matrix.T + u, torch.zeros_like(u)[good], u[good])
    torch.testing.assert_close(result.state[good], alone.state, rtol=1e-12, atol=0)


def test_failure_to_converge_is_reported_not_raised():
    f, z0, _ = PROBLEMS["stiff symmetric"]
    result = Picard(max_evaluations=5)(f, z0)
    assert not result.converged.any()
    assert result.nfe == 5


@pytest.mark.parametrize("make", [Picard, Anderson])
def test_fixed_iterations_spend_all_evaluations_and_compile_to_one_graph(make):
    solver = make(max_evaluations=6, fixed_iterations=True)
    matrix, b = (t.float() for t in _dense(1, 4, 0.5))

    def solve(z0):
        return solver(lambda z, u: z @ matrix.T + b, z0).state

    assert solver(lambda z, u: z * 0 + b, torch.zeros_like(b)).nfe == 6
    compiled = torch.compile(solve, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(torch.zeros_like(b)), solve(torch.zeros_like(b)))


def test_memory_of_one_and_batch_of_one_work():
    f, z0, solution = _affine(*(t[:6] if t.ndim == 1 else t for t in _dense(9, 6, 0.7)))
    result = Anderson(memory=1, tolerance=1e-12, max_evaluations=300)(lambda z, u: f(z)[:1], z0[:1])
    torch.testing.assert_close(result.state, solution[:1], rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 12),
    norm=st.floats(0.0, 0.97),
    memory=st.integers(1, 8),
    mixing=st.floats(0.3, 1.0),
)
def test_anderson_finds_the_fixed_point_of_every_contraction(seed, n, norm, memory, mixing):
    f, z0, solution = _affine(*_dense(seed, n, norm))
    result = Anderson(1e-11, 3000, memory, mixing)(f, z0)
    assert result.converged.all()
    torch.testing.assert_close(result.state, solution, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_evaluations": 0}, "max_evaluations"),
        ({"memory": 0}, "memory"),
        ({"mixing": 1.5}, "mixing"),
        ({"regularization": -1.0}, "regularization"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, word):
    with pytest.raises(stabnet.InvalidOptionError, match=word):
        Anderson(**options)


@pytest.mark.parametrize("make", [Picard, Anderson])
def test_fixed_iterations_can_be_mapped_over_parameters_and_starts(make):
    solver = make(max_evaluations=8, fixed_iterations=True)
    matrix, b = _dense(1, 4, 0.5)
    matrices = torch.stack([matrix, -matrix])
    solve = lambda m, z0: solver(lambda z, u: z @ m.T + b, z0).state  # noqa: E731
    expected = torch.stack([solve(m, torch.zeros_like(b)) for m in matrices])
    mapped = torch.vmap(solve, (0, None))(matrices, torch.zeros_like(b))
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("make", [Picard, Anderson])
def test_a_map_that_passes_through_zero_goes_on(make):
    """An image of zero makes the relative residual infinite, which is no reason to give up."""
    result = make()(lambda z, u: 0 * z, torch.ones(2, 3))
    assert result.converged.all()
    assert (result.state == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_extreme_scales_neither_overflow_nor_pass_for_converged(scale):
    matrix, b = (t.float() for t in _dense(4, 8, 0.8))
    f = lambda z, u=None: z @ matrix.T + scale * b  # noqa: E731
    expected = torch.linalg.solve(torch.eye(8) - matrix, b.T).T
    for solver in (Picard(max_evaluations=200), Anderson()):
        result = solver(f, torch.zeros_like(b))
        assert result.converged.all()
        torch.testing.assert_close(result.state / scale, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_solved_to_what_they_resolve(dtype):
    matrix, b = (t.to(dtype) for t in _dense(4, 8, 0.8))
    result = Anderson()(lambda z, u: z @ matrix.T + b, torch.zeros_like(b))
    assert result.state.dtype == dtype
    assert result.converged.all()


def test_autocast_leaves_the_least_squares_problem_alone():
    """A map that autocast does not touch is accelerated just as without it."""
    f, z0, _ = PROBLEMS["stiff symmetric"]

    def single(z, u=None):
        with torch.autocast("cpu", enabled=False):
            return f(z.double()).float()

    plain = Anderson(tolerance=0.04, max_evaluations=300)(single, z0.float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = Anderson(tolerance=0.04, max_evaluations=300)(single, z0.float())
    assert torch.equal(cast.state, plain.state)
