"""Operators: adjoints are exact, norms are bounded, options out of range are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import Operator, operator

from stabnet import InvalidInputError, InvalidOptionError


def matrix(op: Operator, weight: torch.Tensor) -> torch.Tensor:
    """Return the explicit matrix of an operator, by applying it to every unit vector."""
    size = torch.Size(op.state_shape).numel()
    units = torch.eye(size, dtype=weight.dtype).view(size, *op.state_shape)
    return op(weight, units).flatten(1).T


@st.composite
def operators(draw: st.DrawFn) -> Operator:
    hidden = draw(st.integers(1, 4))
    if draw(st.booleans()):
        return operator((draw(st.integers(1, 7)),), hidden)
    kernel_size = draw(st.sampled_from([1, 3, 5, 7]))
    padding_mode = draw(st.sampled_from(["zeros", "circular"]))
    least = kernel_size if padding_mode == "circular" else 1
    image = [draw(st.integers(least, least + 4)) for _ in range(2)]
    return operator((draw(st.integers(1, 3)), *image), hidden, kernel_size, padding_mode)


@settings(max_examples=60, deadline=None)
@given(op=operators(), seed=st.integers(0, 2**20))
def test_the_adjoint_is_exact(op: Operator, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(op.weight_shape, generator=generator, dtype=torch.float64)
    z = torch.randn(2, *op.state_shape, generator=generator, dtype=torch.float64)
    y = torch.randn(2, *op.hidden_shape, generator=generator, dtype=torch.float64)
    image, back = op(weight, z), op.adjoint(weight, y)
    assert image.shape == y.shape
    assert back.shape == z.shape
    torch.testing.assert_close((image * y).sum(), (z * back).sum(), rtol=1e-11, atol=1e-11)
    explicit = matrix(op, weight)
    torch.testing.assert_close((y.flatten(1) @ explicit).view_as(z), back)


@settings(max_examples=25, deadline=None)
@given(op=operators(), seed=st.integers(0, 2**20))
def test_the_bound_is_at_least_the_norm(op: Operator, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(op.weight_shape, generator=generator)
    norm = float(torch.linalg.matrix_norm(matrix(op, weight.double()), 2))
    bound = op.norm_bound(weight)
    assert norm * (1 - 1e-12) <= bound
    if len(op.state_shape) == 1 or op.padding_mode == "circular":
        assert bound <= norm * (1 + 1e-9)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_a_convolution_is_that_of_torch(padding_mode: str, kernel_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    op = operator((2, 8, 9), 3, kernel_size, padding_mode)
    layer = torch.nn.Conv2d(
        2, 3, kernel_size, padding=kernel_size // 2, padding_mode=padding_mode
    ).double()
    z = torch.randn(2, 2, 8, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(op(layer.weight, z, layer.bias), layer(z))


def test_a_matrix_is_the_linear_layer_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    op = operator((4,), 6)
    weight, bias = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
    z = torch.randn(3, 4, generator=generator)
    assert torch.equal(op(weight, z, bias), F.linear(z, weight, bias))


@pytest.mark.parametrize("shape", [(5,), (3, 6, 6)])
def test_initial_weights_have_a_norm_of_about_one(shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        op = operator(shape)
        assert 0.5 < op.norm_bound(op.initial_weight()) < 2.5


def test_features_are_scaled_by_rows_of_the_weight_or_along_hidden_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    for op in (operator((4,), 3), operator((2, 5, 5), 3)):
        weight = torch.randn(op.weight_shape, generator=generator, dtype=torch.float64)
        z = torch.randn(2, *op.state_shape, generator=generator, dtype=torch.float64)
        scale = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
        torch.testing.assert_close(op(op.rows(scale) * weight, z), op.along(scale) * op(weight, z))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_shape": (2, 8)}, "vectors"),
        ({"state_shape": ()}, "shape"),
        ({"state_shape": (4,), "hidden": 0}, "hidden"),
        ({"state_shape": (2, 8, 8), "kernel_size": 4}, "odd"),
        ({"state_shape": (2, 8, 8), "kernel_size": 0}, "kernel_size"),
        ({"state_shape": (2, 8, 8), "padding_mode": "reflect"}, "border"),
        ({"state_shape": (2, 8, 4), "padding_mode": "circular", "kernel_size": 5}, "wraps"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        operator(**options)


def test_weights_that_are_not_finite_have_no_bound() -> None:
    for op in (operator((4,)), operator((2, 5, 5))):
        with pytest.raises(InvalidInputError):
            op.norm_bound(torch.full(op.weight_shape, torch.nan))


def test_zero_padding_is_bounded_at_frequencies_that_the_image_has_not() -> None:
    """On three pixels, a circular convolution by (-1, 1, -1) has the norm 2, a padded one more."""
    tap = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    weight = torch.outer(tap, tap)[None, None]
    circular = operator((1, 3, 3), kernel_size=3, padding_mode="circular").norm_bound(weight)
    padded = operator((1, 3, 3), kernel_size=3, padding_mode="zeros").norm_bound(weight)
    assert circular == pytest.approx(4)
    assert padded >= (1 + 2**0.5) ** 2 * (1 - 1e-12)
