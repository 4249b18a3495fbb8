from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monitor_stand_ins import Linear, inputs, matrix, stack
from torch import nn

import stabnet
from stabnet.interfaces import Block
from stabnet.monitors import gradient_norms


def reference(net, x, y):
    """Return norms by plain autograd, through a chain that stores its states."""
    kept = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: (out.retain_grad(), kept.append(out))[0])
        for block in net.dynamics.stages[1].blocks
    ]
    lifted = net.dynamics.stages[0](x)
    lifted.requires_grad_()
    F.cross_entropy(net.decode(lifted, stage=0, u=x), y).backward()
    for handle in handles:
        handle.remove()
    return [lifted.grad.norm(), *(z.grad.norm() for z in kept)]


def test_norms_are_those_of_plain_autograd_through_stored_states():
    torch.manual_seed(0)
    net = stabnet.build(
        "hamiltonian_net", in_shape=(3,), num_outputs=3, width=6, blocks=5, step_size=0.4
    ).double()
    x, y = inputs(4, 3), torch.tensor([0, 1, 2, 0])
    found = gradient_norms(net, x, y)
    assert found.shape == (7,)
    assert all(p.grad is None for p in net.parameters())
    net.dynamics.stages[1].stored = True
    torch.testing.assert_close(found[1:], torch.stack(reference(net, x, y)))
    # The first layer appends zeros; its transpose forgets what stands there.
    assert 0 < found[0] < found[1]


def test_norms_of_linear_layers_are_those_of_transposed_products():
    a, b = matrix(3, 3, (2.0, 1.0, 0.1)), matrix(3, 3, (1.0, 0.5, 0.2), 1)
    net, x, y = stack(Linear(a), Linear(b)), inputs(5, 3), inputs(5, 3, seed=1)
    residual = x @ a.T @ b.T - y
    expected = [(residual @ m).norm() for m in (b @ a, b, torch.eye(3).double())]
    found = gradient_norms(net, x, y, lambda z, y: (z - y).square().sum() / 2)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_gradients_that_vanish_or_explode_have_a_norm_as_long_as_they_have_entries(scale):
    depth = 11  # to squares far beyond the range of float32
    net = stack(*[Linear(scale * torch.eye(3)) for _ in range(depth)])
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    norms = gradient_norms(net, x, y)
    expected = norms[-1].double() * float(scale) ** torch.arange(depth, -1, -1).double()
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)


def test_an_empty_batch_has_no_gradient():
    x, y = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert gradient_norms(stack(Linear(torch.eye(3))), x, y).tolist() == [0, 0]


def test_features_are_fixed():
    net = stack(Linear(torch.zeros(3, 3)), Linear(torch.eye(3), with_features=True))
    first, middle, last = gradient_norms(net, inputs(2, 3).float(), torch.tensor([0, 1]))
    assert first == 0
    assert 0 < middle == last


class Constant(Block):
    state_shape = (3,)

    def forward(self, z, u=None):
        return torch.ones_like(z)


def test_a_layer_that_ignores_its_state_stops_the_gradient_at_itself():
    net = stack(Linear(torch.eye(3)), Constant(), Linear(torch.eye(3)))
    net.requires_grad_(False)
    norms = gradient_norms(net, inputs(2, 3).float(), torch.tensor([0, 1]))
    assert norms[:2].tolist() == [0, 0]
    assert (norms[2:] > 0).all()


def test_the_loss_of_a_block_is_that_of_its_state():
    block = Linear(2 * torch.eye(2))
    found = gradient_norms(block, torch.ones(3, 2), torch.zeros(3, 2), F.mse_loss)
    expected = 2 * torch.full((3, 2), 2.0) / 6
    torch.testing.assert_close(found, torch.stack([2 * expected, expected]).flatten(1).norm(dim=1))


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), r"\(2,\)"),
        (lambda z, y: (z.argmax(1) == y).float().mean(), r"\(\)"),
        (lambda z, y: 1.0, "float"),
    ],
)
def test_a_loss_that_is_no_differentiable_scalar_is_refused(loss, got):
    net = stack(Linear(torch.eye(3)))
    with pytest.raises(stabnet.InvalidInputError, match=f"differentiated; got {got}"):
        gradient_norms(net, torch.zeros(2, 3), torch.tensor([0, 1]), loss)


def test_the_head_is_part_of_the_loss():
    head = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(10 * torch.eye(3))
    net = stack(Linear(torch.eye(3)), head=head)
    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    found = gradient_norms(net, x, y, lambda z, y: (z - y).sum())
    torch.testing.assert_close(found, torch.full((2,), 10 * 6**0.5))
