from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stabnet_adversarial import paper_steps

import stabnet

RADII = st.floats(min_value=1e-9, max_value=1.0)


@pytest.mark.parametrize(("pixels", "steps"), [(2, 2), (4, 5), (6, 7), (8, 10), (16, 20), (20, 24)])
def test_step_counts_are_those_of_the_paper(pixels: int, steps: int) -> None:
    assert paper_steps(pixels / 255) == steps


def test_step_count_is_exact_at_every_whole_grey_level() -> None:
    for pixels in range(1, 256):
        exact = min(pixels + 4, 5 * pixels // 4)  # in whole numbers, free of rounding
        assert paper_steps(pixels / 255) == exact, pixels


@given(RADII, RADII)
def test_step_count_never_falls_as_the_radius_grows(a: float, b: float) -> None:
    assert 1 <= paper_steps(min(a, b)) <= paper_steps(max(a, b))


@pytest.mark.parametrize("eps", [0.0, -0.1, 8.0, math.nan, math.inf])
def test_radius_outside_the_unit_interval_is_refused(eps: float) -> None:
    with pytest.raises(stabnet.InvalidOptionError, match=r"written 8/255"):
        paper_steps(eps)
