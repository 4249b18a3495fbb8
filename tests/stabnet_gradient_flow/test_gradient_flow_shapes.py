"""Blocks that change the shape of a state: isometries, their inverses, and projections."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_gradient_flow import Downsample, Flatten, FreeResidual, Lift, Project

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Block, BoundsLipschitz, Invertible

ISOMETRIES = {
    "pixels": lambda: Downsample((3, 6, 4)),
    "haar": lambda: Downsample((3, 6, 4), "haar"),
    "lift image": lambda: Lift((3, 6, 4), 7),
    "lift vector": lambda: Lift((5,), 8),
    "flatten": lambda: Flatten((3, 6, 4)),
}
PROJECTIONS = {
    "project image": lambda: Project((3, 6, 4), 2),
    "project vector": lambda: Project((5,), 3),
    "downsample and project": lambda: block("downsample", (3, 6, 4), basis="haar", channels=5),
}


def block(name, state_shape, **options):
    return stabnet.build(name, kind="block", state_shape=state_shape, **options)


def states(part, batch=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *part.state_shape, generator=generator, dtype=dtype)


def matrix(part):
    """Return the matrix of a linear block, built from the images of unit vectors."""
    size = torch.Size(part.state_shape).numel()
    return part(torch.eye(size, dtype=torch.float64).view(size, *part.state_shape)).flatten(1).T


# Isometries and projections


@pytest.mark.parametrize("name", ISOMETRIES)
def test_isometry_has_orthonormal_columns(name):
    found = matrix(ISOMETRIES[name]())
    assert torch.equal(found.T @ found, torch.eye(found.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("name", ISOMETRIES)
def test_isometry_keeps_every_distance(name):
    part = ISOMETRIES[name]()
    z = states(part)
    before, after = torch.pdist(z.flatten(1)), torch.pdist(part(z).flatten(1))
    torch.testing.assert_close(after, before, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projection_has_orthonormal_rows_and_expands_no_distance(name):
    part = PROJECTIONS[name]()
    found = matrix(part)
    assert torch.equal(found @ found.T, torch.eye(found.shape[0], dtype=torch.float64))
    z = states(part)
    before, after = torch.pdist(z.flatten(1)), torch.pdist(part(z).flatten(1))
    assert (after < before).all()


@pytest.mark.parametrize("name", [*ISOMETRIES, *PROJECTIONS])
def test_bound_is_exactly_one_and_promised_by_construction(name):
    part = {**ISOMETRIES, **PROJECTIONS}[name]()
    assert isinstance(part, BoundsLipschitz)
    assert part.lipschitz_bound() == 1.0
    promised = [g for m in part.modules() if hasattr(m, "guarantees") for g in m.guarantees()]
    assert promised
    assert {g.status for g in promised} == {"by construction"}


@pytest.mark.parametrize("name", [*ISOMETRIES, *PROJECTIONS])
def test_outgoing_shape_is_the_one_announced(name):
    part = {**ISOMETRIES, **PROJECTIONS}[name]()
    assert tuple(part(states(part)).shape[1:]) == part.out_shape


# Down-sampling


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    basis=st.sampled_from(["pixels", "haar"]),
)
def test_downsampling_is_undone_by_its_inverse(channels, height, width, basis):
    part = Downsample((channels, 2 * height, 2 * width), basis)
    z = states(part)
    torch.testing.assert_close(part.inverse(part(z)), z, rtol=0, atol=1e-15 * float(z.abs().max()))
    w = part(z)
    torch.testing.assert_close(part(part.inverse(w)), w, rtol=0, atol=2e-15 * float(z.abs().max()))


def test_inverse_is_exact_where_no_sum_is_rounded():
    part = Downsample((2, 4, 6), "haar")
    z = torch.randint(-(2**20), 2**20, (3, 2, 4, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(part.inverse(part(z.double())), z.double())


def test_pixels_are_those_of_pixel_unshuffle():
    part = Downsample((2, 4, 6))
    z = states(part)
    assert torch.equal(part(z), torch.nn.functional.pixel_unshuffle(z, 2))


def test_haar_channels_are_those_of_the_formula_low_pass_first():
    part = Downsample((2, 4, 4), "haar")
    z = states(part, batch=1)
    found = part(z)[0]
    for c in range(2):
        for i in range(2):
            for j in range(2):
                p, q, r, s = z[0, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten().tolist()
                wanted = [p + q + r + s, p - q + r - s, p + q - r - s, p - q - r + s]
                for k in range(4):
                    assert float(found[2 * k + c, i, j]) == pytest.approx(wanted[k] / 2, abs=1e-14)


def test_haar_of_a_constant_image_is_low_pass_alone():
    found = Downsample((2, 4, 4), "haar")(torch.ones(1, 2, 4, 4))
    assert torch.equal(found[:, :2], torch.full((1, 2, 2, 2), 2.0))
    assert not found[:, 2:].any()


def test_only_maps_that_lose_nothing_and_reach_everything_have_an_inverse():
    assert isinstance(block("downsample", (2, 4, 4)), Invertible)
    assert isinstance(block("downsample", (2, 4, 4), channels=8), Invertible)
    assert isinstance(block("flatten", (2, 4, 4)), Invertible)
    for name, channels in (("downsample", 3), ("lift", 3), ("project", 1)):
        assert not isinstance(block(name, (2, 4, 4), channels=channels), Invertible)


def test_projected_downsampling_keeps_the_first_channels():
    whole, part = block("downsample", (3, 4, 4)), block("downsample", (3, 4, 4), channels=5)
    z = states(whole)
    assert torch.equal(part(z), whole(z)[:, :5])


@pytest.mark.parametrize(
    ("name", "state_shape", "options", "message"),
    [
        ("downsample", (1, 7, 8), {}, "even height and width; got 7 × 8"),
        ("downsample", (16,), {}, "images"),
        ("downsample", (1, 4, 4), {"basis": "wavelet"}, "'pixels' or 'haar'"),
        ("downsample", (1, 4, 4), {"channels": 5}, "exceeds the 4 channels"),
        ("downsample", (1, 4, 4), {"channels": 0}, "at least 1"),
        ("lift", (3, 4, 4), {"channels": 2}, "'project'"),
        ("lift", (3, 4), {"channels": 4}, "vectors"),
        ("lift", (3,), {"channels": 4.5}, "whole number"),
        ("project", (3, 4, 4), {"channels": 4}, "'lift'"),
        ("project", (3,), {"channels": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_explained(name, state_shape, options, message):
    with pytest.raises(InvalidOptionError, match=message):
        block(name, state_shape, **options)


@pytest.mark.parametrize("name", [*ISOMETRIES, *PROJECTIONS])
def test_states_of_another_shape_are_refused(name):
    part = {**ISOMETRIES, **PROJECTIONS}[name]()
    with pytest.raises(InvalidInputError, match="the block takes"):
        part(torch.zeros(2, 3, 8, 8))


# Vectors and images


def test_lift_appends_zeros_and_project_removes_them():
    for shape in ((3,), (3, 2, 4)):
        lift, project = Lift(shape, 5), Project((5, *shape[1:]), 3)
        z = states(lift)
        assert not lift(z)[:, 3:].any()
        assert torch.equal(project(lift(z)), z)


def test_flatten_is_undone_by_its_inverse():
    part = Flatten((2, 3, 4))
    z = states(part)
    assert part(z).shape == (4, 24)
    assert torch.equal(part.inverse(part(z)), z)


@pytest.mark.parametrize("name", [*ISOMETRIES, *PROJECTIONS])
def test_block_compiles_and_maps_over_the_batch(name):
    part = {**ISOMETRIES, **PROJECTIONS}[name]()
    assert isinstance(part, Block)
    z = states(part)
    compiled = torch.compile(part, backend="eager", fullgraph=True)
    assert torch.equal(compiled(z), part(z))
    assert torch.equal(torch.vmap(lambda one: part(one[None])[0])(z), part(z))


# The residual block that nothing constrains


@pytest.mark.parametrize("state_shape", [(5,), (2, 4, 4)])
def test_free_residual_block_is_that_of_the_formula(state_shape):
    torch.manual_seed(0)
    part = FreeResidual(state_shape, hidden=3, activation="tanh").double()
    torch.nn.init.normal_(part.bias)
    z = states(part)
    if len(state_shape) == 1:
        hidden = torch.tanh(z @ part.weight.T + part.bias)
        wanted = z + hidden @ part.outgoing
    else:
        hidden = torch.tanh(torch.conv2d(z, part.weight, part.bias, padding=1))
        flipped = part.outgoing.flip(2, 3).transpose(0, 1)
        wanted = z + torch.conv2d(hidden, flipped, padding=1)
    torch.testing.assert_close(part(z), wanted, rtol=1e-12, atol=1e-12)


def test_free_residual_block_bounds_what_it_is_also_after_an_edit_of_data():
    torch.manual_seed(0)
    part = FreeResidual((4,), activation="sigmoid").double()
    norms = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in (part.weight, part.outgoing)]
    assert part.lipschitz_bound() == pytest.approx(1 + norms[0] * norms[1] / 4, rel=1e-6)
    part.weight.data.mul_(10)
    assert part.lipschitz_bound() == pytest.approx(1 + 10 * norms[0] * norms[1] / 4, rel=1e-6)
    assert not hasattr(part, "guarantees")
