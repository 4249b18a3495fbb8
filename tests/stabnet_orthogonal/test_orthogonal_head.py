"""The orthogonal head: what it does, measured."""

from __future__ import annotations

import copy

import pytest
import torch
from stabnet_orthogonal import OrthogonalHead

import stabnet


def _trained(head: OrthogonalHead) -> OrthogonalHead:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    z, y = torch.randn(256, 16), torch.randint(5, (256,))
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(head(z), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def test_rows_stay_orthonormal_through_training():
    head = _trained(OrthogonalHead(16, 5))
    assert head.orthogonality_error() <= 1e-5
    singular = torch.linalg.svdvals(head.linear.weight.double())
    assert (singular - 1).abs().max() <= 1e-5


def test_no_distance_grows_and_those_in_the_row_space_are_kept():
    head = _trained(OrthogonalHead(16, 5)).double()
    a, b = torch.randn(2, 500, 16, dtype=torch.float64)
    before, after = (a - b).norm(dim=1), (head(a) - head(b)).norm(dim=1)
    bound = head.lipschitz_bound()
    assert (after <= bound * before).all()
    assert after.mean() < 0.9 * before.mean()  # 11 of 16 directions are lost
    weight = head.linear.weight
    inside = a @ weight.T @ weight
    torch.testing.assert_close((head(inside) - head(inside * 0)).norm(dim=1), inside.norm(dim=1))


def test_lipschitz_bound_is_an_upper_bound_of_the_largest_singular_value():
    for seed in range(20):
        torch.manual_seed(seed)
        head = OrthogonalHead(12, 7)
        assert head.lipschitz_bound() >= torch.linalg.svdvals(head.linear.weight.double()).max()


def test_more_outputs_than_features_are_refused():
    with pytest.raises(stabnet.InvalidOptionError, match="1 <= num_outputs <= in_features"):
        OrthogonalHead(4, 5)


def test_deepcopy_and_state_dict_keep_the_weight():
    head = _trained(OrthogonalHead(16, 5))
    z = torch.randn(3, 16)
    assert torch.equal(copy.deepcopy(head)(z), head(z))
    other = OrthogonalHead(16, 5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(z), head(z))


def test_weight_that_is_not_finite_has_no_bound():
    head = OrthogonalHead(6, 3)
    with torch.no_grad():
        head.linear.parametrizations.weight.original.fill_(torch.nan)
    with pytest.raises(stabnet.StabnetError, match="not finite"):
        head.lipschitz_bound()
    assert head.guarantees()[0].status == "falsified"
