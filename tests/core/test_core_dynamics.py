"""Flow, Equilibrium and Stack: what they compute, report and differentiate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stabnet
from stabnet import CellField, Equilibrium, Flow, InvalidInputError, InvalidOptionError, Stack
from stabnet.interfaces import Block, Cell, VectorField


def _solver(**options):
    return stabnet.build(
        {"name": "anderson", "tolerance": 1e-12, "max_evaluations": 200, **options}, kind="solver"
    )


def _cell(**options):
    torch.manual_seed(0)
    return stabnet.build(
        "deq", kind="cell", state_shape=(5,), feature_shape=(5,), **options
    ).double()


class _TwoPart(Cell):
    """A linear cell whose state is a tuple: ``p = weight · q``, ``q = p + u``, in two shapes."""

    state_shape = ((4,), (2, 2))
    feature_shape = (4,)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, z, u=None):
        p, q = z
        return self.weight * q.flatten(1), (p + u).unflatten(1, (2, 2))


class _Linear(Cell):
    state_shape = (4,)
    feature_shape = (4,)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, z, u=None):
        return self.weight * z + u


class _Dropping(_Linear):
    """A cell with dropout, linear in the state for every mask."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, z, u=None):
        return self.weight * self.dropout(z) + u


class _Shift(Block):
    """``z ↦ z + u``, which can be inverted."""

    state_shape = (3,)

    def forward(self, z, u=None):
        return z + u

    def inverse(self, z, u=None):
        return z - u


class _Decay(VectorField):
    state_shape = (3,)
    feature_shape = (3,)

    def forward(self, t, z, u=None):
        return -z if u is None else u - z


def test_equilibrium_of_a_linear_cell_and_its_gradient_have_closed_forms():
    cell = _Linear()
    u = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    solution = Equilibrium(cell, _solver())(u)
    torch.testing.assert_close(solution.state, u / 0.7)
    assert solution.backward.nfe is None
    solution.state.sum().backward()
    torch.testing.assert_close(u.grad, torch.full_like(u, 1 / 0.7))
    torch.testing.assert_close(cell.weight.grad, (u / 0.7**2).sum().detach())
    assert solution.backward.nfe >= 1
    assert solution.backward.converged.all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_implicit_gradient_passes_gradcheck_in_features_and_parameters(training, order):
    equilibrium = Equilibrium(_cell(), _solver()).train(training)
    names = [name for name, _ in equilibrium.named_parameters()]
    u = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in equilibrium.parameters()]

    def solve(u, *parameters):
        tensors = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(equilibrium, tensors, (u,)).state

    if order == 1:
        assert torch.autograd.gradcheck(solve, (u, *parameters))
    else:
        assert torch.autograd.gradgradcheck(
            lambda u, w: solve(u, w, *parameters[1:]), (u, parameters[0])
        )


def test_implicit_gradient_equals_unrolled_gradient():
    cell, u = _cell().eval(), torch.randn(4, 5, dtype=torch.float64)
    equilibrium = Equilibrium(cell, _solver())
    implicit = torch.autograd.grad(equilibrium(u).state.square().sum(), list(cell.parameters()))
    z = torch.zeros_like(u)
    for _ in range(200):
        z = cell(z, u)
    unrolled = torch.autograd.grad(z.square().sum(), list(cell.parameters()))
    torch.testing.assert_close(implicit, unrolled, rtol=1e-9, atol=1e-11)


def test_gradient_reaches_features_when_all_parameters_are_frozen():
    equilibrium = Equilibrium(_cell().eval().requires_grad_(False), _solver())
    u = (1 + torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(equilibrium(u).state.sum(), u)
    through = torch.func.grad(lambda u: equilibrium(u).state.sum())(u.detach())
    assert gradient.abs().min() > 0
    torch.testing.assert_close(gradient, through)


def test_backward_solver_has_its_own_options():
    rough = stabnet.build("picard", kind="solver", max_evaluations=2, tolerance=1e-12)
    u = torch.rand(4, 5, dtype=torch.float64)
    records = []
    for backward_solver in (None, rough):
        solution = Equilibrium(_cell(weight_scale=1.0).eval(), _solver(), backward_solver)(u)
        solution.state.square().sum().backward()
        records.append(solution.backward)
    assert records[0].converged.all()
    assert records[1].nfe == 2
    assert not records[1].converged.any()


def test_batch_statistics_update_once_per_forward():
    cell = _cell()
    Equilibrium(cell, _solver())(torch.randn(8, 5, dtype=torch.float64)).state.sum().backward()
    assert cell.inner_norm.num_batches_tracked == 1
    assert cell.outer_norm.num_batches_tracked == 1
    assert cell.inner_norm.track_running_stats


def test_running_statistics_are_those_of_the_equilibrium():
    cell = _cell()
    u = torch.randn(8, 5, dtype=torch.float64)
    state = Equilibrium(cell, _solver())(u).state
    hidden = cell.inner(state).relu()
    torch.testing.assert_close(cell.inner_norm.running_mean, 0.1 * hidden.mean(0).detach())


def test_samples_do_not_depend_on_their_batch_in_eval_mode():
    equilibrium = Equilibrium(_cell().eval(), _solver())
    u = torch.randn(6, 5, dtype=torch.float64)
    u[3] *= 100  # one hard sample among easy ones
    together = equilibrium(u)
    alone = torch.cat([equilibrium(row[None]).state for row in u])
    torch.testing.assert_close(together.state, alone, rtol=1e-9, atol=1e-10)
    assert together.residual.shape == together.converged.shape == (6,)


def test_residual_is_that_of_the_state_in_both_modes():
    for training in (False, True):
        equilibrium = Equilibrium(_cell(), _solver(max_evaluations=4)).train(training)
        u = torch.randn(6, 5, dtype=torch.float64)
        solution = equilibrium(u)
        image = equilibrium.cell(solution.state, u)
        expected = (image - solution.state).norm(dim=1) / image.norm(dim=1)
        torch.testing.assert_close(solution.residual, expected, rtol=1e-6, atol=1e-14)


class _Pair(Cell):
    state_shape = (2,)
    feature_shape = (2,)

    def forward(self, z, u=None):
        return z / 3 + u


def test_cell_field_vanishes_at_the_equilibrium_and_takes_samples():
    cell = _cell().eval()
    u = torch.randn(4, 5, dtype=torch.float64)
    state = Equilibrium(cell, _solver())(u).state
    field = CellField(cell)
    assert field(0.0, state, u).abs().max() < 1e-10
    z = torch.randn(1, 7, 5, dtype=torch.float64)
    many = field(0.0, z, u)
    assert many.shape == (4, 7, 5)
    torch.testing.assert_close(many[2], field(0.0, z[0], u[2].expand(7, 5)))


def test_bfloat16_autocast_solves_and_differentiates():
    torch.manual_seed(0)
    cell = stabnet.build("deq", kind="cell", state_shape=(5,), feature_shape=(5,))
    equilibrium = Equilibrium(cell, stabnet.build("anderson", kind="solver"))
    u = torch.randn(8, 5, requires_grad=True)
    exact = equilibrium.eval()(u).state
    with torch.autocast("cpu", torch.bfloat16):
        solution = equilibrium(u.to(torch.bfloat16))
    assert solution.state.dtype == torch.float32
    assert solution.converged.all()
    assert (solution.state - exact).norm() < 0.05 * exact.norm()
    solution.state.sum().backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("initial", ["zeros", "features", "learned"])
def test_flow_starts_where_it_says(initial):
    flow = Flow(_Decay(), stabnet.build("rk4", kind="integrator", step_size=0.01), initial).double()
    u = torch.randn(4, 3, dtype=torch.float64)
    solution = flow(u, times=(0.0, 0.5, 1.0))
    decay = torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    start = {"zeros": u * 0, "features": u, "learned": u * 0}[initial]
    end = u * decay if initial == "features" else u * (1 - decay)
    torch.testing.assert_close(solution.states[0], start)
    torch.testing.assert_close(solution.state, end, rtol=1e-8, atol=1e-9)
    assert solution.nfe == 400
    assert len(list(flow.parameters())) == (1 if initial == "learned" else 0)


class _Double(Block):
    state_shape = (3,)

    def forward(self, z, u=None):
        return 2 * z + u


def test_stack_runs_its_stages_in_order_and_reports_each():
    flow = Flow(_Decay(), stabnet.build("euler", kind="integrator", step_size=0.5), "features")
    stack = Stack([flow, _Double(), flow])
    u = torch.randn(4, 3)
    solution = stack(u)
    torch.testing.assert_close(solution.state, (2 * u / 4 + u) / 4)
    assert solution.nfe == 4
    assert len(solution.stages) == 3
    assert solution.converged is None


def test_a_stack_resumes_without_the_stages_it_is_to_skip():
    flow = Flow(_Decay(), stabnet.build("euler", kind="integrator", step_size=0.5), "features")
    stack = Stack([flow, _Double(), flow])
    u = torch.randn(4, 3)
    solution = stack.resume(u, 0, u, skip=(0, 2))
    torch.testing.assert_close(solution.state, 3 * u)
    assert len(solution.stages) == 1
    torch.testing.assert_close(stack.resume(u, 0, u, skip=range(3)).state, u)
    with pytest.raises(InvalidInputError, match=r"\[0\] cannot be skipped.*\[1, 2\]"):
        stack.resume(u, 1, u, skip=(0,))


def test_a_stack_advances_by_one_stage_through_times_of_a_flow():
    flow = Flow(_Decay(), stabnet.build("euler", kind="integrator", step_size=0.5), "features")
    stack, u = Stack([flow, _Double()]), torch.randn(4, 3)
    solution = stack.advance(u, 0, u, (0.0, 0.5, 1.0))
    torch.testing.assert_close(solution.states, torch.stack([u, u / 2, u / 4]))
    torch.testing.assert_close(stack.advance(u, 1, u).state, 3 * u)
    with pytest.raises(InvalidInputError, match="_Double: it has no time"):
        stack.advance(u, 1, u, (0.0, 1.0))


def test_a_stack_is_inverted_from_its_last_stage_on():
    flatten = stabnet.build("flatten", kind="block", state_shape=(3, 1))
    stack = Stack([Stack([flatten]), _Shift()])
    z, u = torch.randn(4, 3, 1, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    end = stack.resume(z, 0, u).state
    torch.testing.assert_close(end, z.flatten(1) + u)
    torch.testing.assert_close(stack.inverse(end, u), z)


def test_a_stage_without_an_inverse_is_named():
    with pytest.raises(InvalidInputError, match="stage 1 of the stack, _Double, has no inverse"):
        Stack([_Shift(), _Double(), _Shift()]).inverse(torch.zeros(4, 3), torch.zeros(4, 3))


def test_arguments_that_make_no_sense_are_refused():
    flow = Flow(_Decay(), stabnet.build("euler", kind="integrator"), "features")
    with pytest.raises(InvalidInputError, match="needs them of shape"):
        flow(torch.randn(2, 4))
    with pytest.raises(InvalidOptionError, match="initial='zero'"):
        Flow(_Decay(), stabnet.build("euler", kind="integrator"), "zero")
    with pytest.raises(InvalidInputError, match="no trajectory"):
        Equilibrium(_Pair(), _solver())(torch.randn(2, 2), times=(0, 1))
    with pytest.raises(InvalidInputError, match="no common time"):
        Stack([flow])(torch.randn(2, 3), times=(0, 1))
    with pytest.raises(InvalidOptionError, match="at least one stage"):
        Stack([])
    with pytest.raises(InvalidInputError, match="needs features"):
        Equilibrium(_Pair(), _solver())(None)


def test_a_state_may_be_a_tuple_of_tensors():
    cell = _TwoPart()
    u = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    solution = Equilibrium(cell, _solver())(u)
    p, q = solution.state
    assert q.shape == (6, 2, 2)
    torch.testing.assert_close(q.flatten(1), u / 0.7)
    torch.testing.assert_close(p, 0.3 * u / 0.7)
    (gradient,) = torch.autograd.grad(p.sum() + q.sum(), u)
    torch.testing.assert_close(gradient, torch.full_like(u, 1.3 / 0.7))


def test_dropout_mask_is_one_for_the_whole_pass_and_new_in_the_next():
    torch.manual_seed(0)
    equilibrium = Equilibrium(_Dropping(), _solver()).train()
    u = (1 + torch.rand(6, 4, dtype=torch.float64)).requires_grad_()
    solution = equilibrium(u)
    assert solution.converged.all()
    # With a mask of zeros and twos the equilibrium is u / (1 − 0.3·mask).
    ratio = (solution.state / u).detach()
    kept = ratio > 1.5
    torch.testing.assert_close(ratio, torch.where(kept, 1 / 0.4, 1.0).double())
    assert 0 < kept.sum() < kept.numel()
    (gradient,) = torch.autograd.grad(solution.state.sum(), u)
    torch.testing.assert_close(gradient, ratio)
    assert not torch.equal(equilibrium(u).state, solution.state)


def test_dropout_leaves_the_random_numbers_of_others_reproducible():
    equilibrium = Equilibrium(_Dropping(), _solver()).train()
    u = torch.ones(6, 4, dtype=torch.float64)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((equilibrium(u).state, torch.rand(4)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    torch.manual_seed(3)
    assert not torch.equal(torch.rand(4), found[0][1])  # the pass moved the generator on


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_function_transforms_give_the_gradients_of_autograd(solver):
    options = {"tolerance": 1e-14, "max_evaluations": 40, "fixed_iterations": True}
    equilibrium = Equilibrium(
        _cell(weight_scale=0.5).eval(), stabnet.build(solver, kind="solver", **options)
    )
    u = torch.rand(3, 5, dtype=torch.float64)
    parameters = {n: p.detach() for n, p in equilibrium.named_parameters()}

    def loss(parameters, u):
        return torch.func.functional_call(equilibrium, parameters, (u[None],)).state.square().sum()

    ours = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, u)
    x = u.clone().requires_grad_()
    total = equilibrium(x).state.square().sum()
    expected, *rest = torch.autograd.grad(total, [x, *equilibrium.parameters()])
    for mine, theirs in zip(ours.values(), rest, strict=True):
        torch.testing.assert_close(mine.sum(0), theirs)
    equilibrium.requires_grad_(False)
    mapped = torch.func.vmap(lambda v: equilibrium(v[None]).state.square().sum())
    gradient = torch.func.grad(lambda u: mapped(u).sum())(u)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."),
    reason="torch 2.6 cannot trace functional_call in a backward pass",
)
def test_fixed_iterations_compile_with_their_gradient():
    solver = _solver(max_evaluations=20, fixed_iterations=True)
    equilibrium = Equilibrium(_cell().eval(), solver)
    u = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda u: equilibrium(u).state, fullgraph=True, backend="eager")
    (gradient,) = torch.autograd.grad(compiled(u).square().sum(), u)
    (expected,) = torch.autograd.grad(equilibrium(u).state.square().sum(), u)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adjoint_solve_knows_the_precision_of_autocast(dtype):
    torch.manual_seed(0)
    cell = stabnet.build(
        "deq", kind="cell", state_shape=(16,), feature_shape=(16,), weight_scale=0.5
    )
    equilibrium = Equilibrium(cell, stabnet.build("picard", kind="solver"))
    u = torch.randn(32, 16)
    with torch.autocast("cpu", dtype):
        solution = equilibrium(u)
        loss = (solution.state * torch.randn(32, 16)).sum()
    loss.backward()
    assert solution.backward.converged.all()
    assert solution.backward.nfe < 50


def test_empty_batches_pass_where_samples_are_independent_and_are_refused_elsewhere():
    equilibrium = Equilibrium(_cell(), _solver())
    u = torch.empty(0, 5, dtype=torch.float64)
    assert equilibrium.eval()(u).state.shape == (0, 5)
    with pytest.raises(InvalidInputError, match="empty batch"):
        equilibrium.train()(u)


def test_forward_pass_with_fixed_iterations_compiles_to_one_graph():
    solver = _solver(fixed_iterations=True, max_evaluations=8)
    equilibrium = Equilibrium(_cell().eval(), solver)
    u = torch.randn(4, 5, dtype=torch.float64)
    compiled = torch.compile(lambda u: equilibrium(u).state, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(u), equilibrium(u).state)
