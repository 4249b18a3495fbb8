"""Compiled and exported equilibria, in fixed-iteration mode, and warm starts."""

from __future__ import annotations

import pytest
import torch
from stabnet_deq import (
    Anderson,
    Broyden,
    DEQCell,
    MonotoneCell,
    MultiscaleCell,
    PeacemanRachford,
    Picard,
)
from torch import Tensor, nn

from stabnet import Equilibrium, InvalidInputError

OLDEST = torch.__version__.startswith("2.6.")
SOLVERS = {
    "picard": lambda count: Picard(1e-5, count, fixed_iterations=True),
    "anderson": lambda count: Anderson(1e-5, count, memory=2, fixed_iterations=True),
    "anderson, long memory": lambda count: Anderson(1e-5, count, 8, fixed_iterations=True),
    "broyden": lambda count: Broyden(1e-5, count, memory=2, fixed_iterations=True),
    "peaceman_rachford": lambda count: PeacemanRachford(1e-5, count + 2, fixed_iterations=True),
}
solvers = pytest.mark.parametrize("name", SOLVERS)


def _equilibrium(name: str, count: int = 4, **options) -> Equilibrium:
    torch.manual_seed(0)
    cell = (
        MonotoneCell((4,), (4,)) if name == "peaceman_rachford" else DEQCell((4,), (4,), None, 0.5)
    )
    return Equilibrium(cell.eval(), SOLVERS[name](count), **options)


def _features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(1))


class _Report(nn.Module):
    """What a solve reports, as a tuple."""

    def __init__(self, equilibrium: Equilibrium) -> None:
        super().__init__()
        self.equilibrium = equilibrium

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        solution = self.equilibrium(u)
        return solution.state, solution.residual, solution.converged


def _agree(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@solvers
def test_forward_pass_compiles_to_one_graph_that_reports_the_same(name):
    torch.compiler.reset()
    report, u = _Report(_equilibrium(name)), _features()
    compiled = torch.compile(report, fullgraph=True, backend="eager")
    with torch.no_grad():
        _agree(compiled(u), report(u))
        u[1] = torch.nan
        state, residual, converged = compiled(u)
    assert state.isfinite().all()
    assert not converged[1]
    assert residual[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden", "peaceman_rachford"])
def test_forward_pass_exports_and_reports_the_same(name):
    report, u = _Report(_equilibrium(name, 3)), _features()
    with torch.no_grad():
        exported = torch.export.export(report, (u,)).module()
        other = torch.randn_like(u)
        _agree(exported(other), report(other))


def test_a_whole_solution_is_exported():
    equilibrium, u = _equilibrium("picard", 3), _features()
    with torch.no_grad():
        solution = torch.export.export(equilibrium, (u,)).module()(u)
    assert solution.nfe == 3
    torch.testing.assert_close(solution.state, equilibrium(u).state.detach())


@pytest.mark.skipif(OLDEST, reason="torch 2.6 cannot trace functional_call in a backward pass")
@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("anderson", "implicit"),
        ("broyden", "unrolled"),
        ("picard", "phantom"),
        ("peaceman_rachford", "implicit"),
    ],
)
def test_compiled_training_has_the_eager_gradient(name, gradient):
    torch.compiler.reset()
    equilibrium = _equilibrium(name, 3, gradient=gradient)
    wanted = [_features().requires_grad_(), *equilibrium.parameters()]
    loss = lambda u: equilibrium(u).state.square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(wanted[0]), wanted)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    _agree(torch.autograd.grad(compiled(wanted[0]), wanted), expected)


@pytest.mark.slow
@pytest.mark.skipif(OLDEST, reason="torch 2.6 cannot trace functional_call in a backward pass")
def test_default_compiler_trains_like_eager_mode():
    torch.compiler.reset()
    equilibrium = _equilibrium("anderson", 3)
    wanted = [_features().requires_grad_(), *equilibrium.parameters()]
    loss = lambda u: equilibrium(u).state.square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(wanted[0]), wanted)
    compiled = torch.compile(loss, fullgraph=True)
    _agree(torch.autograd.grad(compiled(wanted[0]), wanted), expected)


@pytest.mark.parametrize(("memory", "mixing"), [(1, 1.0), (3, 0.6)])
def test_compiled_anderson_is_anderson_where_samples_restart_stand_still_or_fail(memory, mixing):
    """The compiler gets a program of its own; it has to survive what the other one does."""
    torch.compiler.reset()
    matrix = torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.9], [-0.9, 0.0, 0.0]], dtype=torch.float64)
    u = torch.arange(6.0, dtype=torch.float64)[:, None] + torch.zeros(1, 3, dtype=torch.float64)

    def f(z, u):
        image = torch.where(u == 0, z @ matrix.T + 1, torch.tanh(3 * z - 1))
        image = torch.where(u == 2, 2.0 + 0 * z, image)  # constant: stands still
        image = torch.where(u == 3, z + 1, image)  # a difference of zero
        image = torch.where(u == 4, z.square() + 1, image)  # diverges
        return torch.where((u == 5) & (z > 0.5), torch.nan, torch.where(u == 5, z + 0.3, image))

    solver = Anderson(1e-6, 10, memory, mixing, fixed_iterations=True)
    solve = lambda z0: solver(f, z0, u)  # noqa: E731
    z0 = torch.zeros_like(u)
    with torch.no_grad():
        expected = solve(z0)
        found = torch.compile(solve, fullgraph=True, backend="eager")(z0)
    assert found.state.isfinite().all()
    good = [0, 1, 2, 5]  # a drift is extrapolated along rounding errors
    assert torch.equal(found.converged[good], expected.converged[good])
    torch.testing.assert_close(found.state[good], expected.state[good], rtol=1e-6, atol=1e-6)
    image = f(found.state, u)
    residual = (image - found.state).norm(dim=1) / image.norm(dim=1)
    finite = residual.isfinite()
    torch.testing.assert_close(found.residual[finite], residual[finite], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden", "peaceman_rachford"])
def test_fixed_iterations_give_what_looking_ones_give(name):
    u = _features(8)
    fixed = _equilibrium(name, 40)
    looking = Equilibrium(fixed.cell, type(fixed.solver)(1e-6, 42))
    with torch.no_grad():
        torch.testing.assert_close(fixed(u).state, looking(u).state, rtol=1e-4, atol=1e-4)
    assert fixed(u).converged.all()


# ── warm starts ──


def _warm(training: bool = False) -> tuple[Equilibrium, Tensor]:
    torch.manual_seed(0)
    cell = DEQCell((6,), (6,), weight_scale=0.6).double().train(training)
    u = torch.randn(8, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Equilibrium(cell, Anderson(1e-9, 200)), u


@pytest.mark.parametrize("training", [False, True])
def test_a_warm_start_needs_fewer_evaluations_and_ends_at_the_same_state(training):
    equilibrium, u = _warm(training)
    cold = equilibrium(u)
    again = equilibrium(u, initial=cold.state)
    assert again.nfe == (2 if training else 1)  # one more tells the samples' residuals apart
    torch.testing.assert_close(again.state, cold.state, rtol=1e-7, atol=1e-8)
    near = equilibrium(u + 1e-4, initial=cold.state)
    assert near.nfe < equilibrium(u + 1e-4).nfe
    assert near.converged.all()


def test_no_gradient_flows_through_a_warm_start():
    equilibrium, u = _warm()
    u.requires_grad_()
    initial = torch.zeros_like(u, requires_grad=True)
    for gradient in ("implicit", "phantom", "unrolled"):
        equilibrium.gradient = gradient
        state = equilibrium(u, initial=initial).state
        grads = torch.autograd.grad(state.sum(), [u, initial], allow_unused=True)
        assert grads[0] is not None
        assert grads[1] is None


def test_a_warm_start_is_neither_changed_nor_shared():
    equilibrium, u = _warm()
    with torch.no_grad():
        exact = Equilibrium(equilibrium.cell, Anderson(1e-13, 200))(u).state
        kept = exact.clone()
        solution = equilibrium(u, initial=exact)
        assert solution.nfe == 1
        solution.state.add_(1)
    assert torch.equal(exact, kept)


@pytest.mark.parametrize(
    "initial",
    [
        torch.zeros(8, 5),
        torch.zeros(7, 6),
        torch.zeros(6),
        torch.zeros(8, 6, 1),
        (torch.zeros(8, 6),),
        [torch.zeros(8, 6)],
    ],
    ids=["width", "batch", "one state", "dimensions", "tuple", "list"],
)
def test_a_start_of_another_shape_is_refused(initial):
    equilibrium, u = _warm()
    with pytest.raises(InvalidInputError, match="expected"):
        equilibrium(u, initial=initial)


def test_tuple_states_start_warm_from_tuples_only():
    torch.manual_seed(0)
    cell = MultiscaleCell(((2, 3, 4), (4, 2, 2)), (2, 3, 4), groups=1)
    equilibrium, u = Equilibrium(cell, Anderson(1e-5, 100)), torch.randn(2, 2, 3, 4)
    cold = equilibrium(u)
    assert equilibrium(u, initial=cold.state).nfe == 1
    for wrong in (cold.state[0], cold.state[:1], cold.state[::-1]):
        with pytest.raises(InvalidInputError, match="expected"):
            equilibrium(u, initial=wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_start_of_another_precision_is_taken(dtype):
    equilibrium, u = _warm()
    state = equilibrium(u).state.detach()
    warm = equilibrium(u, initial=state.to(dtype))
    assert warm.state.dtype == torch.float64
    assert warm.nfe < equilibrium(u).nfe
