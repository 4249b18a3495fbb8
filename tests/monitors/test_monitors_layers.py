from __future__ import annotations

import pytest
import torch
from monitor_stand_ins import Chain, Linear, Same, Spring, SpringStep, inputs, model, stack
from torch import nn

import stabnet
from stabnet.interfaces import Block, is_composed_of_blocks
from stabnet.monitors import energy_changes, gradient_norms, jacobian_norms, singular_values


class Eventful(Block):
    """Counts its calls in training, drops out, normalizes, and draws random numbers."""

    state_shape = (2,)

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.vector_field = Spring()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z, u=None):
        if self.training:
            self.calls.add_(1)
        return self.drop(self.norm(z)) + 0 * torch.rand(())


EVERY = {
    "singular_values": lambda m, x: singular_values(m, x),
    "jacobian_norms": lambda m, x: jacobian_norms(m, x),
    "gradient_norms": lambda m, x: gradient_norms(m, x, torch.zeros(len(x), dtype=torch.long)),
    "energy_changes": lambda m, x: energy_changes(m, x),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_monitors_leave_no_trace_and_work_in_every_mode_of_autograd(name, context):
    net = stack(Eventful(), Chain(Eventful(), Linear(torch.eye(2))), in_shape=(2,))
    net.train()
    net.dynamics.stages[0].drop.eval()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    modes = [m.training for m in net.modules()]
    state = {n: t.clone() for n, t in net.state_dict().items()}
    random = torch.get_rng_state()
    with context():
        x = torch.linspace(-1, 1, 6).view(3, 2)
        first = EVERY[name](net, x)
    second = EVERY[name](net, torch.linspace(-1, 1, 6).view(3, 2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        assert not a.requires_grad
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", EVERY)
def test_inputs_that_the_model_does_not_take_are_refused(name):
    net, block = stack(SpringStep(0.1), in_shape=(2,)), SpringStep(0.1)
    wrong = [torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), torch.nan)]
    for x in wrong:
        for m in (net, block):
            with pytest.raises(stabnet.InvalidInputError, match=r"shape|dtype|NaN"):
                EVERY[name](m, x)
    with pytest.raises(stabnet.InvalidInputError, match="tensor"):
        EVERY[name](net, [[0.0, 0.0]])
    chain = Chain(Linear(torch.eye(2)), SpringStep(0.1))
    for m in (stack(chain, in_shape=(2,)), chain):
        with pytest.raises(stabnet.InvalidInputError, match=r"float64.*float32"):
            EVERY[name](m, torch.zeros(2, 2).double())


@pytest.mark.parametrize("name", EVERY)
def test_what_has_no_layers_is_refused(name):
    with pytest.raises(stabnet.InvalidInputError, match="Linear has no layers"):
        EVERY[name](nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(stabnet.InvalidInputError, match="its blocks are empty"):
        EVERY[name](Chain(), torch.zeros(1, 2))


def test_features_are_for_blocks_and_a_model_computes_its_own():
    net = stack(SpringStep(0.1), in_shape=(2,))
    x = torch.zeros(1, 2)
    for function in (singular_values, jacobian_norms, energy_changes):
        with pytest.raises(stabnet.InvalidInputError, match="computes its own"):
            function(net, x, u=x)
    block = Linear(torch.eye(2), bent=True, with_features=True)
    z, u = torch.ones(1, 2), torch.full((1, 2), 3.0)
    shifted = Chain(block, Linear(torch.eye(2), bent=True))
    (_, s) = singular_values(shifted, z, u=u)
    slope = 1 - torch.tanh(torch.tanh(torch.ones(())) + 3) ** 2
    torch.testing.assert_close(s, slope.expand(1, 2))


class TwoStates(Same):
    def forward(self, x):
        return x, x


class Split(Block):
    state_shape = (2,)

    def forward(self, z, u=None):
        return z, z


def test_states_of_several_tensors_are_refused_where_they_arise():
    pair = stabnet.StabilityModel(
        (2,), 3, TwoStates((2,)), stabnet.Stack([Linear(torch.eye(2))]), nn.Identity()
    )
    with pytest.raises(stabnet.InvalidInputError, match=r"before dynamics\.stages\.0.*tuple"):
        singular_values(pair, torch.zeros(1, 2))
    with pytest.raises(stabnet.InvalidInputError, match=r"behind block\.blocks\.1 \(Split\)"):
        jacobian_norms(Chain(Linear(torch.eye(2)), Split()), torch.zeros(1, 2))


def test_blocks_of_blocks_are_known_by_their_blocks():
    assert is_composed_of_blocks(Chain(Split()))
    assert not is_composed_of_blocks(Split())
    assert not is_composed_of_blocks(stabnet.Stack([Split()]))
    not_block = nn.Module()
    not_block.blocks = nn.ModuleList()
    assert not is_composed_of_blocks(not_block)


class Plain(Block):
    """Has parts named ``blocks`` that are plain modules, which take no features."""

    def __init__(self, *parts):
        super().__init__()
        self.blocks, self.state_shape = nn.ModuleList(parts), (2,)

    def forward(self, z, u=None):
        for part in self.blocks:
            z = part(z)
        return z


def test_a_block_of_plain_modules_is_one_layer():
    block = Plain(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    assert not is_composed_of_blocks(block)
    (values,) = singular_values(block, torch.zeros(1, 2))
    product = block.blocks[1].weight @ block.blocks[0].weight
    torch.testing.assert_close(values[0], torch.linalg.svdvals(product.detach()))


def test_a_dynamics_within_a_stack_is_driven_by_the_state_before_it():
    inner = stabnet.Stack([Linear(2 * torch.eye(3), with_features=True)])
    net = model(stabnet.Stack([Linear(torch.eye(3)), inner]))
    first, second = singular_values(net, inputs(2, 3).float())
    # Within the inner stack the features are its driving state: z ↦ 2z + z.
    torch.testing.assert_close(first, torch.ones(2, 3))
    torch.testing.assert_close(second, torch.full((2, 3), 3.0))


class InPlace(Block):
    state_shape = (2,)

    def __init__(self):
        super().__init__()
        self.vector_field = Spring()

    def forward(self, z, u=None):
        return z.mul_(3)


def test_layers_may_change_their_states_in_place():
    x = torch.ones(1, 2)
    net = stack(InPlace(), InPlace(), in_shape=(2,))
    assert [s.tolist() for s in singular_values(net, x)] == [[[3.0, 3.0]]] * 2
    assert gradient_norms(net, x, x, lambda z, y: z[0, 0]).tolist() == [9.0, 3.0, 1.0]
    assert energy_changes(net, x).tolist() == [[8.0], [72.0]]
    assert torch.equal(x, torch.ones(1, 2))
