"""The scale block: a clamp whose factor can come back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stabnet_gradient_flow import Scale
from torch.func import functional_call, stack_module_state, vmap

import stabnet

NUMBERS = st.floats(-1e6, 1e6, width=32)
BOUNDS = st.floats(1e-6, 1e6)


def scale(factor, largest, dtype=torch.float32):
    """Return a block for states (3,) whose factor was moved."""
    block = Scale((3,), largest=largest).to(dtype)
    with torch.no_grad():
        block.factor.fill_(factor)
    return block


@given(NUMBERS, BOUNDS)
def test_the_values_are_those_of_the_clamp_and_the_bound_is_the_factor(factor, largest):
    block = scale(factor, largest)
    z = torch.tensor([[1.0, 0.0, -2.0]])
    clamped = torch.tensor(factor).clamp(-block.largest, block.largest)
    assert torch.equal(block(z), clamped * z)
    assert block.lipschitz_bound() == abs(clamped.double().item())
    assert block.lipschitz_bound() <= largest


def test_the_bound_sees_edits_through_data():
    block = Scale((3,), largest=2.0)
    assert block.lipschitz_bound() == 1
    block.factor.data.fill_(-1.5)
    assert block.lipschitz_bound() == 1.5
    block.factor.data.fill_(-7.0)
    assert block.lipschitz_bound() == 2


@pytest.mark.parametrize("factor", [-0.9, 0.0, 0.3, 1.0])
def test_gradients_within_the_bound_are_those_of_a_product(factor):
    block = scale(factor, 1.5, torch.float64)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def call(c, z):
        return functional_call(block, {"factor": c}, (z,))

    c = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (c, z))
    assert torch.autograd.gradgradcheck(call, (c, z))


@pytest.mark.parametrize("factor", [-1e20, -3.0, 3.0, 1e20])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_beyond_the_bound_only_gradients_that_lead_back_pass(factor, size):
    for inwards in (True, False):
        block = scale(factor, 2.0)
        # A step against the gradient: it leads back if the gradient has the factor's sign.
        slope = math.copysign(size, factor) * (1 if inwards else -1)
        (slope * block(torch.tensor([[1.0, 0.0, 0.0]]))).sum().backward()
        expected = torch.tensor(slope) if inwards else torch.zeros(())
        assert torch.equal(block.factor.grad, expected)


@pytest.mark.parametrize("start", [-40.0, 40.0])
@pytest.mark.parametrize("wanted", [-9.0, 0.7, 9.0])
def test_adam_finds_the_best_factor_within_the_bound_from_wherever_it_starts(start, wanted):
    block = scale(start, 1.0, torch.float64)
    z = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(block.parameters(), lr=0.5)
    for k in range(400):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - k / 400)
        optimizer.zero_grad()
        (block(z) - wanted * z).square().mean().backward()
        optimizer.step()
    best = min(max(wanted, -1.0), 1.0)
    assert block(torch.ones(1, 3, dtype=torch.float64))[0, 0].item() == pytest.approx(
        best, abs=0.01
    )


def test_blocks_of_different_bounds_stack_and_differentiate_as_they_do_alone():
    blocks = [scale(factor, largest) for factor, largest in ((0.4, 1.0), (3.0, 2.0), (-3.0, 0.5))]
    weights, buffers = stack_module_state(blocks)
    z = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    together = vmap(lambda w, b, z: functional_call(blocks[0], (w, b), (z,)))(weights, buffers, z)
    together.sum().backward()
    for k, block in enumerate(blocks):
        alone = block(z[k])
        alone.sum().backward()
        assert torch.equal(together[k], alone)
        assert torch.equal(weights["factor"].grad[k], block.factor.grad)


@pytest.mark.filterwarnings("ignore:.*jit.script.*deprecated:FutureWarning")
def test_it_compiles_whole_with_its_gradient_and_exports():
    block, z = scale(3.0, 2.0), torch.randn(4, 3)
    block(z).square().sum().backward()
    expected, block.factor.grad = block.factor.grad, None
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compiled(z).square().sum().backward()
    torch.testing.assert_close(block.factor.grad, expected)
    exported = torch.export.export(block.eval(), (z,)).module()
    assert torch.equal(exported(z), block(z))


def test_a_factor_that_is_no_number_has_no_bound():
    with pytest.raises(stabnet.InvalidInputError, match="factor of a scale block is nan"):
        scale(math.nan, 1.0).lipschitz_bound()


def test_the_guarantee_names_the_bound_and_holds_by_construction():
    (guarantee,) = scale(5.0, 0.25).guarantees()
    assert guarantee.status == "by construction"
    assert "0.25" in guarantee.claim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest": 0.0}, "largest=0.0"),
        ({"largest": -1.0}, "largest=-1.0"),
        ({"largest": math.inf}, "largest=inf"),
        ({"largest": 1.0, "initial": -1.5}, "initial=-1.5 is beyond largest=1"),
        ({"largest": 1.0, "initial": math.nan}, "initial=nan"),
        ({"largest": 1.0, "state_shape": ()}, "state_shape"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        stabnet.build("scale", kind="block", **({"state_shape": (3,)} | options))


def test_states_of_another_shape_are_refused():
    with pytest.raises(stabnet.InvalidInputError, match=r"\(batch, 3\)"):
        Scale((3,), largest=1.0)(torch.zeros(2, 4))


@pytest.mark.parametrize(("largest", "first"), [(0.1, 0.1), (1.0, 1.0), (7.0, 1.0)])
def test_the_factor_starts_at_one_or_at_the_bound(largest, first):
    block = Scale((2,), largest=largest)
    assert block.lipschitz_bound() == pytest.approx(first, rel=1e-6)
