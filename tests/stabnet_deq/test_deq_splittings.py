"""Forward–backward and Peaceman–Rachford splitting: convergence, truth of reports, gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from stabnet_deq import ForwardBackward, MonotoneCell, PeacemanRachford
from stabnet_deq.monotone import ACTIVATIONS, leaky_relu
from torch import Tensor

import stabnet
from stabnet import Equilibrium
from stabnet.interfaces import Splitting

SHAPES = {"vector": (6,), "image": (2, 3, 4)}


def _cell(shape=(6,), seed=0, **options) -> MonotoneCell:
    torch.manual_seed(seed)
    return MonotoneCell(shape, shape, **options).double()


def _features(shape=(6,), batch=4, seed=1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)


class _Map:
    """A cell of vectors as a map that comes apart, counting what solvers ask of it."""

    def __init__(self, cell: MonotoneCell, proximal=None) -> None:
        self.cell, self.proximal, self.evaluations = cell, proximal, 0

    def _counted(self, act):
        def counting(*arguments):
            self.evaluations += 1
            with torch.no_grad():
                return act(*arguments)

        return counting

    def __call__(self, z, u):
        return self._counted(self.cell)(z, u)

    def split(self, u):
        with torch.no_grad():
            s = self.cell.split(u)
        return Splitting(
            self._counted(s.affine),
            lambda alpha: self._counted(s.resolvent(alpha)),
            self.proximal or s.proximal,
            s.step_limit,
        )


def _true_residual(cell: MonotoneCell, result, u: Tensor) -> Tensor:
    with torch.no_grad():
        image = cell(result.state, u)
    difference = (image - result.state).norm(dim=1)
    return torch.where(difference == 0, 0, difference / image.norm(dim=1))


SOLVERS = {
    "forward_backward": ForwardBackward(1e-11, 1000),
    "peaceman_rachford": PeacemanRachford(1e-11, 1000),
}


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("alpha", [1e-2, 0.1, 1.0, 10.0, 100.0])
def test_peaceman_rachford_converges_for_every_step(alpha, activation):
    cell, u = _cell(activation=activation), _features()
    reference = PeacemanRachford(1e-12, 500)(_Map(cell), torch.zeros_like(u), u)
    solver = PeacemanRachford(1e-6, 5000, splitting_step=alpha)
    result = solver(_Map(cell), torch.zeros_like(u), u)
    assert result.converged.all()
    torch.testing.assert_close(result.state, reference.state, rtol=0, atol=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_backward_converges_below_the_limit(shape, share):
    cell, u = _cell(shape), _features(shape)
    alpha = share * cell.split(u).step_limit()
    solution = Equilibrium(cell, ForwardBackward(1e-6, 5000, splitting_step=alpha))(u)
    assert solution.converged.all()
    exact = Equilibrium(cell, SOLVERS["peaceman_rachford"])(u).state
    torch.testing.assert_close(solution.state, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [1.0, 1.5, 100.0])
def test_forward_backward_refuses_a_step_at_or_above_the_limit(factor):
    cell, u = _cell(), _features()
    alpha = factor * cell.split(u).step_limit()
    with pytest.raises(stabnet.InvalidOptionError, match="peaceman_rachford"):
        Equilibrium(cell, ForwardBackward(splitting_step=alpha))(u)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_step_limit_is_that_of_the_weights(shape):
    cell, u = _cell(shape, monotonicity=0.3), _features(shape)
    n = u[0].numel()
    with torch.no_grad():
        dense = cell.weight()(torch.eye(n, dtype=torch.float64).reshape(n, *shape))
    norm = torch.linalg.matrix_norm(torch.eye(n) - dense.reshape(n, n), 2).item()
    exact = 2 * 0.3 / norm**2
    assert cell.split(u).step_limit() == pytest.approx(exact, rel=1e-12)


def test_monotonicity_lost_to_rounding_still_gives_a_step_and_a_true_residual():
    cell, u = MonotoneCell((3,), (3,), 1e-8), torch.ones(2, 3)
    for parameter in cell.parameters():
        parameter.data.zero_()  # in single precision W is the identity
    solution = Equilibrium(cell, ForwardBackward())(u)
    expected = _true_residual(cell, solution, u)
    torch.testing.assert_close(solution.residual, expected, rtol=0, atol=1e-6)


def test_forward_backward_diverges_above_the_limit_of_a_rotation():
    """I − W = mI + K with K skew: there the limit is sharp."""
    cell, u = _cell((2,), monotonicity=0.5), _features((2,))
    cell.weight.A.data.zero_()
    cell.weight.B.data.copy_(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    cell.activation = leaky_relu(1.0)  # the identity
    limit = cell.split(u).step_limit()
    below, above = (
        ForwardBackward(1e-6, 2000, splitting_step=c * limit, fixed_iterations=True)
        for c in (0.95, 1.05)
    )
    start = Equilibrium(cell, SOLVERS["peaceman_rachford"])(u).state + 1e-3
    assert below(_Map(cell), start, u).converged.all()
    assert not above(_Map(cell), start, u).converged.any()


@pytest.mark.parametrize("evaluations", [3, 4, 6, 11, 500])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reported_residual_is_that_of_the_map_at_the_returned_state(activation, dtype, evaluations):
    cell, u = _cell(activation=activation).to(dtype), _features().to(dtype)
    for solver in (
        ForwardBackward(1e-5, evaluations),
        PeacemanRachford(1e-5, evaluations),
        PeacemanRachford(1e-5, evaluations, splitting_step=0.02),
    ):
        result = solver(_Map(cell), torch.zeros_like(u), u)
        expected = _true_residual(cell, result, u)
        atol = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.residual, expected, rtol=1e-5, atol=atol)
        assert (result.converged == (result.residual <= 1e-5)).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_every_evaluation_is_counted_and_the_allowance_kept(solver):
    cell, u = _cell(), _features()
    f = _Map(cell)
    result = solver(f, torch.zeros_like(u), u)
    assert result.converged.all()
    assert result.nfe == f.evaluations
    for allowed in range(3, 12):
        f = _Map(cell)
        result = type(solver)(1e-11, allowed)(f, torch.zeros_like(u), u)
        assert not result.converged.all()
        assert allowed - 1 <= result.nfe == f.evaluations <= allowed


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
def test_activation_in_place_of_its_proximal_operator_is_not_reported_as_converged(solver):
    """The iteration converges, but to a wrong point; only the map itself can tell."""
    cell, u = _cell(activation="tanh"), _features()
    wrong = _Map(cell, proximal=lambda v, alpha: torch.tanh(v))
    result = solver(1e-6, 500, splitting_step=0.1)(wrong, torch.zeros_like(u), u)
    assert not result.converged.any()
    assert (result.residual > 1e-2).all()
    torch.testing.assert_close(result.residual, _true_residual(cell, result, u))


def test_rows_that_rounding_misjudged_are_taken_further():
    """The map confirms with a residual of its own, here thirty times that of the splitting."""
    cell, u = _cell(), _features()

    class Strict(_Map):
        def __call__(self, z, u):
            image = super().__call__(z, u)
            return z + 30 * (image - z)

    for solver in SOLVERS.values():
        plain = type(solver)(1e-6, 500)(_Map(cell), torch.zeros_like(u), u)
        f = Strict(cell)
        result = type(solver)(1e-6, 500)(f, torch.zeros_like(u), u)
        assert result.converged.all()
        assert result.nfe == f.evaluations > plain.nfe


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_exact_start_and_origin_cost_two_evaluations(solver):
    cell, u = _cell(), _features()
    exact = type(solver)(1e-14, 2000)(_Map(cell), torch.zeros_like(u), u).state
    again = solver(_Map(cell), exact, u)
    assert again.nfe == 2
    assert again.converged.all()
    origin = solver(_Map(cell), torch.zeros_like(u), -u.abs() * 0)
    assert origin.nfe == 2
    assert (origin.residual == 0).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_bad_samples_leave_the_others_as_they_are(solver):
    cell, u = _cell(), _features(batch=5)
    u[1], u[3, 0] = torch.nan, torch.inf
    result = solver(_Map(cell), torch.zeros_like(u), u)
    assert result.converged.tolist() == [True, False, True, False, True]
    assert result.state.isfinite().all()
    good = [0, 2, 4]
    alone = solver(_Map(cell), torch.zeros_like(u)[good], u[good])
    torch.testing.assert_close(result.state[good], alone.state, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
def test_failure_is_reported_per_sample_and_raised_on_request(solver):
    cell, u = _cell(), _features()
    u[0] = 0.0
    result = solver(1e-10, 6)(_Map(cell), torch.zeros_like(u), u)
    assert result.converged.tolist() == [True, False, False, False]
    with pytest.raises(stabnet.ConvergenceError, match="3 of 4"):
        solver(1e-10, 6, throw=True)(_Map(cell), torch.zeros_like(u), u)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_nan_weights_are_reported_not_raised(solver):
    cell, u = _cell(), _features()
    cell.weight.A.data[0, 0] = torch.nan
    result = solver(_Map(cell), torch.zeros_like(u), u)
    assert not result.converged.any()
    assert (result.state == 0).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_map_that_does_not_come_apart_is_refused(name):
    solver = SOLVERS[name]
    with pytest.raises(stabnet.InvalidOptionError, match=f"{name}.*anderson"):
        solver(lambda z, u: z / 2, torch.zeros(2, 3))
    other = stabnet.build("deq", solver=name, in_shape=(4,), num_outputs=2, backbone="linear")
    with pytest.raises(stabnet.InvalidOptionError, match=f"{name}.*anderson"):
        other.eval()(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_evaluations": 2}, "max_evaluations"),
        ({"splitting_step": 0.0}, "splitting_step"),
        ({"splitting_step": math.inf}, "splitting_step"),
        ({"splitting_step": math.nan}, "splitting_step"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, word):
    for solver in (ForwardBackward, PeacemanRachford):
        with pytest.raises(stabnet.InvalidOptionError, match=word):
            solver(**options)


def test_forward_backward_in_fixed_iterations_needs_its_step():
    with pytest.raises(stabnet.InvalidOptionError, match="splitting_step"):
        ForwardBackward(fixed_iterations=True)


@pytest.mark.parametrize("solver", [ForwardBackward, PeacemanRachford])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_fixed_iterations_compile_to_one_graph_and_map(solver, activation):
    cell, u = _cell(activation=activation), _features()
    fixed = solver(max_evaluations=8, splitting_step=0.1, fixed_iterations=True)

    def solve(u: Tensor) -> Tensor:
        f = lambda z, u: cell(z, u)  # noqa: E731
        f.split = cell.split
        return fixed(f, torch.zeros_like(u), u).state

    with torch.no_grad():
        expected = solve(u)
        compiled = torch.compile(solve, fullgraph=True, backend="eager")(u)
        mapped = torch.vmap(solve)(torch.stack([u, 2 * u]))
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(mapped[0], expected)
    f = _Map(cell)
    assert fixed(f, torch.zeros_like(u), u).nfe == f.evaluations == 7


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_adjoint_splitting_solves_the_transposed_linear_system(shape, activation):
    cell, u, g = _cell(shape, activation=activation), _features(shape, 1), _features(shape, 1, 9)
    z = Equilibrium(cell, SOLVERS["peaceman_rachford"])(u).state.detach()
    J = torch.func.jacrev(cell)(z, u).reshape(z.numel(), z.numel())
    expected = torch.linalg.solve(torch.eye(z.numel()) - J.T, g.flatten()).reshape(z.shape)

    with torch.no_grad():
        splitting = cell.split_adjoint(z, u, g)
        y = z.new_zeros(z.shape)
        resolvent = splitting.resolvent(0.6)
        for _ in range(300):
            v = 0.4 * y + 0.6 * splitting.affine(y)
            y = resolvent(2 * splitting.proximal(v, 0.6) - v)
    torch.testing.assert_close(splitting.solution(y), expected, rtol=1e-9, atol=1e-9)
    assert splitting.step_limit() == pytest.approx(cell.split(u).step_limit())


@pytest.mark.parametrize("pair", [*itertools.product(SOLVERS, SOLVERS), ("anderson", "anderson")])
@pytest.mark.parametrize(
    ("shape", "activation"), [((2,), "relu"), ((2,), "tanh"), ((1, 3, 3), "soft_threshold")]
)
def test_implicit_gradient_passes_gradcheck(shape, activation, pair):
    cell, u = _cell(shape, activation=activation), _features(shape, 1).requires_grad_()
    forward, backward = (
        stabnet.build(name, kind="solver", tolerance=1e-10, max_evaluations=2000) for name in pair
    )
    equilibrium = Equilibrium(cell, forward, backward)
    names, parameters = zip(*equilibrium.named_parameters(), strict=True)

    def solve(u, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(equilibrium, named, (u,)).state

    assert torch.autograd.gradcheck(solve, (u, *parameters), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_backward_pass_reports_its_own_true_residual(solver):
    cell, u, g = _cell(), _features().requires_grad_(), _features(seed=9)
    solution = Equilibrium(cell, solver)(u)
    solution.state.backward(g)
    record = solution.backward
    assert record.converged.all()
    assert record.nfe > 2
    J = torch.func.vmap(torch.func.jacrev(cell))(solution.state.detach(), u.detach())
    w = torch.linalg.solve(torch.eye(6) - J.mT, g)
    d = cell.activation.slope(cell.weight()(solution.state) + u)
    torch.testing.assert_close(u.grad, d * w, rtol=1e-8, atol=1e-9)


def test_second_derivatives_need_a_backward_solver_for_any_map():
    cell, u = _cell((3,), activation="tanh"), _features((3,), 1).requires_grad_()
    anderson = stabnet.build("anderson", kind="solver", tolerance=1e-13, max_evaluations=500)
    able = Equilibrium(cell, PeacemanRachford(1e-13, 500), anderson)
    assert torch.autograd.gradgradcheck(lambda u: able(u).state, u, atol=1e-5)
    unable = Equilibrium(cell, PeacemanRachford(1e-13, 500))
    (first,) = torch.autograd.grad(unable(u).state.sum(), u, create_graph=True)
    with pytest.raises(stabnet.InvalidOptionError, match="anderson"):
        first.sum().backward()


@pytest.mark.parametrize("activation", ["softplus", "tanh"])
def test_unrolled_peaceman_rachford_has_second_derivatives(activation):
    cell, u = _cell((3,), activation=activation), _features((3,), 1).requires_grad_()
    solver = PeacemanRachford(1e-13, 500, splitting_step=0.6)
    unrolled = Equilibrium(cell, solver, gradient="unrolled")
    assert torch.autograd.gradgradcheck(lambda u: unrolled(u).state, u)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_unrolled_gradient_of_peaceman_rachford_approaches_the_implicit_one(activation):
    cell, u = _cell((3,), activation=activation), _features((3,), 2).requires_grad_()
    solver = PeacemanRachford(1e-13, 500, splitting_step=0.5)
    unrolled, implicit = (
        torch.autograd.grad(
            Equilibrium(cell, solver, gradient=gradient)(u).state.square().sum(),
            [u, *cell.parameters()],
        )
        for gradient in ("unrolled", "implicit")
    )
    for one, other in zip(unrolled, implicit, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    with pytest.raises(stabnet.InvalidOptionError, match="unroll"):
        Equilibrium(cell, ForwardBackward(), gradient="unrolled")
