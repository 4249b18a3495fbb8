"""Forward-mode products through normalization layers, and their gradients."""

from __future__ import annotations

import pytest
import torch
from stabnet_lyapunov.forward_mode import jvp
from torch import nn

LAYERS = {
    "batch": nn.BatchNorm2d(3),
    "batch, plain": nn.BatchNorm2d(3, affine=False, eps=0.1),
    "batch, in evaluation": nn.BatchNorm2d(3).eval(),
    "batch of vectors": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(24)),
    "instance": nn.InstanceNorm2d(3, affine=True),
    "instance, recorded": nn.InstanceNorm2d(3, track_running_stats=True).eval(),
    "layer": nn.LayerNorm((4, 2)),
    "layer, plain": nn.LayerNorm(2, elementwise_affine=False, eps=0.01),
    "group": nn.GroupNorm(3, 3),
}


def _case(name):
    torch.manual_seed(0)
    layer = LAYERS[name].double()
    for p in layer.parameters():
        nn.init.normal_(p)
    for m in layer.modules():
        m.track_running_stats = False  # running statistics are for whoever calls to freeze
    z, v = torch.randn(2, 4, 3, 4, 2, dtype=torch.float64)
    return layer, z, v


@pytest.mark.parametrize("name", LAYERS)
def test_value_and_product_are_those_of_torch(name):
    layer, z, v = _case(name)
    value, rate = jvp(layer, z, v)
    expected, expected_rate = torch.func.jvp(layer, (z,), (v,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(rate, expected_rate)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_value_and_product_pass_gradcheck(name):
    layer, z, v = _case(name)
    leaves = [t.detach().clone().requires_grad_() for t in (z, v, *layer.parameters())]
    names = [n for n, _ in layer.named_parameters()]

    def product(z, v, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return jvp(lambda z: torch.func.functional_call(layer, named, (z,)).sin(), z, v)

    assert torch.autograd.gradcheck(product, leaves)


@pytest.mark.parametrize("name", ["batch", "layer"])
def test_half_precision_is_normalized_in_single(name):
    layer, z, v = _case(name)
    value, rate = jvp(lambda z: layer(z.bfloat16()), z.float() + 30, v.float())
    expected, expected_rate = jvp(layer, (z.float() + 30).bfloat16().double(), v)
    assert value.dtype == rate.dtype == torch.bfloat16
    assert (value - expected).abs().max() < 0.02 * expected.abs().max()
    assert (rate - expected_rate).abs().max() < 0.02 * expected_rate.abs().max()


def test_expanded_tensors_are_taken():
    z, v = torch.ones(1, 2).expand(3, 2), torch.tensor(2.0).expand(3, 2)
    value, rate = jvp(lambda z: z.square().sum(1), z, v)
    torch.testing.assert_close(value, torch.full((3,), 2.0))
    torch.testing.assert_close(rate, torch.full((3,), 8.0))
