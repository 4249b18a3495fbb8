"""The Cayley map, the matrices it makes, and the orthogonal layer of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import Cayley, cayley
from stabnet_gradient_flow.cayley_map import GAIN_LIMIT, rescaled, saturated
from torch import Tensor

import stabnet
from stabnet.interfaces import Block

DOUBLE = torch.float64
LAYERS = [
    ((5,), {"activation": None}),
    ((4,), {"features": 6}),
    ((6,), {"features": 4, "activation": "abs", "bias": False}),
    ((4,), {"activation": "sigmoid"}),
    ((2, 4, 4), {}),
    ((2, 5, 3), {"features": 4}),
    ((4, 3, 6), {"features": 2, "activation": "relu"}),
    ((2, 3, 4), {"kernel_size": 2, "activation": None}),
    ((1, 1, 3), {"features": 2, "kernel_size": 1}),
]


def layer(state_shape, dtype: torch.dtype = DOUBLE, seed: int = 0, **options) -> Cayley:
    torch.manual_seed(seed)
    built = Cayley(state_shape, **options).to(dtype)
    if built.bias is not None:
        torch.nn.init.normal_(built.bias, std=0.3)
    return built


def points(block: Block, count: int, dtype: torch.dtype = DOUBLE, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *block.state_shape, generator=generator, dtype=DOUBLE).to(dtype)


def jacobians(block: Block, z: Tensor) -> Tensor:
    def one(state: Tensor) -> Tensor:
        return block(state[None])[0].flatten()

    return torch.func.vmap(torch.func.jacrev(one))(z).flatten(2).detach()


def explicit(built: Cayley) -> Tensor:
    """Return the matrix of Q, column by column, in float64."""
    unit = torch.eye(math.prod(built.state_shape), dtype=DOUBLE)
    matrices = built.matrix().detach()
    wide = matrices.to(torch.complex128 if matrices.is_complex() else DOUBLE)
    return built.matrix.multiply(wide, unit.view(-1, *built.state_shape)).flatten(1).T


def set_all(built: Block, value: float) -> None:
    for parameter in built.parameters():
        torch.nn.init.constant_(parameter, value)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (3, 7), (2, 3, 5, 2), (3, 2, 4), (1, 1)])
def test_columns_of_tall_and_rows_of_wide_matrices_are_orthonormal(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 30.0):
        X = size * torch.randn(shape, dtype=dtype, generator=generator)
        Q = cayley(X)
        gram = Q.mH @ Q if shape[-2] >= shape[-1] else Q @ Q.mH
        identity = torch.eye(gram.shape[-1], dtype=dtype).expand_as(gram)
        torch.testing.assert_close(gram, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
def test_the_map_is_its_formula(dtype):
    X = torch.randn(7, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    U, V, identity = X[:4], X[4:], torch.eye(4, dtype=dtype)
    S = U - U.mH + V.mH @ V
    inverse = torch.linalg.inv(identity + S)
    expected = torch.cat([(identity - S) @ inverse, -2 * V @ inverse])
    torch.testing.assert_close(cayley(X), expected)
    torch.testing.assert_close(cayley(X.mH), expected.mH)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5))
def test_every_rotation_by_less_than_half_a_turn_is_reached(seed, n):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, dtype=DOUBLE, generator=generator)
    Q = torch.linalg.matrix_exp(0.8 * (A - A.T) / (1 + torch.linalg.matrix_norm(A - A.T, 2)))
    identity = torch.eye(n, dtype=DOUBLE)
    S = torch.linalg.solve(identity + Q, identity - Q, left=False)
    torch.testing.assert_close(cayley(S / 2), Q)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 2), (2, 3)])
def test_the_map_has_its_gradient(shape, dtype):
    X = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(cayley, X.requires_grad_())
    assert torch.autograd.gradgradcheck(cayley, X)


def test_rounding_makes_no_norm_exceed_one_for_the_worst_matrices_of_full_gain():
    generator = torch.Generator().manual_seed(3)
    for shape in ((32, 32), (64, 32), (96, 8)):
        X = torch.randn(shape[0], 1, generator=generator) @ torch.randn(
            1, shape[1], generator=generator
        )
        Q = cayley(rescaled(X, torch.tensor(1e9))).double()
        singular = torch.linalg.svdvals(Q)
        assert singular.max() <= 1 + 1e-6
        assert singular.min() >= 1 - 1e-5


def test_the_map_keeps_its_precision_under_autocast():
    X = torch.randn(24, 16, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", torch.bfloat16):
        Q = cayley(X)
    assert torch.equal(Q, cayley(X))


def test_vectors_are_refused_by_the_map():
    with pytest.raises(stabnet.InvalidInputError, match=r"matrices.*got shape \(3,\)"):
        cayley(torch.ones(3))


def test_the_size_of_the_weights_does_not_matter_and_their_gain_saturates():
    X = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    gain = torch.tensor(2.0, dtype=DOUBLE)
    for size in (1e-10, 1.0, 1e200):
        out = rescaled(size * X, gain)
        torch.testing.assert_close(out, X / X.norm() * saturated(gain, GAIN_LIMIT))
    assert abs(float(saturated(gain, GAIN_LIMIT)) - 2) < 1e-3
    assert float(rescaled(X, gain * 1e200).norm()) <= GAIN_LIMIT * (1 + 1e-15)


def test_rescaled_weights_have_their_gradient():
    X = torch.randn(3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(6))
    gain = torch.tensor(20.0, dtype=DOUBLE)
    assert torch.autograd.gradcheck(rescaled, (X.requires_grad_(), gain.requires_grad_()))


@pytest.mark.parametrize(("state_shape", "options"), LAYERS)
def test_the_matrix_of_the_layer_is_semi_orthogonal_and_within_its_bound(state_shape, options):
    for dtype, above in ((DOUBLE, 1e-10), (torch.float32, 1e-5)):
        built = layer(state_shape, dtype, **options)
        Q = explicit(built)
        singular = torch.linalg.svdvals(Q)
        assert (singular - 1).abs().max() <= above
        assert singular.max() <= built.matrix.norm_bound() * (1 + 1e-13)
        assert built.matrix.norm_bound() <= 1 + above


@pytest.mark.parametrize(("state_shape", "options"), LAYERS)
def test_jacobians_stay_within_the_bound_and_the_bound_near_one(state_shape, options):
    built = layer(state_shape, **options)
    largest = torch.linalg.matrix_norm(jacobians(built, points(built, 50)), 2).max()
    bound = built.lipschitz_bound()
    assert largest <= bound * (1 + 1e-12)
    limit = 0.25 if options.get("activation") == "sigmoid" else 1.0
    assert limit <= bound * (1 + 1e-12)
    assert bound <= limit * (1 + 1e-10)


@pytest.mark.parametrize(
    ("state_shape", "features"), [((4,), 4), ((4,), 7), ((3, 4, 5), 3), ((2, 4, 4), 3)]
)
def test_a_linear_layer_of_enough_features_keeps_all_distances(state_shape, features):
    built = layer(state_shape, features=features, activation=None)
    z, w = points(built, 20), points(built, 20, seed=2)
    before, after = ((a - b).flatten(1).norm(dim=1) for a, b in ((z, w), (built(z), built(w))))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 3)])
def test_gradients_keep_their_length_through_maxmin(state_shape):
    built = layer(state_shape)
    singular = torch.linalg.svdvals(jacobians(built, points(built, 20)))
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (3, 6), (1, 5)])
def test_the_layer_of_images_is_a_circular_convolution(size):
    taps = min(3, *size)
    built = layer((2, *size), features=3, kernel_size=taps, activation=None)
    z = points(built, 3)
    kernel = torch.fft.irfft2(built.matrix().permute(2, 3, 0, 1), s=size)
    expected = built.bias.detach().view(-1, 1, 1).expand(3, 3, *size).clone()
    for i in range(size[0]):
        for j in range(size[1]):
            shifted = z.roll((i, j), (2, 3))
            expected = expected + torch.einsum("oc,bchw->bohw", kernel[..., i, j], shifted)
    torch.testing.assert_close(built(z), expected)


def test_the_frequencies_are_those_of_the_centered_kernel():
    built = layer((2, 5, 6), activation=None)
    kernel = rescaled(built.matrix.weight, built.matrix.gain).detach()
    z = points(built, 2)
    spectrum = torch.fft.rfft2(
        torch.stack(
            [F.conv2d(F.pad(e, (1,) * 4, "circular"), kernel.flip(2, 3)) for e in impulses()]
        )
    )
    X = spectrum.squeeze(1).permute(2, 3, 1, 0)
    out = torch.fft.rfft2(z).permute(2, 3, 1, 0)
    expected = torch.fft.irfft2((cayley(X) @ out).permute(3, 2, 0, 1), s=(5, 6))
    torch.testing.assert_close(built(z), expected + built.bias.view(-1, 1, 1))


def impulses() -> Tensor:
    e = torch.zeros(2, 1, 2, 5, 6, dtype=DOUBLE)
    e[0, 0, 0, 0, 0] = e[1, 0, 1, 0, 0] = 1
    return e


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 3)])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, -1e20, 1e-20, 1e-40])
def test_weights_of_any_size_have_finite_states_gradients_and_a_bound(state_shape, value):
    built = layer(state_shape, torch.float32)
    set_all(built, value)
    z = points(built, 3, torch.float32).requires_grad_()
    out = built(z)
    (out / out.detach().abs().max().clamp(min=1)).square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (z, *built.parameters()))
    assert built.lipschitz_bound() <= 1 + 1e-5


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 4)])
def test_the_bound_outlives_training(state_shape):
    built = layer(state_shape, torch.float32)
    z, target = points(built, 32, torch.float32), points(built, 32, torch.float32, seed=3)
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        loss = F.mse_loss(built(z), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert built.lipschitz_bound() <= 1 + 1e-5
    exact = copy.deepcopy(built).double()
    assert torch.linalg.matrix_norm(jacobians(exact, z.double()), 2).max() <= 1 + 1e-12


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 4)])
def test_edits_of_the_data_are_seen(state_shape):
    built = layer(state_shape, activation=None).eval()
    z = points(built, 2)
    before = built(z)
    built.matrix.weight.data.copy_(torch.randn_like(built.matrix.weight))
    assert (built(z) - before).abs().max() > 1e-3
    built.matrix.weight.data.view(-1)[0] = math.nan
    with pytest.raises(stabnet.InvalidInputError, match=r"matrix.weight of Cayley holds NaN"):
        built.lipschitz_bound()
    assert [g.status for g in built.guarantees()] == ["by construction", "falsified"]


def test_the_bound_is_of_the_matrix_as_it_is_computed(monkeypatch):
    for state_shape in ((4,), (2, 4, 3)):
        built = layer(state_shape, activation=None)
        matrices = built.matrix().detach()
        monkeypatch.setattr(built.matrix, "forward", lambda Q=matrices: 3 * Q)
        assert built.lipschitz_bound() == pytest.approx(3, abs=1e-9)
        assert built.lipschitz_bound() >= 3 * (1 - 1e-15)


def test_the_bound_sees_a_single_frequency(monkeypatch):
    built = layer((2, 4, 5), activation=None)
    for frequency in ((0, 0), (3, 1), (2, 2)):
        matrices = built.matrix().detach().clone()
        matrices[frequency] *= 2
        monkeypatch.setattr(built.matrix, "forward", lambda Q=matrices: Q)
        assert built.lipschitz_bound() == pytest.approx(2, abs=1e-9)
        largest = float(torch.linalg.matrix_norm(jacobians(built, points(built, 1)), 2))
        assert largest <= built.lipschitz_bound()


@pytest.mark.parametrize(("state_shape", "options"), LAYERS)
def test_the_outgoing_shape_is_announced(state_shape, options):
    built = layer(state_shape, **options)
    out_shape = (options.get("features", state_shape[0]), *state_shape[1:])
    assert built.out_shape == out_shape
    assert built(points(built, 3)).shape == (3, *out_shape)


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 5)])
def test_the_layer_compiles_exports_and_vmaps(state_shape):
    built = layer(state_shape).eval()
    z = points(built, 3)
    expected = built(z)
    torch._dynamo.reset()
    compiled = torch.compile(built, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z), expected)
    torch.testing.assert_close(torch.export.export(built, (z,)).module()(z), expected)
    torch.testing.assert_close(torch.vmap(lambda state: built(state[None])[0])(z), expected)


@pytest.mark.parametrize("state_shape", [(6,), (2, 4, 5)])
def test_states_in_half_precision_are_taken_under_autocast(state_shape):
    built = layer(state_shape, torch.float32)
    z = points(built, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(built(z.bfloat16()).float(), built(z), rtol=0.05, atol=0.05)


def test_what_cannot_work_is_refused_with_the_reason():
    refusals = [
        ((3,), {}, "maxmin.*3; use an even number"),
        ((4,), {"features": 3}, "maxmin.*3; use an even number"),
        ((4,), {"activation": "gelu"}, "gelu.*slopes go from"),
        ((4,), {"features": 0}, "features=0"),
        ((4,), {"bias": "no"}, "bias='no'"),
        ((2, 4, 3), {"kernel_size": 4}, "kernel_size=4 is larger than the images"),
        ((2, 4, 4), {"kernel_size": 0}, "kernel_size=0"),
        ((2, 4), {}, r"vectors \(n,\) or images"),
    ]
    for state_shape, options, words in refusals:
        with pytest.raises(stabnet.InvalidOptionError, match=words):
            Cayley(state_shape, **options)
    with pytest.raises(stabnet.InvalidInputError, match="the block takes"):
        layer((4,))(torch.zeros(2, 5))


def test_the_layer_is_built_by_name_from_lists():
    built = stabnet.build("cayley", kind="block", state_shape=[2, 4, 4], features=6)
    assert isinstance(built, Cayley)
    assert built.out_shape == (6, 4, 4)
    assert [g.status for g in built.guarantees()] == ["by construction", "verified"]
