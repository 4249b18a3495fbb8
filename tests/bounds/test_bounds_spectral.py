"""Upper bounds of operator norms, against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabnet.bounds import spectral_norm_bound
from stabnet.errors import InvalidInputError

DOUBLE = torch.float64


def exceeds_norm(bound: Fraction, matrix: torch.Tensor) -> bool:
    """Return, in exact arithmetic, whether ``bound > ‖A‖₂``: all pivots of c²I − AᵀA positive."""
    A = [[Fraction(x) for x in row] for row in matrix.double().tolist()]
    n = len(A[0])
    B = [[(i == j) * bound**2 - sum(r[i] * r[j] for r in A) for j in range(n)] for i in range(n)]
    for k in range(n):
        if B[k][k] <= 0:
            return False
        for i in range(k + 1, n):
            factor = B[i][k] / B[k][k]
            for j in range(k, n):
                B[i][j] -= factor * B[k][j]
    return True


def check(matrix: torch.Tensor, slack: float = 1e-11) -> None:
    """The bound holds exactly, and one that is less by ``slack`` would not."""
    bound = Fraction(spectral_norm_bound(matrix))
    assert exceeds_norm(bound, matrix)
    assert not exceeds_norm(bound * (1 - Fraction(slack)), matrix)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 5), (7, 3), (2, 9), (1, 6)])
def test_bound_holds_exactly_and_is_tight_for_random_matrices(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(m, n, generator=generator, dtype=DOUBLE)
    check(matrix if n <= m else matrix.T)
    assert spectral_norm_bound(matrix) == pytest.approx(spectral_norm_bound(matrix.T), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bound_is_of_the_numbers_as_stored_in_lower_precisions(dtype):
    check(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).to(dtype))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e3, 1e3, allow_subnormal=True), min_size=3, max_size=3),
        min_size=3,
        max_size=4,
    )
)
def test_bound_holds_for_any_entries(rows):
    matrix = torch.tensor(rows, dtype=DOUBLE)
    bound = spectral_norm_bound(matrix)
    assert bound == 0 if not matrix.any() else exceeds_norm(Fraction(bound), matrix)


def hadamard(k: int) -> torch.Tensor:
    """Return the matrix of ±1 with orthogonal rows, of size 2ᵏ."""
    matrix = torch.ones(1, 1, dtype=DOUBLE)
    for _ in range(k):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=DOUBLE), matrix)
    return matrix


def squared_norms() -> list[tuple[str, torch.Tensor, int]]:
    """Return matrices of integers whose squared norm is known."""
    u, v = torch.arange(-20, 21, dtype=DOUBLE), torch.arange(1, 31, dtype=DOUBLE)
    return [
        ("hadamard", hadamard(6), 64),
        ("rank one", torch.outer(u, v), int(u @ u) * int(v @ v)),
        ("ones", torch.ones(100, 30, dtype=DOUBLE), 3000),
        ("diagonal", torch.diag(torch.arange(-50, 50, dtype=DOUBLE)), 2500),
        ("permutation", torch.eye(64, dtype=DOUBLE).flip(0), 1),
        ("one entry", torch.eye(64, dtype=DOUBLE)[:1] * 3, 9),
    ]


@pytest.mark.parametrize(
    ("matrix", "square"), [c[1:] for c in squared_norms()], ids=[c[0] for c in squared_norms()]
)
def test_bound_of_known_norms(matrix, square):
    bound = Fraction(spectral_norm_bound(matrix))
    assert square <= bound**2 <= square * (1 + Fraction(1, 10**10))


def test_bound_holds_for_an_ill_conditioned_triangle():
    n, c = 8, 0.3
    s = math.sqrt(1 - c * c)
    upper = torch.eye(n, dtype=DOUBLE) - c * torch.ones(n, n, dtype=DOUBLE).triu(1)
    check(torch.diag(torch.tensor([s**k for k in range(n)], dtype=DOUBLE)) @ upper)


@pytest.mark.parametrize("exponent", [-1040, -900, -300, 300, 900, 1020])
def test_bound_scales_with_the_matrix(exponent):
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    for half in (exponent // 2, exponent - exponent // 2):
        matrix = matrix * 2.0**half
    # Among subnormal numbers the next float is far away, relatively.
    check(matrix, 1e-11 if exponent > -1000 else 0.1)


def test_bound_holds_for_entries_of_very_different_sizes():
    check(torch.diag(torch.tensor([1.0, 1e-200, 1e-320], dtype=DOUBLE)))
    check(torch.tensor([[1e300, 1e-300], [1e-320, 1e300]], dtype=DOUBLE))


def test_bound_beyond_the_largest_float_is_infinite():
    assert spectral_norm_bound(torch.full((2, 2), 1e308, dtype=DOUBLE)) == math.inf


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (4, 2)])
def test_norm_of_nothing_and_of_zero_is_zero(shape):
    assert spectral_norm_bound(torch.zeros(shape)) == 0


def test_excess_stays_small_for_a_large_matrix():
    matrix = torch.randn(256, 400, generator=torch.Generator().manual_seed(2))
    norm = float(torch.linalg.matrix_norm(matrix.double(), 2))
    assert norm < spectral_norm_bound(matrix) <= norm * (1 + 1e-10)


def test_bound_is_of_the_weights_as_they_stand():
    layer = torch.nn.Linear(3, 3)
    before = spectral_norm_bound(layer.weight)
    layer.weight.data.mul_(2)
    assert spectral_norm_bound(layer.weight) == pytest.approx(2 * before, rel=1e-12)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.tensor([[1.0, math.nan]]), "NaN or infinite"),
        (torch.tensor([[math.inf]]), "NaN or infinite"),
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(2, 2, dtype=torch.int64), "int64"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_has_no_norm_is_refused(matrix, message):
    with pytest.raises(InvalidInputError, match=message):
        spectral_norm_bound(matrix)


def test_bound_is_just_above_the_largest_singular_value_of_300_random_matrices():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        m, n = torch.randint(1, 65, (2,), generator=generator).tolist()
        matrix = torch.randn(m, n, dtype=DOUBLE, generator=generator)
        rank = int(torch.randint(1, min(m, n) + 1, (), generator=generator))
        if rank % 2:  # as often of low rank, with the largest value clustered
            matrix = torch.linalg.qr(matrix[:, :rank])[0] @ torch.randn(
                rank, n, dtype=DOUBLE, generator=generator
            )
        norm = float(torch.linalg.svdvals(matrix).max())
        assert norm * (1 - 1e-14) <= spectral_norm_bound(matrix) <= norm * (1 + 1e-9)
