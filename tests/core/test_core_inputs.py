"""Checks of what fields and blocks are given."""

from __future__ import annotations

import pytest
import torch

from stabnet import InvalidInputError
from stabnet.interfaces import check_block_state, check_field_state, driving_features


@pytest.mark.parametrize("shape", [(2, 3), (5, 2, 3), (5, 7, 2, 3)])
def test_a_field_takes_one_state_a_batch_and_samples(shape):
    check_field_state(torch.zeros(shape), (2, 3))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (5, 3, 2), (1, 5, 7, 2, 3)])
def test_a_field_takes_no_other_states(shape):
    with pytest.raises(InvalidInputError, match=r"expected states \(batch, 2, 3\) or"):
        check_field_state(torch.zeros(shape), (2, 3))


@pytest.mark.parametrize("shape", [(2, 3), (5, 7, 2, 3), (5, 3, 2)])
def test_a_block_takes_a_batch_and_nothing_else(shape):
    check_block_state(torch.zeros(5, 2, 3), [2, 3])
    with pytest.raises(InvalidInputError, match=r"the block takes \(batch, 2, 3\)"):
        check_block_state(torch.zeros(shape), [2, 3])


@pytest.mark.parametrize("u", [None, (torch.zeros(5, 4),), torch.zeros(5, 3), torch.zeros(1, 5, 4)])
def test_features_drive_a_field_that_was_built_for_them(u):
    assert driving_features(u, ()) is None
    fitting = torch.zeros(5, 4)
    assert driving_features(fitting, [4]) is fitting
    with pytest.raises(InvalidInputError, match=r"the field takes features \(batch, 4\)"):
        driving_features(u, [4])
