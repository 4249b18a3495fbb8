from __future__ import annotations

import copy

import pytest
import torch
from stabnet_gradient_flow import SLL, rescaled_rows, sll
from stabnet_gradient_flow.blocks import sll as module
from torch import Tensor

import stabnet
from stabnet.bounds import spectral_norm_bound

SHAPES = [
    ((5,), {}),
    ((5,), {"hidden": 8, "activation": "softplus"}),
    ((5,), {"hidden": 2, "activation": "sigmoid"}),
    ((3, 4, 3), {"kernel_size": 1, "activation": "leaky_relu"}),
    ((2, 5, 4), {}),
    ((2, 2, 3), {"kernel_size": 5, "hidden": 3}),
    ((2, 4, 5), {"padding_mode": "circular", "hidden": 4, "activation": "tanh"}),
    ((2, 5, 5), {"padding_mode": "circular", "kernel_size": 5}),
]


def block(state_shape, *, dtype: torch.dtype = torch.float64, **options) -> SLL:
    torch.manual_seed(0)
    built = sll(state_shape, **options).to(dtype)
    with torch.no_grad():
        built.bias.normal_(std=0.3)
        built.log_q.normal_()
    return built


def points(built: SLL, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *built.state_shape, generator=generator, dtype=torch.float64)
    return z.to(built.weight.dtype)


def jacobians(built: SLL, z: Tensor) -> Tensor:
    def one(state: Tensor) -> Tensor:
        return built(state[None])[0].flatten()

    return torch.func.vmap(torch.func.jacrev(one))(z).flatten(2).detach()


@pytest.mark.parametrize(("state_shape", "options"), SHAPES)
def test_output_is_the_step_of_the_theorem(state_shape, options):
    built = block(state_shape, **options)
    z = points(built, 3)
    A = built.operator(built.weight, torch.eye(z[0].numel()).double().view(-1, *state_shape))
    A = A.flatten(1).T
    pixels = len(A) // len(built.bias)
    norms = rescaled_rows(built.weight, built.log_q)[1].repeat_interleave(pixels)
    slope = built.activation.largest_slope
    hidden = built.activation(z.flatten(1) @ A.T + built.bias.repeat_interleave(pixels))
    expected = z.flatten(1) - 2 / slope * (hidden / norms**2) @ A
    torch.testing.assert_close(built(z).flatten(1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("state_shape", "options"), SHAPES)
def test_bound_holds_at_many_points_and_is_one(state_shape, options, dtype):
    built = block(state_shape, dtype=dtype, **options)
    bound = built.lipschitz_bound()
    assert 1 <= bound <= 1 + 1e-6
    norms = torch.linalg.matrix_norm(jacobians(built.double(), 3 * points(built, 40).double()), 2)
    assert norms.max() <= bound + (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("state_shape", [(5,), (2, 4, 4)])
def test_bound_is_of_the_weights_that_forward_uses(state_shape, monkeypatch):
    built = block(state_shape, activation="relu")

    def too_long(rows: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        rescaled, norms = rescaled_rows(rows, log_q)
        return 1.5 * rescaled, norms

    with torch.no_grad():
        built.bias.fill_(1e6)  # every slope is 1, where the constant is attained
    monkeypatch.setattr(module, "rescaled_rows", too_long)
    true = float(torch.linalg.matrix_norm(jacobians(built, points(built, 1)), 2))
    assert 1.1 < true <= built.lipschitz_bound()
    if len(state_shape) == 1:
        assert built.lipschitz_bound() == pytest.approx(true, rel=1e-9)


def test_reflection_is_attained_where_rows_are_orthonormal():
    built = block((4,))
    with torch.no_grad():
        built.weight.copy_(torch.linalg.qr(torch.randn(4, 4).double())[0])
        built.log_q.zero_()
        built.bias.fill_(1e3)
    J = jacobians(built, points(built, 1))[0]
    torch.testing.assert_close(J, -torch.eye(4).double())
    assert built.lipschitz_bound() <= 1 + 1e-12


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_kernels_of_one_pixel_act_as_the_dense_layer_at_every_pixel(padding_mode):
    image = block((3, 2, 4), hidden=5, kernel_size=1, padding_mode=padding_mode)
    dense = block((3,), hidden=5)
    with torch.no_grad():
        dense.weight.copy_(image.weight.flatten(1))
        dense.bias.copy_(image.bias), dense.log_q.copy_(image.log_q)
    z = points(image, 2)
    pixels = z.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(image(z).movedim(1, -1).reshape(-1, 3), dense(pixels))


@pytest.mark.parametrize(
    ("state_shape", "options"),
    [
        ((3,), {"hidden": 4, "activation": "tanh"}),
        ((2, 3, 3), {"activation": "softplus", "padding_mode": "circular"}),
        ((1, 3, 2), {"hidden": 2, "activation": "sigmoid"}),
    ],
)
def test_gradients_are_exact(state_shape, options):
    built = block(state_shape, **options)
    names, values = zip(*built.named_parameters(), strict=True)

    def call(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(built, dict(zip(names, parameters, strict=True)), (z,))

    inputs = [t.detach().clone().requires_grad_() for t in (points(built, 2), *values)]
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, 1e-20])
@pytest.mark.parametrize("activation", ["relu", "softplus", "sigmoid", "tanh"])
@pytest.mark.parametrize("state_shape", [(4,), (2, 4, 3)])
def test_weights_of_any_size_give_finite_numbers(state_shape, activation, value):
    built = block(state_shape, activation=activation, dtype=torch.float32)
    torch.nn.init.constant_(built.weight, value)
    z = points(built, 2).requires_grad_()
    out = built(z)
    out.square().mean().backward()
    assert out.isfinite().all()
    for x in (z, *built.parameters()):
        assert x.grad.isfinite().all()
    assert built.lipschitz_bound() <= 1 + 1e-6


@pytest.mark.parametrize("state_shape", [(6,), (3, 5, 5)])
def test_bound_stays_one_through_training(state_shape):
    built = block(state_shape, dtype=torch.float32)
    before = copy.deepcopy(built.state_dict())
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2)
    z, target = points(built, 16, seed=2), points(built, 16, seed=3)
    for _ in range(50):
        optimizer.zero_grad()
        (built(z) - target).square().mean().backward()
        optimizer.step()
    assert all((p - before[name]).abs().max() > 1e-3 for name, p in built.named_parameters())
    assert built.lipschitz_bound() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["weight", "bias", "log_q"])
def test_corruption_in_place_is_seen(name):
    built = block((2, 4, 4), dtype=torch.float32)
    assert built.lipschitz_bound() <= 1 + 1e-6
    assert [g.status for g in built.guarantees()] == ["by construction", "verified"]
    parameter = built.get_parameter(name)
    parameter.data.view(-1)[0] = 1e30 if name == "log_q" else 1e3
    assert built.lipschitz_bound() <= 1 + 1e-6
    for bad in (float("nan"), float("inf")):
        parameter.data.view(-1)[0] = bad
        with pytest.raises(stabnet.StabnetError, match=f"{name} of SLL"):
            built.lipschitz_bound()
        _, stands = built.guarantees()
        assert stands.status == "falsified"
        assert name in stands.detail


def test_weights_that_overflow_have_no_bound():
    built = block((4,), dtype=torch.float32)
    torch.nn.init.constant_(built.weight, 3e38)
    with pytest.raises(stabnet.StabnetError, match="so large"):
        built.lipschitz_bound()


def test_bound_is_recomputed_after_an_edit_of_data():
    # Rows of one direction and many sizes: in single precision the bound moves with the weights.
    built = block((3,), hidden=3, dtype=torch.float32)
    seen = set()
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        built.weight.data.copy_(torch.linalg.qr(torch.randn(3, 3, generator=generator))[0])
        built.log_q.data.zero_()
        rescaled = rescaled_rows(built.weight, built.log_q)[0]
        expected = max(1.0, 2 * spectral_norm_bound(rescaled) ** 2 - 1)
        assert built.lipschitz_bound() == pytest.approx(expected, abs=1e-14)
        seen.add(built.lipschitz_bound())
    assert len(seen) > 1


@pytest.mark.parametrize("activation", ["maxmin", "groupsort", "abs", "gelu", "silu", "sin", "no"])
def test_activations_that_break_the_bound_are_refused(activation):
    with pytest.raises(stabnet.InvalidOptionError, match="slopes in") as refused:
        sll((4,), activation=activation)
    if activation == "maxmin":
        assert "not monotone" in str(refused.value)
        assert "aol" in str(refused.value)


def test_states_of_another_shape_are_refused():
    with pytest.raises(stabnet.InvalidInputError, match="2, 4, 4"):
        block((2, 4, 4), dtype=torch.float32)(torch.zeros(1, 2, 5, 4))


def test_built_by_name_from_lists():
    built = stabnet.build("sll", kind="block", state_shape=[2, 4, 4], hidden=3, kernel_size=1)
    assert isinstance(built, SLL)
    assert built.state_shape == (2, 4, 4)
    assert built.weight.shape == (3, 2, 1, 1)
    assert not built.bias.any()


@pytest.mark.parametrize("state_shape", [(4,), (2, 4, 4)])
def test_forward_compiles_as_one_graph(state_shape):
    built = block(state_shape, dtype=torch.float32).eval()
    z = points(built, 2)
    torch.testing.assert_close(
        torch.compile(built, fullgraph=True, backend="eager")(z), built(z), rtol=1e-6, atol=1e-6
    )
