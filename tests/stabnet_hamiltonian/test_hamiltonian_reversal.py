"""Reversible chains in the ways that people use modules: what works is exact, the rest refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from stabnet_hamiltonian import Hamiltonian, Reversible, SeparableHamiltonian
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm

import stabnet

F64 = torch.float64


class Plain(stabnet.interfaces.Block):
    """A Hamiltonian block that can be inverted, and not differentiated in the same go."""

    def __init__(self, block: Hamiltonian) -> None:
        super().__init__()
        self.block, self.state_shape = block, block.state_shape

    def forward(self, z: Tensor, u: stabnet.interfaces.Features = None) -> Tensor:
        return self.block(z, u)

    def inverse(self, z: Tensor, u: stabnet.interfaces.Features = None) -> Tensor:
        return self.block.inverse(z, u)


def chain(depth: int = 3, seed: int = 0, scheme: str = "symplectic_euler", **options) -> Reversible:
    torch.manual_seed(seed)
    blocks = [
        Hamiltonian(SeparableHamiltonian((6,), **options), scheme=scheme) for _ in range(depth)
    ]
    return Reversible(blocks).to(F64)


def states(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1), dtype=F64)


def gradients(net: nn.Module, z: Tensor) -> list[Tensor]:
    z = z.clone().requires_grad_()
    return list(torch.autograd.grad(net(z).square().sum(), [z, *net.parameters()]))


def stored_gradients(net: Reversible, z: Tensor) -> list[Tensor]:
    stored = copy.deepcopy(net)
    stored.stored = True
    return gradients(stored, z)


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_without_a_sample_and_with_one_work(batch):
    net = chain()
    assert_close(gradients(net, states(batch)), stored_gradients(net, states(batch)))


@pytest.mark.parametrize("still", [False, True])
def test_states_at_zero_and_near_it_are_no_failed_reconstruction(still):
    net, z = chain(30).float(), states().float()
    with torch.no_grad():
        for block in net.blocks[still:]:  # the first may leave states near zero where they are
            for p in block.parameters():
                p.add_(0.3 * torch.randn_like(p))
    z[0], z[1] = 0, 1e-6 * z[1]
    # A still state near zero has no size of its own, and that of the batch instead.
    for some in (z[1:],) if still else (z, z[:1], z[:2]):
        assert_close(gradients(net, some), stored_gradients(net, some), 1e-4)
        assert net.spacing is None


def test_growing_states_do_not_hide_that_the_first_is_not_found():
    # The error is small beside the last state, and large beside the first.
    torch.manual_seed(0)
    field = {"activation": "identity"}
    net = Reversible(
        [Hamiltonian(SeparableHamiltonian((6,), **field), step_size=2.0) for _ in range(5)],
        checkpoint_every=5,
    )
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.6)
    z = 10 * states().float()
    with torch.no_grad():
        end = net(z)
        error = (net.inverse(end) - z).norm(dim=1)
    tolerance = torch.finfo(torch.float32).eps ** (2 / 3)
    assert (error / end.norm(dim=1) < tolerance).all()
    assert (error / z.norm(dim=1) > 10 * tolerance).any()
    with pytest.raises(stabnet.ConvergenceError, match="differs"):
        gradients(net, z)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_state_that_is_not_finite_is_named_as_the_cause(bad):
    z = states()
    z[2, 1] = bad
    with pytest.raises(stabnet.ConvergenceError, match="not finite"):
        gradients(chain(), z)


def test_gradients_that_are_not_finite_are_handed_on():
    z = states().requires_grad_()
    (chain()(z).sum() * float("inf")).backward()
    assert not z.grad.isfinite().any()


def test_a_second_backward_pass_over_the_same_graph_gives_the_same():
    net, z = chain(), states().requires_grad_()
    loss = net(z).square().sum()
    loss.backward(retain_graph=True)
    once = z.grad.clone()
    loss.backward()
    assert torch.equal(z.grad, 2 * once)


@pytest.mark.parametrize("which", ["first", "last"])
def test_states_edited_in_place_between_the_passes_are_noticed(which):
    z = states()
    out = chain()(z)
    with torch.no_grad():
        (z if which == "first" else out).add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        out.sum().backward()


def test_parameters_shared_by_blocks_get_the_sum_of_their_gradients():
    net = chain(4)
    shared = net.blocks[0].vector_field.potential
    for block in net.blocks[1:]:
        block.vector_field.potential.weight = shared.weight
    net.blocks[2].vector_field.kinetic_potential = shared
    assert_close(gradients(net, states()), stored_gradients(net, states()))


def test_one_tensor_may_replace_many_parameters():
    net, found = chain(), []
    weight = torch.randn(3, 3, dtype=F64, requires_grad=True)
    for stored in (False, True):
        net.stored = stored
        replaced = {n: weight if p.ndim == 2 else p for n, p in net.named_parameters()}
        loss = torch.func.functional_call(net, replaced, (states(),)).square().sum()
        found.append(torch.autograd.grad(loss, weight))
    assert_close(*found)


def test_chains_of_chains_work():
    net = Reversible([chain(2), *chain(2, seed=1).blocks])
    assert_close(gradients(net, states()), stored_gradients(net, states()))


def test_copies_pickles_and_state_dicts_are_the_same_chain():
    net, z = chain(), states()
    expected = gradients(net, z)
    fresh = chain(seed=7)
    fresh.load_state_dict(net.state_dict())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), fresh):
        assert_close(gradients(other, z), expected, 0)


def test_hooks_after_accumulation_run_once_for_each_parameter():
    net, seen = chain(), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(id(p)))
    net(states()).sum().backward()
    assert sorted(seen) == sorted(map(id, net.parameters()))


@pytest.mark.parametrize("scheme", ["symplectic_euler", "yoshida4"])
@pytest.mark.parametrize("plain", [False, True])
def test_gradients_under_autocast_are_as_close_as_its_precision(plain, scheme):
    net = chain(5, scheme=scheme).float()
    net = Reversible([Plain(b) for b in net.blocks]) if plain else net
    z = states().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(net, z)
        expected = stored_gradients(net, z)
        net.stored = True  # weights that were cast without gradients must not be found again
        again = gradients(net, z)
    assert_close(found, expected, 0.02)
    assert_close(again, expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_closer_to_stored_ones_than_those_to_exact_ones(dtype):
    net, z = chain(20), states()
    exact = gradients(net, z)
    half = copy.deepcopy(net).to(dtype)
    found, stored = gradients(half, z.to(dtype)), stored_gradients(half, z.to(dtype))
    for a, b, c in zip(found, stored, exact, strict=True):
        assert float((a - b).norm()) <= float((b - c).norm())


def test_dropout_whose_effect_on_states_is_below_the_tolerance_is_refused_as_well():
    class Dropping(stabnet.interfaces.Potential):
        state_shape = (3,)

        def forward(self, z, context=None):
            return nn.functional.dropout(z, 0.1).square().sum(-1)

    field = SeparableHamiltonian((6,), potential=Dropping())
    net = Reversible([Hamiltonian(field, step_size=1e-9)]).to(F64)
    with pytest.raises(stabnet.StabnetError, match="random numbers"):
        net(states().requires_grad_())


def test_gradients_of_batches_of_gradients_and_of_single_samples_are_right():
    net, z = chain(), states()
    expected = torch.func.jacrev(net)(z)
    found = torch.autograd.functional.jacobian(net, z, vectorize=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], z: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (z[None],)).square().sum()

    single = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, z)
    assert_close([g.sum(0) for g in single.values()], gradients(net, z)[1:])


def test_chains_compile_as_one_graph_and_export():
    net, z = chain().float(), states().float()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(gradients(compiled, z), gradients(net, z), 1e-6)
    exported = torch.export.export(net, (z,)).module()
    torch.testing.assert_close(exported(z), net(z))


def test_chains_within_checkpoints_work():
    net, z = chain(), states().requires_grad_()
    out = torch.utils.checkpoint.checkpoint(net, z, use_reentrant=False)
    (found,) = torch.autograd.grad(out.square().sum(), z)
    assert_close([found], gradients(net, states())[:1])


def test_modes_may_change_between_the_passes():
    net, z = chain(), states().requires_grad_()
    out = net(z)
    with torch.inference_mode():
        net(states())
    net.eval()
    out.square().sum().backward()
    assert_close([z.grad], gradients(net, states())[:1])


def test_weights_cached_by_a_parametrization_get_their_gradient():
    net = chain()
    for block in net.blocks:
        orthogonal(block.vector_field.potential, "weight")
    with parametrize.cached():
        found = gradients(net, states())
    assert_close(found, stored_gradients(net, states()))


def test_weights_that_change_whenever_they_are_used_are_refused_until_they_rest():
    net = chain(20)
    for block in net.blocks:
        spectral_norm(block.vector_field.potential)
    with pytest.raises(stabnet.ConvergenceError, match="spectral_norm in training mode"):
        gradients(net, states())
    net.eval()
    assert_close(gradients(net, states()), stored_gradients(net, states()))


def replicated(module: nn.Module) -> nn.Module:
    """Return what each device gets from ``torch.nn.DataParallel``."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = replicated(child)
    for name, p in module._parameters.items():
        setattr(replica, name, p.view_as(p))
    return replica


def test_replicas_for_data_parallel_training_hand_gradients_to_the_original():
    net, z = chain(), states().requires_grad_()
    loss = replicated(net)(z).square().sum()
    found = torch.autograd.grad(loss, [z, *net.parameters()])
    assert_close(found, stored_gradients(net, states()))
