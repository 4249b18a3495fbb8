"""Checks of options: what is no number, no count or no shape is refused in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stabnet
from stabnet.values import flag, number, shape, whole


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_number_is_returned_as_a_float(value):
    assert number("alpha", value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1", True, None, 1j])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(stabnet.InvalidOptionError, match="alpha"):
        number("alpha", value)


@pytest.mark.parametrize(
    ("bounds", "value"), [({"above": 0}, 0), ({"least": 0}, -1e-300), ({"below": 1}, 1.0)]
)
def test_numbers_out_of_bounds_are_refused(bounds, value):
    with pytest.raises(stabnet.InvalidOptionError, match="must be a finite number"):
        number("rate", value, **bounds)


@pytest.mark.parametrize("sizes", [(), [], "12", (3, 0), (2.0,), (True,), 3, None])
def test_what_is_no_shape_is_refused(sizes):
    with pytest.raises(stabnet.InvalidOptionError, match="state_shape"):
        shape("state_shape", sizes)


def test_lists_are_shapes_too():
    assert shape("state_shape", [3, 4]) == (3, 4)


def test_counts_and_flags_are_not_each_other():
    assert (whole("steps", 2, 1), flag("fast", True)) == (2, True)
    for check in (lambda: whole("steps", True, 0), lambda: flag("fast", 1)):
        with pytest.raises(stabnet.InvalidOptionError):
            check()
