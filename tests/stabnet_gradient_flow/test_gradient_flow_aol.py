from __future__ import annotations

import pytest
import torch
from stabnet_gradient_flow import AOL, aol
from stabnet_gradient_flow.blocks import aol as module
from torch import Tensor

import stabnet
from stabnet.bounds import spectral_norm_bound

SHAPES = [
    ((6,), {}),
    ((5,), {"features": 8}),
    ((7,), {"features": 4, "activation": "abs"}),
    ((5,), {"features": 3, "activation": None}),
    ((2, 4, 3), {"kernel_size": 1, "features": 4}),
    ((2, 5, 4), {}),
    ((3, 2, 3), {"kernel_size": 5, "features": 2, "activation": "relu"}),
    ((2, 4, 5), {"padding_mode": "circular", "features": 4}),
    ((2, 5, 5), {"padding_mode": "circular", "kernel_size": 5, "activation": "sigmoid"}),
]


def block(state_shape, *, dtype: torch.dtype = torch.float64, random=True, **options) -> AOL:
    torch.manual_seed(0)
    built = aol(state_shape, **options).to(dtype)
    if random:
        with torch.no_grad():
            built.weight.normal_(), built.bias.normal_(std=0.3)
    return built


def points(built: AOL, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *built.state_shape, generator=generator, dtype=torch.float64)
    return z.to(built.weight.dtype)


def jacobians(built: AOL, z: Tensor) -> Tensor:
    def one(state: Tensor) -> Tensor:
        return built(state[None])[0].flatten()

    return torch.func.vmap(torch.func.jacrev(one))(z).flatten(2).detach()


def explicit(built: AOL) -> Tensor:
    """Return the matrix of ``W``, before it is rescaled."""
    size = torch.Size(built.state_shape).numel()
    basis = torch.eye(size, dtype=built.weight.dtype).view(size, *built.state_shape)
    return built.operator(built.weight, basis).flatten(1).T.detach()


@pytest.mark.parametrize(
    ("state_shape", "options"),
    [
        ((5,), {"features": 4}),
        ((2, 5, 6), {"features": 4, "padding_mode": "circular"}),
        ((2, 9, 9), {"features": 2, "padding_mode": "circular", "kernel_size": 5}),
    ],
)
def test_output_is_that_of_the_explicitly_rescaled_matrix(state_shape, options):
    # Circular images in which the shifts of two kernels do not meet: the sums are the matrix's.
    built = block(state_shape, activation=None, **options)
    W = explicit(built)
    D = (W.T @ W).abs().sum(1).rsqrt()
    z = points(built, 3)
    pixels = len(W) // built.out_shape[0]
    expected = (z.flatten(1) * D) @ W.T + built.bias.repeat_interleave(pixels)
    torch.testing.assert_close(built(z).flatten(1), expected)


@pytest.mark.parametrize(("state_shape", "options"), SHAPES)
def test_diagonal_dominates_the_gram_matrix(state_shape, options):
    built = block(state_shape, **{**options, "activation": None})
    W = explicit(built)
    WD = jacobians(built, points(built, 1))[0]
    D = (WD.abs().sum(0) / W.abs().sum(0)).view(state_shape[0], -1)
    torch.testing.assert_close(D, D[:, :1].expand_as(D))  # one number per channel
    torch.testing.assert_close(WD, W * D.flatten())
    gap = torch.diag(D.flatten() ** -2) - W.T @ W
    assert torch.linalg.eigvalsh(gap).min() >= -1e-12 * gap.diagonal().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("state_shape", "options"), SHAPES)
def test_bound_holds_at_many_points_and_is_at_most_one(state_shape, options, dtype):
    built = block(state_shape, dtype=dtype, **options)
    bound = built.lipschitz_bound()
    assert bound <= 1 + 1e-6
    norms = torch.linalg.matrix_norm(jacobians(built.double(), 3 * points(built, 40).double()), 2)
    assert norms.max() <= bound + (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 4)])
def test_bound_is_of_the_weights_that_forward_uses(state_shape, monkeypatch):
    built = block(state_shape, activation="relu")
    rescaled_rows = module.rescaled_rows

    def too_long(rows: Tensor) -> tuple[Tensor, Tensor]:
        rescaled, norms = rescaled_rows(rows)
        return 3 * rescaled, norms

    with torch.no_grad():
        built.bias.fill_(1e6)  # every slope is 1, where the constant is attained
    monkeypatch.setattr(module, "rescaled_rows", too_long)
    true = float(torch.linalg.matrix_norm(jacobians(built, points(built, 1)), 2))
    assert 1.1 < true <= built.lipschitz_bound()
    if len(state_shape) == 1:
        assert built.lipschitz_bound() == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("activation", ["maxmin", "abs", None])
@pytest.mark.parametrize(
    ("state_shape", "options"),
    [
        ((6,), {}),
        ((5,), {"features": 8}),
        ((4, 3, 5), {}),
        ((3, 4, 4), {"features": 6, "kernel_size": 5}),
        ((2, 4, 4), {"features": 4, "padding_mode": "circular"}),
    ],
)
def test_new_layer_is_an_isometry(state_shape, options, activation):
    built = block(state_shape, random=False, activation=activation, dtype=torch.float32, **options)
    J = jacobians(built, points(built, 3))
    identity = torch.eye(J.shape[-1]).expand(3, -1, -1)
    torch.testing.assert_close(J.mT @ J, identity, rtol=0, atol=1e-6)
    assert abs(built.lipschitz_bound() - 1) <= 1e-6


@pytest.mark.parametrize("state_shape", [(7,), (8,), (5, 3, 3)])
def test_new_layer_with_fewer_features_has_orthonormal_rows(state_shape):
    built = block(state_shape, features=4, random=False, activation=None, dtype=torch.float32)
    J = jacobians(built, points(built, 1))[0]
    torch.testing.assert_close(J @ J.T, torch.eye(len(J)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_kernels_of_one_pixel_act_as_the_dense_layer_at_every_pixel(padding_mode):
    image = block((3, 2, 4), features=4, kernel_size=1, padding_mode=padding_mode)
    dense = block((3,), features=4)
    with torch.no_grad():
        dense.weight.copy_(image.weight.flatten(1)), dense.bias.copy_(image.bias)
    z = points(image, 2)
    pixels = z.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(image(z).movedim(1, -1).reshape(-1, 4), dense(pixels))


@pytest.mark.parametrize(
    ("state_shape", "options"),
    [
        ((3,), {"features": 4}),
        ((2, 3, 3), {"activation": "softplus", "padding_mode": "circular"}),
        ((1, 3, 2), {"features": 2, "activation": None}),
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
@pytest.mark.parametrize("state_shape", [(4,), (2, 4, 3)])
def test_weights_of_any_size_give_finite_numbers(state_shape, value):
    built = block(state_shape, dtype=torch.float32)
    torch.nn.init.constant_(built.weight, value)
    z = points(built, 2).requires_grad_()
    out = built(z)
    out.square().mean().backward()
    assert out.isfinite().all()
    for x in (z, *built.parameters()):
        assert x.grad.isfinite().all()
    assert built.lipschitz_bound() <= 1 + 1e-6


@pytest.mark.parametrize("state_shape", [(6,), (4, 5, 5)])
def test_bound_stays_one_through_training(state_shape):
    built = block(state_shape, dtype=torch.float32, random=False)
    before = built.weight.detach().clone()
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2)
    z, target = points(built, 16, seed=2), points(built, 16, seed=3)
    for _ in range(50):
        optimizer.zero_grad()
        (built(z) - target).square().mean().backward()
        optimizer.step()
    assert (built.weight - before).abs().max() > 0.05
    assert built.lipschitz_bound() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_corruption_in_place_is_seen(name):
    built = block((2, 4, 4), dtype=torch.float32)
    assert [g.status for g in built.guarantees()] == ["by construction", "verified"]
    before = built.lipschitz_bound()
    parameter = built.get_parameter(name)
    parameter.data.view(-1)[0] = 1e3
    assert (built.lipschitz_bound() != before) == (name == "weight")
    assert built.lipschitz_bound() <= 1 + 1e-6
    for bad in (float("nan"), float("inf")):
        parameter.data.view(-1)[0] = bad
        with pytest.raises(stabnet.StabnetError, match=f"{name} of AOL"):
            built.lipschitz_bound()
        _, stands = built.guarantees()
        assert stands.status == "falsified"
        assert name in stands.detail


def test_bound_is_recomputed_after_an_edit_of_data():
    built = block((4,))
    for seed in range(3):
        built.weight.data.copy_(points(built, 4, seed))
        W = built.weight.detach()
        expected = spectral_norm_bound(W * (W.T @ W).abs().sum(0).rsqrt())
        assert built.lipschitz_bound() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", [{"state_shape": (5,)}, {"state_shape": (4,), "features": 3}])
def test_max_min_needs_an_even_number_of_features(options):
    with pytest.raises(stabnet.InvalidOptionError, match="even number"):
        aol(**options)
    assert aol(**options, activation="relu").out_shape == (options.get("features", 5),)


@pytest.mark.parametrize("activation", ["gelu", "silu", "no"])
def test_activations_that_expand_distances_are_refused(activation):
    with pytest.raises(stabnet.InvalidOptionError, match="expand"):
        aol((4,), activation=activation)


def test_number_of_features_is_checked_by_its_name():
    with pytest.raises(stabnet.InvalidOptionError, match="features=0"):
        aol((4,), features=0)


def test_states_of_another_shape_are_refused():
    with pytest.raises(stabnet.InvalidInputError, match="2, 4, 4"):
        block((2, 4, 4), dtype=torch.float32)(torch.zeros(1, 2, 5, 4))


def test_built_by_name_from_lists():
    built = stabnet.build("aol", kind="block", state_shape=[2, 4, 4], features=6, kernel_size=1)
    assert isinstance(built, AOL)
    assert built.state_shape == (2, 4, 4)
    assert built.out_shape == (6, 4, 4)
    assert built(torch.zeros(3, 2, 4, 4)).shape == (3, 6, 4, 4)
    assert not built.bias.any()


@pytest.mark.parametrize("state_shape", [(4,), (2, 4, 4)])
def test_forward_compiles_as_one_graph(state_shape):
    built = block(state_shape, dtype=torch.float32).eval()
    z = points(built, 2)
    torch.testing.assert_close(
        torch.compile(built, fullgraph=True, backend="eager")(z), built(z), rtol=1e-6, atol=1e-6
    )
