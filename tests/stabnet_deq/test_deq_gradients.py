"""Gradients of equilibria: every solver, every kind of gradient, every way to ask for one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from stabnet_deq import (
    Anderson,
    Broyden,
    DEQCell,
    ForwardBackward,
    MonotoneCell,
    MultiscaleCell,
    PeacemanRachford,
    Picard,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from stabnet import Equilibrium, InvalidOptionError, StabnetError
from stabnet.interfaces import Cell

F64 = torch.float64
ITERATIVE = {"picard": Picard, "anderson": Anderson, "broyden": Broyden}
SPLITTING = {"forward_backward": ForwardBackward, "peaceman_rachford": PeacemanRachford}
UNROLLABLE = {**ITERATIVE, "peaceman_rachford": PeacemanRachford}


class _Smooth(Cell):
    """``tanh(Wz + u) + u/4``, a contraction, smooth to all orders."""

    state_shape = (3,)
    feature_shape = (3,)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        W = torch.randn(3, 3, generator=generator, dtype=F64)
        self.weight = nn.Parameter(0.6 * W / torch.linalg.matrix_norm(W, 2))
        self.bias = nn.Parameter(torch.randn(3, generator=generator, dtype=F64))

    def forward(self, z, u=None):
        return torch.tanh(z @ self.weight.T + self.bias + u) + u / 4


class _Linear(Cell):
    """``Mz·s + u``, where the first feature ``s`` scales the map: rows of every difficulty."""

    state_shape = (4,)
    feature_shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        M = torch.randn(4, 4, generator=generator, dtype=F64)
        self.M = nn.Parameter(0.95 * M / torch.linalg.matrix_norm(M, 2))

    def forward(self, z, u=None):
        return u[:, :1] * (z @ self.M.T) + u


class _Dropping(_Linear):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, z, u=None):
        return self.dropout(torch.tanh(super().forward(z, u) - u)) + u


def _features(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64).requires_grad_()


def _rows() -> Tensor:
    """Features of rows that take from a few evaluations to many."""
    u = _features(6, 4).detach()
    u[:, 0] = torch.tensor([0.01, 0.05, 0.4, 0.7, 0.9, 1.0])
    return u.requires_grad_()


def _monotone(n: int = 3) -> MonotoneCell:
    torch.manual_seed(0)
    return MonotoneCell((n,), (n,), activation="tanh").double()


def _with_parameters(equilibrium: Equilibrium):
    names, parameters = zip(*equilibrium.named_parameters(), strict=True)

    def state(u, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(equilibrium, named, (u,)).state

    return state, parameters


def _gradients(equilibrium: Equilibrium, u: Tensor, **options):
    state = equilibrium(u).state
    wanted = [u, *equilibrium.parameters()]
    return torch.autograd.grad(state.square().sum(), wanted, **options)


def _close(found, expected, rtol=1e-8, atol=1e-10):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


# ── exactness ──


@pytest.mark.parametrize("name", ITERATIVE)
def test_implicit_gradient_and_its_derivative_are_exact(name):
    solver = ITERATIVE[name](tolerance=1e-14, max_evaluations=400)
    state, parameters = _with_parameters(Equilibrium(_Smooth(), solver))
    u = _features(2, 3)
    assert gradcheck(state, (u, *parameters))
    assert gradgradcheck(state, (u, *parameters))


@pytest.mark.parametrize("name", SPLITTING)
def test_implicit_gradient_after_a_splitting_solver_is_exact_to_second_order(name):
    solver = SPLITTING[name](tolerance=1e-13, max_evaluations=2000)
    u = _features(1, 3)
    state, parameters = _with_parameters(Equilibrium(_monotone(), solver))
    assert gradcheck(state, (u, *parameters), atol=1e-6)
    able = Equilibrium(_monotone(), solver, Anderson(1e-13, 500))
    state, parameters = _with_parameters(able)
    assert gradgradcheck(state, (u, *parameters), atol=1e-5)
    (first,) = torch.autograd.grad(
        Equilibrium(_monotone(), solver)(u).state.sum(), u, create_graph=True
    )
    with pytest.raises(StabnetError, match=f"{name}.*anderson"):
        first.sum().backward()


@pytest.mark.parametrize("name", UNROLLABLE)
def test_unrolled_gradient_is_that_of_the_iterations_to_second_order(name):
    """A fixed number of them, far from convergence, is a function of its own."""
    split = name in SPLITTING
    cell = _monotone() if split else _Smooth()
    options = {"splitting_step": 0.4} if split else {}
    solver = UNROLLABLE[name](max_evaluations=5, fixed_iterations=True, **options)
    state, parameters = _with_parameters(Equilibrium(cell, solver, gradient="unrolled"))
    u = _features(2, 3)
    assert gradcheck(state, (u, *parameters))
    assert gradgradcheck(state, (u, *parameters))


@pytest.mark.parametrize("name", UNROLLABLE)
def test_unrolled_gradient_of_a_converged_solve_is_the_implicit_one(name):
    """In a batch of mixed difficulty, where finished rows wait for the others."""
    solver, u = UNROLLABLE[name](1e-12, 3000), _rows()
    cell = _Linear()
    if name in SPLITTING:
        cell, u = _monotone(4), _features(6, 4)
    implicit = _gradients(Equilibrium(cell, solver), u)
    unrolled = _gradients(Equilibrium(cell, solver, gradient="unrolled"), u)
    _close(unrolled, implicit, rtol=1e-5, atol=1e-6)


def test_unrolled_gradient_of_a_solver_that_has_none_is_refused_at_once():
    with pytest.raises(InvalidOptionError, match="ForwardBackward"):
        Equilibrium(_monotone(), ForwardBackward(), gradient="unrolled")


@pytest.mark.parametrize("name", [*ITERATIVE, *SPLITTING])
def test_phantom_gradient_of_one_step_is_that_of_the_cell(name):
    cell = _monotone() if name in SPLITTING else _Smooth()
    solver = {**ITERATIVE, **SPLITTING}[name](1e-10, 500)
    u, g = _features(2, 3), _features(2, 3, seed=5).detach()
    solution = Equilibrium(cell, solver, gradient="phantom")(u)
    found = torch.autograd.grad(solution.state, [u, *cell.parameters()], g)
    expected = torch.autograd.grad(cell(solution.state.detach(), u), [u, *cell.parameters()], g)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_phantom_gradient_tends_to_the_implicit_one(damping):
    cell, u = _Smooth(), _features(2, 3)
    implicit = _gradients(Equilibrium(cell, Anderson(1e-14, 300)), u)
    errors = []
    for steps in (1, 4, 16, 120):
        phantom = Equilibrium(cell, Anderson(1e-14, 300), None, "phantom", steps, damping)
        found = _gradients(phantom, u)
        errors.append(sum(float((a - b).norm()) for a, b in zip(found, implicit, strict=True)))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-9


def test_damped_phantom_gradient_has_its_closed_form():
    """``Σ (1 − λ + λ J_z)ᵏ λ J_a``, on a linear map with ``J_z = s M`` and ``J_u = I + …``."""
    cell, steps, damping = _Linear(), 3, 0.6
    u = _rows()
    u.data[:, 0] = 0.8
    state = Equilibrium(cell, Anderson(1e-13, 500), None, "phantom", steps, damping)(u).state
    g = _features(6, 4, seed=8).detach()
    (found,) = torch.autograd.grad(state, u, g)
    J = (1 - damping) * torch.eye(4, dtype=F64) + damping * 0.8 * cell.M.detach()
    w = damping * sum(g @ torch.linalg.matrix_power(J, k) for k in range(steps))
    torch.testing.assert_close(found[:, 1:], w[:, 1:])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ITERATIVE)
def test_second_derivative_of_a_phantom_gradient_is_refused(name, steps):
    equilibrium = Equilibrium(_Smooth(), ITERATIVE[name](), None, "phantom", steps)
    u = _features(2, 3)
    (first, *_) = _gradients(equilibrium, u, create_graph=True)
    with pytest.raises(StabnetError, match="phantom"):
        first.sum().backward()


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled"])
def test_value_and_report_do_not_depend_on_whether_a_gradient_is_wanted(gradient):
    """Also far from convergence, where another step would change the state visibly."""
    equilibrium = Equilibrium(_Linear(), Picard(max_evaluations=4), gradient=gradient)
    u = _rows()
    with_gradient = equilibrium(u)
    with torch.no_grad():
        without = equilibrium(u)
        image = equilibrium.cell(with_gradient.state, u)
    assert torch.equal(with_gradient.state, without.state)
    difference = (image - with_gradient.state).norm(dim=1)
    torch.testing.assert_close(with_gradient.residual, (difference / image.norm(dim=1)).detach())
    assert not with_gradient.residual.requires_grad


# ── modes and what is differentiated ──


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ITERATIVE)
def test_gradient_agrees_with_plain_iteration_in_both_modes(name, training):
    torch.manual_seed(0)
    cell = DEQCell((5,), (5,), weight_scale=0.4).double().train(training)
    u = _features(6, 5)
    found = _gradients(Equilibrium(cell, ITERATIVE[name](1e-13, 300)), u)
    z = torch.zeros_like(u)
    for _ in range(80):
        z = cell(z, u)
    _close(found, torch.autograd.grad(z.square().sum(), [u, *cell.parameters()]), atol=1e-9)


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled"])
def test_features_alone_or_parameters_alone_get_their_gradient(gradient):
    cell, u = _Smooth(), _features(2, 3)
    equilibrium = Equilibrium(cell, Anderson(1e-12, 200), gradient=gradient)
    both = _gradients(equilibrium, u)
    alone = torch.autograd.grad(equilibrium(u.detach()).state.square().sum(), cell.parameters())
    _close(alone, both[1:])
    cell.requires_grad_(False)
    _close(torch.autograd.grad(equilibrium(u).state.square().sum(), u), both[:1])
    cell.weight.requires_grad_()
    _close(torch.autograd.grad(equilibrium(u).state.square().sum(), [u, cell.weight]), both[:2])
    assert cell.bias.grad is None
    cell.weight.requires_grad_(False)
    assert not equilibrium(u.detach()).state.requires_grad
    with torch.no_grad():
        assert not equilibrium(u).state.requires_grad


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_tuple_states_are_differentiated(gradient):
    torch.manual_seed(0)
    cell = MultiscaleCell(((2, 3, 4), (4, 2, 2)), (2, 3, 4), groups=1).double()
    u = _features(2, 2, 3, 4)
    solution = Equilibrium(cell, Anderson(1e-12, 300), gradient=gradient)(u)
    assert solution.converged.all()
    g = tuple(torch.randn_like(s) for s in solution.state)
    wanted = [u, *cell.parameters()]
    found = torch.autograd.grad(solution.state, wanted, g)
    z = tuple(torch.zeros_like(s) for s in solution.state)
    for _ in range(200):
        z = cell(z, u)
    _close(found, torch.autograd.grad(z, wanted, g), rtol=1e-6, atol=1e-7)


def test_gradients_are_those_of_the_forward_passs_mode():
    torch.manual_seed(0)
    cell = DEQCell((5,), (5,), weight_scale=0.4).double().eval()
    equilibrium, u = Equilibrium(cell, Anderson(1e-13, 300)), _features(6, 5)
    expected = _gradients(equilibrium, u)
    state = equilibrium(u).state
    equilibrium.train()
    statistics = cell.inner_norm.running_mean.clone()
    found = torch.autograd.grad(state.square().sum(), [u, *cell.parameters()])
    _close(found, expected)
    assert torch.equal(cell.inner_norm.running_mean, statistics)
    assert all(m.training for m in cell.modules())


# ── transforms ──


def _fixed(name: str):
    if name in SPLITTING:
        options = {"max_evaluations": 100, "splitting_step": 0.5}
        return _monotone(), SPLITTING[name](1e-14, fixed_iterations=True, **options)
    return _Smooth(), ITERATIVE[name](1e-14, 60, fixed_iterations=True)


@pytest.mark.parametrize("name", UNROLLABLE)
def test_jacobians_of_torch_func_are_those_of_autograd(name):
    cell, solver = _fixed(name)
    equilibrium = Equilibrium(cell, solver)
    u = _features(3)
    expected = torch.autograd.functional.jacobian(lambda u: equilibrium(u[None]).state[0], u)
    found = torch.func.jacrev(lambda u: equilibrium(u[None]).state[0])(u.detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_product_of_torch_func_is_the_same_without_gradients(name):
    cell, solver = _fixed(name)
    equilibrium = Equilibrium(cell, solver)
    out, pull = torch.func.vjp(lambda u: equilibrium(u).state, _features(2, 3).detach())
    expected = pull(torch.ones_like(out))[0].detach()
    with torch.no_grad():
        found = pull(torch.ones_like(out))[0]
    assert expected.norm() > 0.01
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", UNROLLABLE)
@pytest.mark.parametrize("gradient", ["implicit", "phantom"])
def test_per_sample_gradients_of_parameters_sum_to_that_of_the_batch(name, gradient):
    cell, solver = _fixed(name)
    equilibrium = Equilibrium(cell, solver, gradient=gradient)
    u = _features(4, 3)
    expected = _gradients(equilibrium, u)
    parameters = {n: p.detach() for n, p in equilibrium.named_parameters()}

    def loss(parameters, u):
        solution = torch.func.functional_call(equilibrium, parameters, (u[None],))
        return solution.state.square().sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, 0))(parameters, u.detach())
    _close([g.sum(0) for g in each[0].values()], expected[1:])
    torch.testing.assert_close(each[1], expected[0])


@pytest.mark.parametrize("name", ITERATIVE)
def test_nested_transforms_give_the_second_derivative(name):
    cell, solver = _fixed(name)
    equilibrium = Equilibrium(cell.requires_grad_(False), solver)
    u, v = _features(2, 3), _features(2, 3, seed=9).detach()
    loss = lambda u: equilibrium(u).state.pow(3).sum()  # noqa: E731
    (first,) = torch.autograd.grad(loss(u), u, create_graph=True)
    (expected,) = torch.autograd.grad(first, u, v)
    inner = lambda u: (torch.func.grad(loss)(u) * v).sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(inner)(u.detach()), expected)


@pytest.mark.parametrize("name", ITERATIVE)
def test_torch_func_grad_needs_no_fixed_iterations(name):
    equilibrium, u = Equilibrium(_Smooth(), ITERATIVE[name](1e-13, 300)), _features(4, 3)
    found = torch.func.grad(lambda u: equilibrium(u).state.square().sum())(u.detach())
    torch.testing.assert_close(found, _gradients(equilibrium, u)[0])


def test_no_dead_wrapper_of_a_transform_is_left_in_the_record():
    equilibrium, solutions = Equilibrium(_Smooth(), Anderson()), []

    def loss(u):
        solutions.append(equilibrium(u))
        return solutions[0].state.sum()

    torch.func.grad(loss)(_features(2, 3).detach())
    residual = solutions[0].backward.residual
    assert residual is None or not torch._C._functorch.is_functorch_wrapped_tensor(residual)


# ── autograd's manners ──


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_hooks_run_once(gradient, create_graph):
    cell, leaf = _Smooth(), _features(2, 3)
    equilibrium = Equilibrium(cell, Anderson(1e-12, 200), gradient=gradient)
    u = leaf * 1.0
    ran = []
    for name, tensor in (("leaf", leaf), ("u", u), ("weight", cell.weight)):
        tensor.register_hook(lambda g, name=name: ran.append(name))
    loss = equilibrium(u).state.square().sum()
    wanted = [leaf, cell.weight, cell.bias]
    torch.autograd.grad(loss, wanted, retain_graph=True, create_graph=create_graph)
    assert sorted(ran) == ["leaf", "u", "weight"]
    cell.bias.register_post_accumulate_grad_hook(lambda p: ran.append("bias"))
    equilibrium(u).state.square().sum().backward()
    assert sorted(ran[3:]) == ["bias", "leaf", "u", "weight"]


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled"])
def test_a_hook_may_change_the_gradient(gradient):
    cell, u = _Smooth(), _features(2, 3)
    equilibrium = Equilibrium(cell, Anderson(1e-12, 200), gradient=gradient)
    plain = _gradients(equilibrium, u)
    cell.weight.register_hook(lambda g: 3 * g)
    equilibrium(u).state.square().sum().backward()
    torch.testing.assert_close(cell.weight.grad, 3 * plain[1])
    torch.testing.assert_close(cell.bias.grad, plain[2])


@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled"])
def test_backward_twice_and_accumulation(gradient):
    cell, u = _Smooth(), _features(2, 3)
    equilibrium = Equilibrium(cell, Anderson(1e-12, 200), gradient=gradient)
    once = _gradients(equilibrium, u)
    loss = equilibrium(u).state.square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    equilibrium(u).state.square().sum().backward()
    _close([u.grad, *(p.grad for p in cell.parameters())], [3 * g for g in once])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize(
    ("gradient", "what"),
    [
        *itertools.product(["implicit", "phantom", "unrolled"], ["parameter", "features"]),
        ("implicit", "statistics"),  # the others have computed with them already
    ],
)
def test_modifying_what_the_gradient_needs_raises(gradient, what):
    torch.manual_seed(0)
    cell = DEQCell((4,), (4,), weight_scale=0.4).double().eval()
    u = _rows() * 1.0
    # Of features that are only added no gradient needs the values; the linear cell multiplies them.
    chosen = _Linear() if what == "features" else cell
    solution = Equilibrium(chosen, Anderson(), gradient=gradient)(u)
    with torch.no_grad():
        match what:
            case "parameter":
                cell.outer.weight.mul_(2)
            case "features":
                u.mul_(2)
            case "statistics":
                cell.outer_norm.running_var.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        solution.state.sum().backward()


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("gradient", ["implicit", "phantom"])
def test_bfloat16_autocast_gives_nearly_the_gradient(name, gradient):
    torch.manual_seed(0)
    cell = DEQCell((8,), (8,), weight_scale=0.3).eval()
    equilibrium = Equilibrium(cell, ITERATIVE[name](), gradient=gradient)
    u, g = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8)
    wanted = [u, *cell.parameters()]
    exact = torch.autograd.grad(equilibrium(u).state, wanted, g)
    with torch.autocast("cpu", torch.bfloat16):
        solution = equilibrium(u)
    assert solution.converged.all()
    found = torch.autograd.grad(solution.state, wanted, g)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 0.05 * other.norm() + 1e-6


@pytest.mark.parametrize("compaction", [0.2, 1.0])
@pytest.mark.parametrize("name", ITERATIVE)
def test_dropout_mask_stays_with_its_row_when_others_leave(name, compaction):
    cell, u = _Dropping().train(), _rows()
    equilibrium = Equilibrium(cell, ITERATIVE[name](1e-12, 500, compaction=compaction))
    torch.manual_seed(4)
    solution = equilibrium(u)
    found = torch.autograd.grad(solution.state.square().sum(), [u, cell.M])
    assert solution.converged.all()
    assert solution.backward.converged.all()
    torch.manual_seed(4)
    mask_seed = int(torch.randint(2**62, ()))
    z = torch.zeros_like(u)
    for _ in range(600):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mask_seed)
            z = cell(z, u)
    torch.testing.assert_close(solution.state, z, rtol=1e-8, atol=1e-9)
    _close(found, torch.autograd.grad(z.square().sum(), [u, cell.M]), rtol=1e-6, atol=1e-7)


def test_checkpointing_recomputes_the_same_gradient():
    equilibrium, u = Equilibrium(_Smooth(), Anderson(1e-12, 200)), _features(2, 3)
    state = torch.utils.checkpoint.checkpoint(
        lambda u: equilibrium(u).state, u, use_reentrant=False
    )
    found = torch.autograd.grad(state.square().sum(), [u, *equilibrium.parameters()])
    _close(found, _gradients(equilibrium, u))


# ── the backward pass's own report ──


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("compaction", [0.2, 1.0])
def test_backward_report_is_true(name, compaction):
    """The gradient in an additive feature is the adjoint state itself."""
    cell, u = _Linear(), _rows()
    solver = ITERATIVE[name](1e-12, 3000)
    for evaluations in (5, 3000):
        backward = ITERATIVE[name](1e-12, evaluations, compaction=compaction)
        solution = Equilibrium(cell, solver, backward)(u)
        record = solution.backward
        assert record.nfe is record.residual is record.converged is None
        g = _features(6, 4, seed=7).detach()
        g[2] = 0.0
        (w,) = torch.autograd.grad(solution.state, u, g)
        assert record.nfe <= evaluations
        assert torch.equal(record.converged, record.residual <= 1e-12)
        assert record.residual[2] == 0
        if evaluations == 3000:
            assert record.converged.all()
            J = u.detach()[:, :1, None] * cell.M.detach()
            exact = torch.linalg.solve(torch.eye(4, dtype=F64) - J.mT, g[..., None])[..., 0]
            torch.testing.assert_close(w[:, 1:], exact[:, 1:], rtol=1e-8, atol=1e-9)
        else:
            assert not record.converged.all()


def test_backward_pass_raises_on_request():
    equilibrium = Equilibrium(_Linear(), Anderson(), Picard(1e-12, 3, throw=True))
    with pytest.raises(StabnetError, match="tolerance"):
        equilibrium(_rows()).state.sum().backward()


def test_unconverged_and_undefined_rows_do_not_reach_the_features_of_others():
    cell, u = _Linear(), _rows().detach()
    expected = _gradients(Equilibrium(cell, Anderson(1e-12, 300)), u.clone().requires_grad_())[0]
    u[3] = math.nan
    u.requires_grad_()
    state = Equilibrium(cell, Anderson(1e-12, 300))(u).state
    (found,) = torch.autograd.grad(state.square().sum(), u)
    good = [0, 1, 2, 4, 5]
    torch.testing.assert_close(found[good], expected[good], rtol=1e-7, atol=1e-8)
