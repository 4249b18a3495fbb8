from __future__ import annotations

import pytest
import torch
from stabnet_hamiltonian import (
    Hamiltonian,
    Reversible,
    SeparableHamiltonian,
    reconstruction_error,
)
from torch import nn

import stabnet

F64 = torch.float64


def chain(depth: int, scale: float = 1.0, step_size: float = 0.1, **options) -> Reversible:
    torch.manual_seed(0)
    field = SeparableHamiltonian
    blocks = [Hamiltonian(field((6,)), step_size=step_size) for _ in range(depth)]
    built = Reversible(blocks, **options)
    with torch.no_grad():
        for p in built.parameters():
            p.mul_(scale)
    return built


def states(size: int = 6, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(4, size, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)


def gradients(net: nn.Module, z: torch.Tensor, u=None) -> list[torch.Tensor]:
    z = z.clone().requires_grad_()
    loss = net(z, u).square().sum()
    return list(torch.autograd.grad(loss, [z, *net.parameters()]))


def compared(net: Reversible, z: torch.Tensor, u=None) -> float:
    """Return the largest relative difference of reversible gradients to stored ones."""
    net.stored = False
    found = gradients(net, z, u)
    net.stored = True
    expected = gradients(net, z, u)
    net.stored = False
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-10), (torch.float32, 1e-3)])
def test_gradients_of_200_layers_equal_stored_ones(dtype, bound):
    assert compared(chain(200).to(dtype), states(dtype=dtype)) <= bound


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_gradients_do_not_depend_on_the_states_that_are_kept(every):
    assert compared(chain(7, checkpoint_every=every).to(F64), states()) <= 1e-12


def saved_bytes(net: nn.Module, z: torch.Tensor) -> int:
    total, kept = 0, []

    def pack(tensor):
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(net(z.requires_grad_()))
    return total


def test_saved_bytes_do_not_grow_with_depth_where_stored_ones_do():
    z = states(dtype=torch.float32)
    shallow, deep = (saved_bytes(chain(depth), z) for depth in (50, 800))
    assert 0 < deep <= 1.1 * shallow
    shallow, deep = (saved_bytes(chain(depth, stored=True), z) for depth in (50, 800))
    assert deep >= 15 * shallow


def test_outputs_are_the_same_however_the_backward_pass_is_run():
    net, z = chain(5).to(F64), states()
    expected = net(z)
    with torch.no_grad():
        assert torch.equal(net(z), expected)
    with torch.inference_mode():
        assert torch.equal(net(z), expected)
    net.stored = True
    assert torch.equal(net(z), expected)
    torch.testing.assert_close(net.inverse(expected), z, rtol=1e-12, atol=1e-12)


def test_a_block_without_a_fused_inverse_is_inverted_as_well():
    first = Hamiltonian(SeparableHamiltonian((2, 4, 4)))
    halving = stabnet.build("downsample", kind="block", state_shape=(2, 4, 4))
    net = Reversible([first, halving, Hamiltonian(SeparableHamiltonian((8, 2, 2)))]).to(F64)
    z = torch.randn(3, 2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert net.out_shape == (8, 2, 2)
    assert compared(net, z) <= 1e-12


def test_a_block_used_twice_gets_the_sum_of_its_gradients():
    torch.manual_seed(0)
    block = Hamiltonian(SeparableHamiltonian((6,)))
    assert compared(Reversible([block] * 5).to(F64), states()) <= 1e-12


def test_frozen_parameters_and_inputs_get_no_gradient():
    net, z = chain(4).to(F64), states()
    net.blocks[1].requires_grad_(False)
    net(z).sum().backward()
    assert [p.grad is None for p in net.parameters()] == [
        not p.requires_grad for p in net.parameters()
    ]


class _Driven(stabnet.interfaces.Potential):
    def __init__(self, state_shape):
        super().__init__()
        self.state_shape = state_shape

    def forward(self, z, context=None):
        return (z - context.features).square().sum(-1) / 2


def test_features_get_their_gradient():
    fields = [SeparableHamiltonian((6,), (3,), potential=_Driven((3,))) for _ in range(4)]
    net = Reversible([Hamiltonian(f) for f in fields]).to(F64)
    found = []
    for stored in (False, True):
        net.stored = stored
        u = states(3).requires_grad_()
        net(states(), u).square().sum().backward()
        found.append(u.grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "sin"])  # in closed form, and by autograd
def test_hooks_of_parameters_run_once_on_the_whole_gradient(activation):
    fields = [SeparableHamiltonian((6,), activation=activation) for _ in range(3)]
    net, z = Reversible([Hamiltonian(f) for f in fields]).to(F64), states()
    seen = []
    parameter = next(iter(net.parameters()))
    handle = parameter.register_hook(seen.append)
    net(z).square().sum().backward()
    handle.remove()
    net.stored = True
    assert len(seen) == 1
    expected = gradients(net, z)[1]
    torch.testing.assert_close(seen[0], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)


def test_gradients_reach_parameters_that_replace_the_own_ones():
    net, z = chain(3).to(F64), states()
    scale = torch.ones((), dtype=F64, requires_grad=True)
    found = []
    for stored in (False, True):
        net.stored = stored
        replaced = {name: scale * p.detach() for name, p in net.named_parameters()}
        loss = torch.func.functional_call(net, replaced, (z,)).square().sum()
        found.append(torch.autograd.grad(loss, scale)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_transforms_of_torch_func_and_autocast_work():
    net, z = chain(3), states(dtype=torch.float32)
    expected = gradients(net, z)[0]
    torch.testing.assert_close(torch.func.grad(lambda z: net(z).square().sum())(z), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(net, z)[0]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_second_derivatives_are_those_of_stored_activations():
    net, found = chain(3).to(F64), []
    for stored in (False, True):
        net.stored = stored
        for scale in (1, 1.5):
            z = states().requires_grad_()
            parameters = {name: scale * p for name, p in net.named_parameters()}
            out = torch.func.functional_call(net, parameters, (z,))
            inputs = [z, *net.parameters()]
            gradients = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
            penalty = sum(g.square().sum() for g in gradients)
            found.append(torch.autograd.grad(penalty, inputs))
    for i in (0, 1):
        for a, b in zip(found[i], found[i + 2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_pass_the_check_by_differences():
    net = chain(2).to(F64)
    torch.autograd.gradgradcheck(
        lambda z, *_: net(z), (states()[:1].requires_grad_(), *net.parameters())
    )
    u = states(3).requires_grad_()
    fields = [SeparableHamiltonian((6,), (3,), potential=_Driven((3,))) for _ in range(2)]
    driven = Reversible([Hamiltonian(f) for f in fields]).to(F64)
    torch.autograd.gradgradcheck(driven, (states().requires_grad_(), u))


def test_parameters_changed_between_the_passes_are_noticed():
    net, z = chain(2).to(F64), states()
    loss = net(z).sum()
    with torch.no_grad():
        next(iter(net.parameters())).add_(1e-9)
    with pytest.raises(stabnet.StabnetError, match="changed in place"):
        loss.backward()


def test_blocks_changed_between_the_passes_are_noticed():
    net = chain(4).to(F64)
    loss = net(states()).sum()
    net.blocks[1].step_size = 0.11
    with pytest.raises(stabnet.ConvergenceError, match="same state again"):
        loss.backward()
    net.checkpoint_every = 2
    loss = net(states()).sum()
    net.blocks[1].step_size = 0.1
    with pytest.raises(stabnet.ConvergenceError, match="changed after the forward pass"):
        loss.backward()


def test_reconstruction_that_fails_is_refused_and_works_with_the_advised_checkpoints():
    net = chain(60, scale=4.0, step_size=1.0, checkpoint_every=60)
    z, refused = states(dtype=torch.float32), 0
    while refused < 5:
        try:
            gradients(net, z)
        except stabnet.ConvergenceError as error:
            advised = int(str(error).split("Keep a state every ")[1].split(" blocks")[0])
            assert 1 <= advised < net.checkpoint_every
            net.checkpoint_every = advised
            refused += 1
        else:
            break
    assert 0 < refused < 5
    assert compared(net, z) <= 1e-2
    net.tolerance = 1e-12
    with pytest.raises(stabnet.ConvergenceError, match="checkpoint_every"):
        gradients(net, z)


def test_more_states_are_kept_by_itself_where_it_matters():
    net, z = chain(60, scale=4.0, step_size=1.0), states(dtype=torch.float32)
    with pytest.warns(UserWarning, match="from now on"):
        found = gradients(net, z)
    assert net.spacing < 60
    again = gradients(net, z)  # without a warning, which would fail
    net.stored = True
    for a, b, c in zip(found, again, gradients(net, z), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-2, atol=1e-2 * float(c.abs().max()))
    net.stored, net.tolerance = False, 1e-12
    with (
        pytest.warns(UserWarning, match="from now on"),
        pytest.raises(stabnet.ConvergenceError, match="No more states can be kept"),
    ):
        gradients(net, z)


@pytest.mark.filterwarnings("ignore:states of a reversible chain were reconstructed")
def test_backward_passes_in_any_order_keep_no_fewer_states_than_before():
    net, z = chain(60, scale=4.0, step_size=1.0), states(dtype=torch.float32)
    losses = [net(scale * z).square().sum() for scale in (1.0, 0.1, 3.0, 30.0, 0.01)]
    spacings = []
    for loss in losses:
        loss.backward()
        spacings.append(net.spacing)
    assert len(set(spacings)) > 1
    assert spacings == sorted(spacings, reverse=True)


@pytest.mark.parametrize(("depth", "step_size"), [(30, 0.1), (15, 1.0)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_error_of_the_reconstruction_is_within_its_bound(dtype, depth, step_size):
    net = chain(depth, step_size=step_size).to(dtype)
    found = reconstruction_error(net, states(dtype=dtype), iterations=4)
    assert (found.error > 0).any()
    assert (found.error <= 100 * found.bound_estimate).all()


def test_norms_of_jacobians_are_those_of_singular_values():
    net, z = chain(3, step_size=1.0).to(F64), states()
    found = reconstruction_error(net, z, iterations=100).norms
    for norms, block in zip(found, net.blocks, strict=True):
        exact = [
            torch.linalg.matrix_norm(torch.func.jacrev(block)(x[None]).view(6, 6), 2) for x in z
        ]
        ratio = norms / torch.stack(exact)
        assert (ratio > 0.95).all()
        assert (ratio < 1 + 1e-9).all()
        z = block(z)


def test_random_blocks_are_refused_instead_of_getting_wrong_gradients():
    class Dropping(stabnet.interfaces.Potential):
        state_shape = (3,)

        def forward(self, z, context=None):
            return nn.functional.dropout(z, 0.5).square().sum(-1)

    net = Reversible([Hamiltonian(SeparableHamiltonian((6,), potential=Dropping()))]).to(F64)
    with pytest.raises(stabnet.StabnetError, match="dropout"):
        gradients(net, states())
    with torch.no_grad():
        assert net(states()).shape == (4, 6)


def test_batch_statistics_are_recorded_once():
    class Normalized(stabnet.interfaces.Potential):
        def __init__(self):
            super().__init__()
            self.state_shape, self.norm = (3,), nn.BatchNorm1d(3)

        def forward(self, z, context=None):
            raise AssertionError("only the gradient is asked for")

        def value_and_gradient(self, z, context=None):
            return z.sum(-1), self.norm(z)

    net = Reversible([Hamiltonian(SeparableHamiltonian((6,), potential=Normalized()))] * 2)
    net = net.to(F64)
    gradients(net, states())
    norm = net.blocks[0].vector_field.potential.norm
    assert int(norm.num_batches_tracked) == 2
    assert norm.track_running_stats
    z = states().requires_grad_()
    torch.autograd.grad(net(z).square().sum(), z, create_graph=True)
    assert int(norm.num_batches_tracked) == 4
    assert compared(net, states()) <= 1e-10


def test_what_is_no_chain_is_refused():
    block = Hamiltonian(SeparableHamiltonian((4,)))
    with pytest.raises(stabnet.InvalidOptionError, match="at least one"):
        Reversible([])
    with pytest.raises(stabnet.InvalidOptionError, match="into a list"):
        Reversible(block)
    with pytest.raises(stabnet.InvalidOptionError, match="takes states of shape"):
        Reversible([block, Hamiltonian(SeparableHamiltonian((6,)))])
    with pytest.raises(stabnet.InvalidOptionError, match="no inverse"):
        stabnet.build("reversible", kind="block", state_shape=(4,), block="gradient_flow")
    with pytest.raises(stabnet.InvalidOptionError, match="one module"):
        stabnet.build("reversible", kind="block", state_shape=(4,), block=block)
    with pytest.raises(stabnet.InvalidInputError, match=r"\(batch, 4\)"):
        Reversible([block])(torch.zeros(2, 6))
    with pytest.raises(stabnet.InvalidInputError, match="got list"):
        Reversible([block])(torch.zeros(2, 4), [torch.zeros(2, 3)])
    with pytest.raises(stabnet.InvalidInputError, match="got Hamiltonian"):
        reconstruction_error(block, torch.zeros(2, 4))
