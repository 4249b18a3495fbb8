"""A written suite of fixed-point problems, and what every solver does on each of them.

Evaluations at a tolerance of 1e-5, in double precision:

==============================  ======  ==============  =====================  =======
map (dimension)                 picard  anderson, m=5   anderson, m=dimension  broyden
==============================  ======  ==============  =====================  =======
nilpotent shift (8)                  9              16                     10       22
nilpotent shift (16)                17              40                     18       93
the same, driven at its end         17              42                     18       17
nilpotent shift (64)                65              89                    108      267
strictly triangular (12)            13              18                     13       84
radius 0.5, norm 5 (8)              48              61                     61       82
rotations, radius 0.9 (2)           110              4                      4        5
rotations, radius 1.05 (2)       never               4                      4        5
==============================  ======  ==============  =====================  =======

(Broyden with as many pairs as entries.) Plain iteration ends a nilpotent map after as many steps as
its index. Acceleration by fewer iterates than that only averages what is left; where it stalls,
the safeguard takes plain steps, which ends long ones soon enough. Rotations of the plane need two
differences, whatever their radius.

Each problem says what it probes. Whatever the problem, a solver counts its evaluations, reports the
residual of the state that it returns, and calls a sample converged exactly where that residual is
within the tolerance.

Evaluations on nilpotent and rotation-like maps, measured at a tolerance of 1e-5 and default
memories (5 for Anderson, 10 for Broyden); a dash where a solve does not converge:

=============================  ======  ========  =======
map                            picard  anderson  broyden
=============================  ======  ========  =======
nilpotent, dimension 8              9        16       17
nilpotent, dimension 16            17        40       91
nilpotent, dimension 64            65        89      369
strictly triangular, 12            13        18       67
rotation by 1 rad, radius 0.5      18         4        5
rotation by 1 rad, radius 0.9     110         4        5
rotation by 1 rad, radius 0.99   1142         4        5
rotation by 1 rad, radius 1.05      –         4        5
cycle of 16, radius 0.95          221       177      340
=============================  ======  ========  =======

A nilpotent map is plain iteration's best case: it ends after as many steps as there are dimensions,
which no combination of fewer iterates can do. With a memory as long as that Anderson needs one or
two evaluations more (10 and 18); with a shorter one it stalls, takes plain steps, and ends after
1.4 to 2.5 times as many. Rotations in a plane are the opposite: two differences solve them, at any
radius.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

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
from torch import Tensor

from stabnet.interfaces import Splitting

F64 = torch.float64
LIMIT = 2000


@dataclass(frozen=True)
class Problem:
    """A map ``f(z, u)`` on rows, its features and start, and what is known of it.

    ``picard`` tells whether plain iteration converges within the limit from this start.
    ``amplification`` bounds ``‖z − z*‖ / ‖f(z) − z‖`` wherever a fixed point is known.
    """

    probes: str
    f: Callable[[Tensor, Tensor], Tensor]
    u: Tensor
    z0: Tensor
    picard: bool
    solution: Tensor | None = None
    amplification: float = math.nan
    fixed_points: bool = True


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _linear(probes: str, matrix: Tensor, u: Tensor | None = None, picard: bool = True) -> Problem:
    n = len(matrix)
    u = _normal(3, n, seed=n) if u is None else u
    inverse = torch.linalg.inv(torch.eye(n, dtype=F64) - matrix)
    return Problem(
        probes,
        lambda z, u: z @ matrix.to(z.dtype).T + u,
        u,
        torch.zeros_like(u),
        picard,
        u @ inverse.T,
        float(torch.linalg.matrix_norm(inverse, 2)),
    )


def _elementwise(probes: str, f, z0, u=None, picard=True, solution=None, amplification=math.nan):
    z0 = torch.tensor(z0, dtype=F64)[:, None]
    u = torch.zeros_like(z0) if u is None else torch.tensor(u, dtype=F64)[:, None]
    solution = None if solution is None else torch.tensor(solution, dtype=F64)[:, None]
    return Problem(probes, f, u, z0, picard, solution, amplification, solution is not None)


def _contraction(probes: str, activation, norm: float, n: int, seed: int) -> Problem:
    """An activation of slope at most one after a matrix of that norm."""
    matrix, u = _dense(n, norm, seed), _normal(3, n, seed=seed + 1)
    f = lambda z, u: activation(z @ matrix.to(z.dtype).T + u)  # noqa: E731
    solution = torch.zeros_like(u)
    for _ in range(int(-40 / math.log(norm))):
        solution = f(solution, u)
    return Problem(probes, f, u, torch.zeros_like(u), True, solution, 1 / (1 - norm))


def _dense(n: int, norm: float, seed: int) -> Tensor:
    matrix = _normal(n, n, seed=seed)
    return matrix * (norm / torch.linalg.matrix_norm(matrix, 2))


def _symmetric(n: int, lowest: float, highest: float, seed: int) -> Tensor:
    q = torch.linalg.qr(_normal(n, n, seed=seed))[0]
    return (q * torch.linspace(lowest, highest, n, dtype=F64)) @ q.T


def _rotation(radius: float, angle: float = 1.0) -> Tensor:
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=F64)


def _shift(n: int) -> Tensor:
    return torch.diag(torch.ones(n - 1, dtype=F64), 1)


def _mixed_scales() -> Problem:
    scale = 10.0 ** torch.linspace(-3, 3, 12, dtype=F64)
    return _linear(
        "coordinates of scales 1e-3 to 1e3, coupled",
        scale[:, None] * _dense(12, 0.7, seed=21) / scale,
        _normal(3, 12, seed=22) * scale * torch.tensor([[1e-3], [1.0], [1e3]], dtype=F64),
    )


@torch.no_grad()
def _cell(probes: str, cell, shape: tuple[int, ...], picard: bool = True) -> Problem:
    cell = cell.double().eval()
    u = _normal(4, *shape, seed=31)

    def f(z, u):
        return cell.to(z.dtype)(z.unflatten(1, shape), u).flatten(1)

    return Problem(probes, f, u, torch.zeros_like(u).flatten(1), picard)


def _problems() -> dict[str, Problem]:
    torch.manual_seed(0)
    dottie, root = 0.7390851332151607, (math.sqrt(5.8) - 1) / 2
    high = 0.9575040240772687  # tanh(2 z) = z
    return {
        "easy symmetric": _linear("a plain contraction", _symmetric(16, -0.5, 0.5, 1)),
        "stiff symmetric": _linear("spectrum at ±0.99", _symmetric(64, -0.99, 0.99, 2)),
        "stiff positive": _linear("spectrum close to 1 only", _symmetric(24, 0.0, 0.99, 3)),
        "stiff negative": _linear("spectrum close to −1 only", _symmetric(24, -0.99, 0.0, 4)),
        "dense": _linear("norm 0.95, neither symmetric nor normal", _dense(16, 0.95, 5)),
        "transient growth": _linear(
            "spectral radius 0.5, norm 5: residuals grow before they fall",
            0.5 * torch.eye(8, dtype=F64) + 5 * _shift(8),
        ),
        "nilpotent 8": _linear("all of memory 5 and some more", _shift(8)),
        "nilpotent 16": _linear("three times the memory", _shift(16)),
        "nilpotent 64": _linear("one entry settles at a time", _shift(64)),
        "nilpotent driven at its end": _linear(
            "nothing but the last entry is driven", _shift(16), torch.eye(16, dtype=F64)[-1:]
        ),
        "strictly triangular": _linear(
            "nilpotent and far from normal", _normal(12, 12, seed=6).triu(1)
        ),
        "rotation 0.5": _linear("complex eigenvalues", _rotation(0.5)),
        "rotation 0.9": _linear("complex eigenvalues, slower", _rotation(0.9)),
        "rotation 0.99": _linear("complex eigenvalues near the circle", _rotation(0.99)),
        "rotation 1.05": _linear(
            "plain iteration spirals outward", _rotation(1.05), _normal(3, 2, seed=2), False
        ),
        "cycle": _linear(
            "sixteen eigenvalues on a circle of radius 0.95",
            0.95 * torch.eye(16, dtype=F64).roll(1, 0),
        ),
        "expanding": _linear(
            "every direction expands, with alternating sign",
            _symmetric(6, -3.0, -1.5, 7),
            picard=False,
        ),
        "stiff scalar": _elementwise(
            "slope −0.999", lambda z, u: u - 0.999 * z, [0.0], [3.0], False, [3 / 1.999], 0.51
        ),
        "constant": _linear("solved by one step", torch.zeros(4, 4, dtype=F64)),
        "identity": _elementwise(
            "every point is fixed", lambda z, u: z + 0 * u, [0.0, 2.0, -1e6], None, True
        ),
        "drift": _elementwise("z + 1: no fixed point", lambda z, u: z + 1, [0.0, 5.0], None, False),
        "two fixed points": _elementwise(
            "two attract, with a repelling one at 5 between them",
            lambda z, u: 5 + torch.tanh(2 * (z - 5)),
            [5.1, 4.9, 8.0],
            None,
            True,
            [5 + high, 5 - high, 5 + high],
            2.0,
        ),
        "repelling origin": _elementwise(
            "near zero the relative residual says one half, however small the state",
            lambda z, u: torch.tanh(2 * z),
            [0.1, -0.1, 3.0],
            None,
            True,
            [high, -high, high],
            2.0,
        ),
        "cosine": _elementwise(
            "alternating convergence",
            lambda z, u: torch.cos(z),
            [0.0, 3.0],
            None,
            True,
            [dottie] * 2,
            1.0,
        ),
        "logistic": _elementwise(
            "chaotic orbit, repelling fixed points",
            lambda z, u: 1 + 3.9 * (z - 1) * (2 - z),
            [1.1, 1.4],
            None,
            False,
        ),
        "undefined region": _elementwise(
            "NaN beyond 1.2, where one row starts",
            lambda z, u: torch.sqrt(1.2 - z),
            [0.0, 1.0, 2.0],
            None,
            False,
            [root] * 3,
            1.0,
        ),
        "step": _elementwise(
            "discontinuous, no fixed point",
            lambda z, u: torch.where(z > 0, -1.0, 1.0).to(z.dtype),
            [0.3, -7.0],
            None,
            False,
        ),
        "tanh": _contraction("a smooth contraction", torch.tanh, 0.9, 12, 8),
        "relu": _contraction("a piecewise linear contraction", torch.relu, 0.8, 20, 10),
        "sine": _contraction("slopes of both signs", torch.sin, 0.95, 6, 12),
        "mixed scales": _mixed_scales(),
        "paper's cell": _cell("batch normalization", DEQCell((8,), (8,), weight_scale=0.5), (8,)),
        "conv cell": _cell(
            "group normalization on a grid", ConvCell((4, 3, 3), (4, 3, 3), groups=2), (4, 3, 3)
        ),
        "monotone cell": _cell(
            "a fixed point without contraction", MonotoneCell((8,), (8,)), (8,), False
        ),
    }


PROBLEMS = _problems()
SOLVERS = {"picard": Picard, "anderson": Anderson, "broyden": Broyden}


class _Counted:
    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, z, u):
        self.calls += 1
        return self.f(z, u)


@pytest.fixture(autouse=True)
def _without_gradients():
    """As solvers are called, but for unrolled gradients, for which no row may leave."""
    with torch.no_grad():
        yield


@functools.cache
def _solve(solver: str, name: str, tolerance=1e-5, evaluations=LIMIT, dtype=F64, scale=1.0):
    """Return the solver's result on the map ``z ↦ s·f(z/s)``, and the calls it made."""
    problem = PROBLEMS[name]
    f = problem.f if scale == 1.0 else lambda z, u: scale * problem.f(z / scale, u)
    counted = _Counted(f)
    result = SOLVERS[solver](tolerance, evaluations)(
        counted, scale * problem.z0.to(dtype), problem.u.to(dtype)
    )
    return result, counted.calls


def _residual(f, z: Tensor, u: Tensor) -> Tensor:
    image = f(z, u)
    difference = (image - z).double().norm(dim=1)
    residual = difference / image.double().norm(dim=1)
    return torch.where(difference == 0, 0.0, torch.where(residual.isfinite(), residual, math.inf))


every = pytest.mark.parametrize("name", PROBLEMS)
solvers = pytest.mark.parametrize("solver", SOLVERS)


def test_every_problem_says_what_it_probes():
    assert len(PROBLEMS) >= 18
    assert len({p.probes for p in PROBLEMS.values()}) == len(PROBLEMS)


@every
@solvers
def test_reports_are_true_and_nothing_is_printed(solver, name, capsys):
    """The evaluations counted are those made; residual and verdict are the returned state's."""
    problem = PROBLEMS[name]
    for evaluations in (1, 7, LIMIT):
        result, calls = _solve(solver, name, evaluations=evaluations)
        assert result.nfe == calls <= evaluations
        assert result.state.isfinite().all()
        expected = _residual(problem.f, result.state, problem.u)
        torch.testing.assert_close(result.residual, expected, rtol=1e-9, atol=1e-13)
        assert torch.equal(result.converged, result.residual <= 1e-5)
    assert capsys.readouterr() == ("", "")


@every
@solvers
def test_residual_in_single_precision_is_right_to_a_millionth(solver, name):
    problem = PROBLEMS[name]
    for evaluations in (7, 200):
        result, _ = _solve(solver, name, evaluations=evaluations, dtype=torch.float32)
        expected = _residual(problem.f, result.state, problem.u.float()).float()
        torch.testing.assert_close(result.residual, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(result.converged, result.residual <= 1e-5)


@pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if p.solution is not None])
@solvers
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
def test_what_is_called_converged_is_near_the_solution(solver, name, tolerance):
    problem, (result, _) = PROBLEMS[name], _solve(solver, name, tolerance)
    assert torch.equal(result.converged, result.residual <= tolerance)
    image = problem.f(result.state, problem.u)
    distance = (result.state - problem.solution).norm(dim=1)
    bound = problem.amplification * (tolerance + 1e-12) * image.norm(dim=1)
    if name in ("two fixed points", "repelling origin"):  # there are three, each a solution
        middle = 5.0 if name == "two fixed points" else 0.0
        for other in (2 * middle - problem.solution, torch.full_like(image, middle)):
            distance = torch.minimum(distance, (result.state - other).norm(dim=1))
    assert (distance <= bound)[result.converged].all()


@pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if not p.fixed_points])
@solvers
def test_without_a_fixed_point_only_a_small_relative_residual_converges(solver, name):
    """A drift of one is small beside a state of 1e5, and nothing else is claimed of it."""
    problem, (result, _) = PROBLEMS[name], _solve(solver, name)
    if name == "drift":
        assert (result.state.abs() >= 0.99e5).all(1)[result.converged].all()
    elif name == "step":
        assert not result.converged.any()
    assert (_residual(problem.f, result.state, problem.u) <= 1e-5)[result.converged].all()


@every
def test_picard_converges_exactly_where_it_is_known_to(name):
    result, _ = _solve("picard", name)
    assert bool(result.converged.all()) == PROBLEMS[name].picard


def test_a_repelling_fixed_point_at_the_origin_is_not_mistaken_for_convergence():
    """Anderson is drawn to it, and no relative residual could tell it from any other point."""
    result, _ = _solve("anderson", "repelling origin", evaluations=60)
    assert result.state.isfinite().all()
    assert torch.equal(result.converged, result.residual <= 1e-5)
    far = result.state.abs() > 0.9
    assert torch.equal(result.converged, (far | (result.state == 0))[:, 0])


FAIR = [n for n, p in PROBLEMS.items() if p.picard and n != "repelling origin"]
# Plain iteration ends nilpotent maps after as many steps as their index, where combinations of
# fewer iterates than that end nothing; and it takes residuals over hills.
LONG_MEMORY = [
    "nilpotent 8",
    "nilpotent 16",
    "nilpotent driven at its end",
    "strictly triangular",
    "transient growth",
]


@pytest.mark.parametrize("name", [n for n in FAIR if n not in LONG_MEMORY])
@pytest.mark.parametrize(
    ("tolerance", "dtype"), [(1e-3, F64), (1e-5, F64), (1e-5, torch.float32), (1e-8, F64)]
)
def test_anderson_stays_within_one_and_a_half_times_picard(name, tolerance, dtype):
    picard, _ = _solve("picard", name, tolerance, dtype=dtype)
    if not picard.converged.all():  # in single precision, or at the smallest tolerance
        return
    anderson, _ = _solve("anderson", name, tolerance, dtype=dtype)
    assert anderson.converged.all()
    assert anderson.nfe <= 1.5 * picard.nfe


@pytest.mark.parametrize("name", LONG_MEMORY)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
def test_far_from_normal_maps_need_memory(name, tolerance):
    """Within 1.6 of plain iteration with as much memory as entries, within 3.5 by default."""
    problem = PROBLEMS[name]
    picard, _ = _solve("picard", name, tolerance)
    long = Anderson(tolerance, LIMIT, memory=problem.z0.shape[1])(problem.f, problem.z0, problem.u)
    short, _ = _solve("anderson", name, tolerance)
    for result, factor in ((long, 1.6), (short, 3.5)):
        assert result.converged.all()
        assert result.nfe <= factor * picard.nfe


@pytest.mark.parametrize("family", ["linear", "tanh", "relu", "cosine"])
@pytest.mark.parametrize("seed", range(12))
def test_anderson_stays_within_one_and_a_half_times_picard_on_random_maps(family, seed):
    n = [1, 2, 5, 12, 30, 64][seed % 6]
    matrix = _normal(n, n, seed=seed)
    radius = torch.linalg.eigvals(matrix).abs().max()
    matrix = matrix * ([0.5, 0.9][seed % 2] / radius)  # of any norm
    u = _normal(1, n, seed=seed + 100)
    act = {"linear": lambda y: y, "tanh": torch.tanh, "relu": torch.relu, "cosine": torch.cos}
    f = lambda z, u: act[family](z @ matrix.T + u)  # noqa: E731
    picard = Picard(max_evaluations=400)(f, torch.zeros_like(u), u)
    anderson = Anderson(max_evaluations=600)(f, torch.zeros_like(u), u)
    if picard.converged.all():
        assert anderson.converged.all()
        assert anderson.nfe <= 1.5 * picard.nfe


@every
@solvers
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_a_power_of_two_in_the_scale_of_the_state_changes_no_bit(solver, name, scale):
    """Nothing is rounded differently, so not even an orbit that magnifies rounding changes."""
    if name == "repelling origin":  # there the range of numbers ends
        return
    plain, _ = _solve(solver, name, evaluations=300)
    scaled, _ = _solve(solver, name, evaluations=300, scale=scale)
    assert scaled.nfe == plain.nfe
    assert torch.equal(scaled.state, scale * plain.state)
    assert torch.equal(scaled.residual, plain.residual)


@pytest.mark.parametrize("name", FAIR)
@solvers
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_evaluations_do_not_depend_on_the_scale_of_the_state(solver, name, scale):
    plain, _ = _solve(solver, name)
    if plain.nfe <= 60:  # long solves of accelerated methods magnify the other rounding
        scaled, _ = _solve(solver, name, scale=scale)
        assert abs(scaled.nfe - plain.nfe) <= 1
        assert torch.equal(scaled.converged, plain.converged)


@pytest.mark.parametrize("n", [8, 16])
def test_anderson_with_memory_for_it_ends_nilpotent_maps_as_plain_iteration_does(n):
    problem = PROBLEMS[f"nilpotent {n}"]
    for solver, allowed in ((Picard(), n + 1), (Anderson(memory=n), n + 3)):
        result = solver(problem.f, problem.z0, problem.u)
        assert result.converged.all()
        assert result.nfe <= allowed


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99, 1.05])
def test_two_differences_solve_a_rotation_at_any_radius(radius):
    for solver in ("anderson", "broyden"):
        result, _ = _solve(solver, f"rotation {radius}")
        assert result.converged.all()
        assert result.nfe <= 6


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_anderson_needs_a_hundred_evaluations_on_stiff_maps_in_single_precision(seed, scale):
    matrix = _symmetric(64, -0.99, 0.99, seed).float()
    u = scale * _normal(8, 64, seed=seed + 50).float()
    result = Anderson(max_evaluations=200, memory=10)(
        lambda z, u: z @ matrix.T + u, torch.zeros_like(u), u
    )
    assert result.converged.all()
    assert result.nfe <= 100


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_anderson_needs_eighteen_evaluations_on_the_papers_cell(seed, scale):
    torch.manual_seed(seed)
    cell, u = DEQCell((64,), (64,), weight_scale=0.5).eval(), torch.randn(128, 64)
    result = Anderson()(lambda z, u: scale * cell(z / scale, u), torch.zeros(128, 64), u)
    assert result.converged.all()
    assert result.nfe <= 18


class _Splitting:
    """The suite's monotone cell as a map that comes apart, counting evaluations."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.cell, self.calls = MonotoneCell((8,), (8,)).double().requires_grad_(False), 0

    def _counted(self, act):
        def counting(*arguments):
            self.calls += 1
            return act(*arguments)

        return counting

    def __call__(self, z, u):
        return self._counted(self.cell)(z, u)

    def split(self, u):
        s = self.cell.split(u)
        return Splitting(
            self._counted(s.affine),
            lambda alpha: self._counted(s.resolvent(alpha)),
            s.proximal,
            s.step_limit,
        )


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_splitting_solvers_keep_the_suite_s_promises_on_the_monotone_cell(solver, scale):
    f, u = _Splitting(), _normal(4, 8, seed=31)
    plain = solver(1e-5, LIMIT)(f, torch.zeros_like(u), u)
    assert plain.nfe == f.calls
    scaled = solver(1e-5, LIMIT)(f, torch.zeros_like(u), scale * u)  # ReLU scales along
    assert abs(scaled.nfe - plain.nfe) <= 1
    assert scaled.converged.all()
    torch.testing.assert_close(
        scaled.residual, _residual(f.cell, scaled.state, scale * u), rtol=1e-9, atol=1e-13
    )
    reference = Anderson(1e-12, LIMIT)(f, torch.zeros_like(u), u)
    assert reference.converged.all()
    torch.testing.assert_close(plain.state, reference.state, rtol=0, atol=1e-3)
