from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor_stand_ins import Chain, Linear, Reshaping, SpringStep, inputs, matrix, model, stack
from torch import nn

import stabnet
from stabnet.interfaces import Block
from stabnet.monitors import block_norms, jacobian_norms, singular_values


def test_linear_layers_have_the_singular_values_of_their_matrices():
    values = [(3.0, 1.0, 0.5), (2.0, 0.25), (0.0, 0.0)]
    layers = [Linear(matrix(3, 3, values[0])), Linear(matrix(2, 3, values[1])),
              Linear(matrix(3, 2, values[2]))]  # fmt: skip
    net, x = stack(*layers), inputs(4, 3)
    found = singular_values(net, x)
    assert [tuple(s.shape) for s in found] == [(4, 3), (4, 2), (4, 2)]
    for s, expected in zip(found, values, strict=True):
        torch.testing.assert_close(s, torch.tensor(expected, dtype=s.dtype).expand_as(s))
    norms = jacobian_norms(net, x, 40)
    assert norms.shape == (3, 4)
    torch.testing.assert_close(norms[:, 0], torch.tensor([3.0, 2.0, 0.0], dtype=norms.dtype))


def test_jacobians_are_taken_where_the_inputs_go_through_with_fixed_features():
    layers = [Linear(matrix(3, 3, (2.0, 1.0, 0.3), seed=k), True, True) for k in range(3)]
    x = inputs(4, 3)
    z = x
    found = singular_values(stack(*layers), x)
    norms = jacobian_norms(stack(*layers), x, 200)
    for layer, s, norm in zip(layers, found, norms, strict=True):
        for i in range(len(x)):
            jacobian = torch.autograd.functional.jacobian(
                lambda z, i=i, layer=layer: layer(z[None], x[i : i + 1])[0], z[i]
            )
            torch.testing.assert_close(s[i], torch.linalg.svdvals(jacobian))
        torch.testing.assert_close(norm, s[:, 0])
        z = layer(z, x).detach()


@given(st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_estimated_norms_are_lower_bounds(iterations, seed):
    block = Linear(inputs(5, 4, seed=seed), bent=True)
    z = inputs(3, 4, seed=seed + 1)
    largest = singular_values(block, z)[0][:, 0]
    norms = block_norms(block, z, iterations=iterations)
    assert (norms <= largest * (1 + 1e-12)).all()
    assert (norms > 0).all()
    assert torch.equal(norms, block_norms(block, z, iterations=iterations))


@pytest.mark.parametrize("h", [0.1, 1.0, -0.7])
def test_singular_values_of_symplectic_euler_come_in_pairs(h):
    (s,) = singular_values(SpringStep(h), inputs(2, 2))
    # The step has the matrix [[1, h], [−h, 1 − h²]]: ‖·‖_F² = s² + 1/s².
    square = 1 + h**2 + h**2 + (1 - h**2) ** 2
    torch.testing.assert_close(s.prod(1), torch.ones(2, dtype=s.dtype))
    torch.testing.assert_close(s.square().sum(1), torch.full((2,), square, dtype=s.dtype))
    assert (s[:, 0] > 1).all()


def test_layers_of_a_hamiltonian_net_are_its_blocks_with_paired_singular_values():
    torch.manual_seed(0)
    net = stabnet.build(
        "hamiltonian_net", in_shape=(3,), num_outputs=2, width=6, blocks=4, step_size=0.5
    ).double()
    lift, *blocks = singular_values(net, inputs(2, 3))
    assert len(blocks) == 4
    torch.testing.assert_close(lift, torch.ones_like(lift))
    for s in blocks:
        torch.testing.assert_close(s * s.flip(1), torch.ones_like(s))
        assert (s[:, 0] > 1.0001).all()
    first = jacobian_norms(net, inputs(2, 3), 100)[1:]
    torch.testing.assert_close(first, torch.stack([s[:, 0] for s in blocks]), rtol=1e-3, atol=0)


def test_a_chain_counts_as_its_blocks_but_its_norm_as_that_of_one_map():
    chain = Chain(Linear(matrix(2, 2, (2.0, 1.0))), Chain(Linear(matrix(2, 2, (3.0, 1.0), 1))))
    z = inputs(2, 2)
    product = chain.blocks[1].blocks[0].matrix @ chain.blocks[0].matrix
    norms = jacobian_norms(chain, z, 60)
    torch.testing.assert_close(norms[:, 0], torch.tensor([2.0, 3.0], dtype=norms.dtype))
    whole = torch.linalg.matrix_norm(product, 2).detach()
    torch.testing.assert_close(block_norms(chain, z, iterations=60), whole.expand(2))


def test_the_norm_of_a_reversible_chain_is_that_of_stored_states_and_leaves_it_as_it_is(recwarn):
    torch.manual_seed(0)
    block = {"name": "hamiltonian", "step_size": 0.5}
    chain = stabnet.build("reversible", kind="block", state_shape=(4,), block=block, depth=60)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.mul_(3)  # too much to invert all of it
    found = block_norms(chain, inputs(3, 4).float())
    assert chain.spacing is None
    assert not recwarn.list
    chain.stored = True
    assert torch.equal(found, block_norms(chain, inputs(3, 4).float()))


class _Detached(torch.autograd.Function):
    """Twice the state, with a gradient that is not computed by autograd."""

    @staticmethod
    def forward(ctx, z):
        return 2 * z

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient.detach()


class Detached(Block):
    state_shape = (2,)

    def forward(self, z, u=None):
        return _Detached.apply(z)


def test_gradients_that_cannot_be_differentiated_are_refused_instead_of_zero():
    (values,) = singular_values(Detached(), inputs(3, 2))
    assert torch.equal(values, torch.full_like(values, 2))
    for monitor in (jacobian_norms, block_norms):
        with pytest.raises(stabnet.InvalidInputError, match=r"\(Detached\).*singular_values"):
            monitor(Detached(), inputs(3, 2))


def test_views_and_permutations_have_singular_values_of_one():
    chain = Chain(Reshaping(3), Linear(torch.eye(6).double()[torch.randperm(6)]))
    found = singular_values(chain, inputs(2, 2, 3))
    for s in found:
        torch.testing.assert_close(s, torch.ones(2, 6, dtype=s.dtype))


def test_a_flow_and_an_equilibrium_are_one_layer_in_what_drives_them():
    torch.manual_seed(0)
    for name in ("neural_ode", "deq"):
        (example,) = (e.example for e in stabnet.entries(kind="model") if e.name == name)
        net = stabnet.build(name, **example).double().eval()
        x = torch.rand(2, *net.in_shape, dtype=torch.float64)
        u = net.features(x).detach()
        (s,) = singular_values(net, x)
        jacobian = torch.autograd.functional.jacobian(lambda u, net=net: net.dynamics(u).state, u)
        alone = jacobian[range(2), ..., range(2), :]
        torch.testing.assert_close(s, torch.linalg.svdvals(alone), rtol=1e-6, atol=1e-8)
        assert jacobian_norms(net, x, 50)[0] == pytest.approx(s[:, 0].tolist(), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_underflow_nor_overflow_on_the_way(scale):
    block = Linear((scale * matrix(3, 3, (2.0, 1.0, 1.0))).float())
    norms = block_norms(block, inputs(1, 3).float(), iterations=50)
    assert norms.item() == pytest.approx(2 * scale, rel=1e-3)


class Constant(Block):
    state_shape = (2,)

    def forward(self, z, u=None):
        return torch.ones_like(z)


class NaNForNegative(Block):
    state_shape = (2,)

    def forward(self, z, u=None):
        return z.sqrt()


def test_a_layer_that_ignores_its_state_has_no_norm_and_no_singular_value_but_zero():
    assert not singular_values(Constant(), inputs(2, 2))[0].any()
    assert not block_norms(Constant(), inputs(2, 2)).any()


def test_a_sample_without_a_jacobian_leaves_the_others_alone():
    z = torch.tensor([[1.0, 4.0], [-1.0, 1.0]])
    (s,) = singular_values(NaNForNegative(), z)
    torch.testing.assert_close(s[0], torch.tensor([0.5, 0.25]))
    assert s[1].isnan().all()
    norms = block_norms(NaNForNegative(), z)
    assert norms[0].item() == pytest.approx(0.5)
    assert norms[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_are_in_the_precision_of_the_model(dtype):
    block = Linear(matrix(2, 2, (2.0, 1.0)).to(dtype))
    z = inputs(2, 2).to(dtype)
    assert singular_values(block, z)[0].dtype == dtype
    assert jacobian_norms(block, z).dtype == dtype
    torch.testing.assert_close(
        singular_values(block, z)[0][0].double(), torch.tensor([2.0, 1.0]).double(),
        rtol=1e-2, atol=0,
    )  # fmt: skip


def test_states_that_are_too_large_are_refused_with_the_way_out():
    block = Linear(torch.eye(4)[:3])
    for limit, where in ((3, "before block"), (4, None)):
        if where is None:
            assert len(singular_values(block, torch.zeros(1, 4), max_size=limit)) == 1
            continue
        with pytest.raises(stabnet.InvalidInputError, match=f"{where}.*jacobian_norms"):
            singular_values(block, torch.zeros(1, 4), max_size=limit)
    growing = Linear(torch.eye(5)[:, :2])
    with pytest.raises(stabnet.InvalidInputError, match="behind block"):
        singular_values(growing, torch.zeros(1, 2), max_size=4)


class Normalizing(Block):
    state_shape = (2,)

    def __init__(self, **options):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, **options)

    def forward(self, z, u=None):
        return self.norm(z)


def test_layers_that_couple_samples_in_eval_mode_are_refused():
    coupled = Normalizing(track_running_stats=False)
    for function in (singular_values, jacobian_norms, block_norms):
        with pytest.raises(stabnet.InvalidInputError, match="couples the samples"):
            function(coupled, torch.randn(4, 2))
    (s,) = singular_values(Normalizing(eps=0), torch.randn(4, 2))
    torch.testing.assert_close(s, torch.ones(4, 2))


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_iterations_and_sizes_are_whole_numbers(value):
    block, z = Linear(torch.eye(2)), torch.zeros(1, 2)
    with pytest.raises(stabnet.InvalidOptionError, match="iterations"):
        jacobian_norms(block, z, value)
    with pytest.raises(stabnet.InvalidOptionError, match="iterations"):
        block_norms(block, z, None, value)
    with pytest.raises(stabnet.InvalidOptionError, match="max_size"):
        singular_values(block, z, max_size=value)


def test_the_norm_of_what_is_no_block_is_refused():
    with pytest.raises(stabnet.InvalidInputError, match="no block"):
        block_norms(model(stabnet.Stack([Linear(torch.eye(3))])), torch.zeros(1, 3))
