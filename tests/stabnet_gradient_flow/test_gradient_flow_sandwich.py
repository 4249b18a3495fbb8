"""The sandwich layer: its formula, its bound, and what it survives."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import Sandwich
from torch import Tensor

import stabnet

DOUBLE = torch.float64
LAYERS = [
    ((5,), {}),
    ((3,), {"features": 6, "activation": "tanh"}),
    ((6,), {"features": 2, "activation": "softplus"}),
    ((4,), {"activation": "sigmoid"}),
    ((2, 4, 4), {}),
    ((2, 5, 3), {"features": 3}),
    ((3, 3, 6), {"features": 2, "activation": "leaky_relu"}),
    ((2, 3, 4), {"kernel_size": 2}),
    ((1, 1, 3), {"features": 2, "kernel_size": 1}),
]


def layer(state_shape, dtype: torch.dtype = DOUBLE, seed: int = 0, **options) -> Sandwich:
    torch.manual_seed(seed)
    built = Sandwich(state_shape, **options).to(dtype)
    torch.nn.init.normal_(built.bias, std=0.3)
    torch.nn.init.normal_(built.log_scale)
    return built


def points(built: Sandwich, count: int, dtype: torch.dtype = DOUBLE, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *built.state_shape, generator=generator, dtype=DOUBLE).to(dtype)


def jacobians(built: Sandwich, z: Tensor) -> Tensor:
    def one(state: Tensor) -> Tensor:
        return built(state[None])[0].flatten()

    return torch.func.vmap(torch.func.jacrev(one))(z).flatten(2).detach()


def factors(built: Sandwich) -> tuple[Tensor, Tensor]:
    """Return the explicit matrices A and B."""
    matrices = built.matrix().detach()
    hidden = built.out_shape[0]
    (a, n), pixels = (hidden, built.state_shape[0]), math.prod(built.state_shape[1:])
    image = built.state_shape[1:]
    units = [torch.eye(k * pixels, dtype=DOUBLE).view(-1, k, *image) for k in (a, n)]
    transposed = built.matrix.multiply(matrices[..., :hidden, :], units[0]).flatten(1).T
    B = built.matrix.multiply(matrices[..., hidden:, :].mH, units[1]).flatten(1).T
    return transposed.T, B


@pytest.mark.parametrize(("state_shape", "options"), LAYERS)
def test_output_is_the_formula_of_the_paper(state_shape, options):
    built = layer(state_shape, **options)
    A, B = factors(built)
    torch.testing.assert_close(A @ A.T + B @ B.T, torch.eye(len(A), dtype=DOUBLE))
    per_pixel = math.prod(state_shape[1:])
    scale = (20 * torch.tanh(built.log_scale / 20)).exp().repeat_interleave(per_pixel)
    z, b = points(built, 3), built.bias.repeat_interleave(per_pixel)
    hidden = built.activation(math.sqrt(2) * z.flatten(1) @ B.T / scale + b)
    expected = math.sqrt(2) * (scale * hidden) @ A
    torch.testing.assert_close(built(z).flatten(1), expected)


@pytest.mark.parametrize(("state_shape", "options"), LAYERS)
def test_jacobians_stay_within_the_bound_and_the_bound_near_one(state_shape, options):
    limit = 0.25 if options.get("activation") == "sigmoid" else 1.0
    for dtype, above in ((DOUBLE, 1e-10), (torch.float32, 1e-5)):
        built = layer(state_shape, dtype, **options)
        bound = built.lipschitz_bound()
        assert limit * (1 - above) <= bound <= limit * (1 + above)
        largest = torch.linalg.matrix_norm(jacobians(built, points(built, 50, dtype)).double(), 2)
        rounding = 1e-12 if dtype == DOUBLE else 1e-5
        assert largest.max() <= bound * (1 + rounding)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), features=st.integers(1, 6))
def test_no_slopes_between_zero_and_one_exceed_the_bound(seed, n, features):
    built = layer((n,), seed=seed, features=features)
    with torch.no_grad():
        built.matrix.gain.mul_(5)
    A, B = factors(built)
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.rand(20, features, 1, dtype=DOUBLE, generator=generator)
    slopes[10:] = slopes[10:].round()
    norms = torch.linalg.matrix_norm(2 * A.T @ (slopes * B), 2)
    assert norms.max() <= built.lipschitz_bound() * (1 + 1e-12)


def test_the_bound_is_reached():
    """For slopes of one, A = B = √½ I gives the identity."""
    built = layer((3,), activation="leaky_relu")
    tangent = math.tan(math.pi / 8)
    with torch.no_grad():
        # (1 − s)/(1 + s) = √½ with s = v², so that v = tan(π/8), and B = −2v/(1 + v²) I.
        built.matrix.weight.copy_(torch.cat([torch.zeros(3, 3), tangent * torch.eye(3)]))
        norm = float(built.matrix.weight.norm())
        built.matrix.gain.fill_(128 * math.atanh(norm / 128))
        built.bias.fill_(1e3)
        built.log_scale.zero_()
    jacobian = jacobians(built, points(built, 1))[0]
    torch.testing.assert_close(jacobian, -torch.eye(3, dtype=DOUBLE))
    assert built.lipschitz_bound() >= 1 - 1e-15


@pytest.mark.parametrize("state_shape", [(4,), (2, 4, 3)])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e20, -1e20, 1e-20, 1e-40])
def test_weights_of_any_size_have_finite_states_gradients_and_a_bound(state_shape, value):
    built = layer(state_shape, torch.float32)
    for parameter in built.parameters():
        torch.nn.init.constant_(parameter, value)
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


@pytest.mark.parametrize("state_shape", [(4,), (2, 3, 3)])
def test_the_layer_has_its_gradient(state_shape):
    built = layer(state_shape, activation="tanh")
    parameters = dict(built.named_parameters())

    def call(z: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(built, dict(zip(parameters, values, strict=True)), (z,))

    z = points(built, 2).requires_grad_()
    assert torch.autograd.gradcheck(call, (z, *parameters.values()))


def test_edits_of_the_data_are_seen():
    built = layer((4,)).eval()
    z = points(built, 2)
    before = built(z)
    built.matrix.gain.data.fill_(100.0)
    assert (built(z) - before).abs().max() > 1e-3
    for name, parameter in built.named_parameters():
        kept = parameter.detach().clone()
        parameter.data.fill_(math.inf)
        with pytest.raises(
            stabnet.InvalidInputError, match=f"{name} of Sandwich holds NaN or infinite"
        ):
            built.lipschitz_bound()
        assert [g.status for g in built.guarantees()] == ["by construction", "falsified"]
        parameter.data.copy_(kept)
    assert [g.status for g in built.guarantees()] == ["by construction", "verified"]


def test_the_bound_is_of_both_matrices_as_they_are_computed(monkeypatch):
    for state_shape in ((4,), (2, 4, 3)):
        built = layer(state_shape)
        matrices = built.matrix().detach()
        monkeypatch.setattr(built.matrix, "forward", lambda Q=matrices: 3 * Q)
        assert built.lipschitz_bound() == pytest.approx(9, abs=1e-8)
        assert built.lipschitz_bound() >= 9 * (1 - 1e-15)


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


def test_what_cannot_work_is_refused_with_the_reason():
    refusals = [
        ((4,), {"activation": "maxmin"}, "maxmin.*not monotone"),
        ((4,), {"activation": "gelu"}, "gelu.*slopes go from"),
        ((4,), {"features": 0}, "features=0"),
        ((2, 4, 3), {"kernel_size": 4}, "kernel_size=4 is larger than the images"),
        ((2, 4), {}, r"vectors \(n,\) or images"),
    ]
    for state_shape, options, words in refusals:
        with pytest.raises(stabnet.InvalidOptionError, match=words):
            Sandwich(state_shape, **options)
    with pytest.raises(stabnet.InvalidInputError, match="the block takes"):
        layer((4,))(torch.zeros(2, 5))


def test_the_layer_is_built_by_name_from_lists():
    built = stabnet.build("sandwich", kind="block", state_shape=[2, 4, 4], features=3)
    assert isinstance(built, Sandwich)
    assert built.out_shape == (3, 4, 4)
