"""The data-controlled field: its guarantee, and the gain of its simplex form."""

from __future__ import annotations

import math

import pytest
import torch
from stabnet_lyapunov import DataControlledField, SupervisedPotential, hypercube_size, least_gain

from stabnet import InvalidOptionError
from stabnet.interfaces import Context

CORNER = 15.0


@pytest.mark.parametrize(("rate", "classes"), [(5.0, 2), (5.0, 10), (1.0, 3)])
def test_with_the_least_gain_the_right_choice_just_satisfies_the_condition_in_the_cube(
    rate, classes
):
    size, gain = hypercube_size(rate, classes), least_gain(rate, classes, CORNER)
    generator = torch.Generator().manual_seed(0)
    z = size * (2 * torch.rand(20000, classes, generator=generator, dtype=torch.float64) - 1)
    # The hardest states, all wrong classes alike, on a line from corner to corner.
    line = torch.linspace(-size, size, 2001, dtype=torch.float64)
    z[:2001], z[:2001, 0] = line[:, None], -line
    label = torch.zeros(len(z), dtype=torch.int64)
    corner = torch.full((classes,), -CORNER, dtype=torch.float64)
    corner[0] = CORNER
    potential = SupervisedPotential((classes,), truncation=0.0)
    velocity = (rate * gain / classes) * (corner - z)
    V, change = potential.value_and_rate(z, velocity, Context(label=label))
    excess = change + rate * V
    assert -1e-3 < excess.max() <= 1e-9


def test_the_least_gain_is_finite_for_any_rate_and_needs_corners_beyond_the_cube():
    assert 0 < least_gain(1400.0, 3, 1000.0) < math.inf
    with pytest.raises(InvalidOptionError, match="greater corner"):
        least_gain(40.0, 10, CORNER)


def test_simplex_fields_point_into_the_cube_on_its_faces_and_only_they_say_so():
    torch.manual_seed(0)
    field = DataControlledField((3,), (16,))
    u, z = torch.randn(5, 16), CORNER * (2 * torch.rand(1, 200, 3) - 1)
    z[..., 0] = CORNER
    assert (field(0.0, z, u)[..., 0] <= 0).all()
    assert (field(0.0, -z, u)[..., 0] >= 0).all()
    (guarantee,) = field.guarantees()
    assert guarantee.status == "by construction"
    assert not DataControlledField((3,), (16,), form="direction").guarantees()
