"""What sodef_stability counts, and what the model claims."""

from __future__ import annotations

import stabnet_projection as projection
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_projection.stability import dominant

import stabnet


def model(weight=None):
    torch.manual_seed(0)
    network = stabnet.build(
        "sodef",
        in_shape=(1, 8, 8),
        num_outputs=3,
        backbone={"name": "convnet", "channels": [4], "width": 6},
        width=4,
        time=1.0,
    )
    if weight is not None:
        # F(z) = −sin(Wz + b) with b = −W z₀ for the one start z₀ that all inputs then share.
        linear = network.dynamics.vector_field.linear
        with torch.no_grad():
            linear.weight.copy_(torch.as_tensor(weight))
            start = network.eval().features(torch.zeros(1, 1, 8, 8))[0]
            linear.bias.copy_(-linear.weight @ start)
    return network


def test_a_stable_equilibrium_at_the_start_is_counted_as_one():
    weight = torch.eye(4) + 0.1
    found = projection.sodef_stability(model(weight), torch.zeros(3, 1, 8, 8), tolerance=1e-5)
    assert (found.samples, found.still, found.negative, found.dominant) == (3, 1, 1, 1)
    assert (found.hurwitz, found.stable) == (1, 1)
    assert abs(found.largest_abscissa + 1) < 1e-6  # the eigenvalues of −W are −1, −1, −1, −1.4
    assert found.largest_speed < 1e-5


def test_an_unstable_equilibrium_is_no_stable_one():
    weight = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5]))
    found = projection.sodef_stability(model(weight), torch.zeros(3, 1, 8, 8), tolerance=1e-5)
    assert (found.still, found.negative, found.dominant, found.hurwitz) == (1, 0, 0, 0)
    assert found.stable == 0
    assert abs(found.largest_abscissa - 0.5) < 1e-6


def test_a_hurwitz_matrix_need_not_be_dominant():
    weight = torch.eye(4)
    weight[0, 1], weight[1, 0] = 5.0, -5.0
    found = projection.sodef_stability(model(weight), torch.zeros(2, 1, 8, 8), tolerance=1e-5)
    assert (found.negative, found.dominant, found.hurwitz) == (1, 0, 1)


def test_a_slow_start_is_not_called_near_an_equilibrium():
    """The equilibrium is more than 50 norms of the start away, by Newton's step."""
    network = model(1e-4 * torch.eye(4))
    linear = network.dynamics.vector_field.linear
    with torch.no_grad():
        linear.bias += 5e-3
    x = torch.zeros(2, 1, 8, 8)
    found = projection.sodef_stability(network, x)
    assert (found.still, found.hurwitz, found.stable) == (1, 1, 1)
    with torch.no_grad():
        start, velocity = network.features(x), network.velocity(0.0, network.features(x))
    assert (velocity.norm(dim=1) / 1e-4 > 50 * start.norm(dim=1)).all()
    statement = found.guarantee()
    assert "near" not in statement.claim
    assert "only the speed zero" in statement.claim


def test_counting_leaves_modes_and_weights_alone():
    network = model().train()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    projection.sodef_stability(network, torch.rand(2, 1, 8, 8))
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert network.dynamics.vector_field.linear.weight.dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from(["rows", "columns"]))
def test_dominance_implies_eigenvalues_in_the_left_half_plane(seed, size, by):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(20, size, size, generator=generator, dtype=torch.float64)
    off = (matrix - torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))).abs()
    margin = torch.rand(20, size, generator=generator, dtype=torch.float64) - 0.3
    diagonal = -(off.sum(-1 if by == "rows" else -2) + margin)
    matrix = matrix - torch.diag_embed(matrix.diagonal(dim1=1, dim2=2) - diagonal)
    which = dominant(matrix, by)
    assert torch.equal(which, (margin > 0).all(1))
    assert (torch.linalg.eigvals(matrix[which]).real < 0).all()


def test_the_count_is_stated_as_sampled_and_not_of_perturbed_inputs():
    statement = projection.sodef_stability(model(), torch.rand(2, 1, 8, 8)).guarantee()
    assert statement.status == "sampled"
    assert "nothing is said of other inputs, or of robustness" in statement.claim


def test_the_model_claims_no_robustness_and_no_stability_without_conditions():
    statements = model().guarantees()
    mine = [g for g in statements if g.source.startswith("Kang") or "NOT" in g.claim]
    assert len(mine) == 2
    assert all(g.status == "conditional" for g in mine)
    assert mine[1].claim == "NOT guaranteed: robustness to perturbations of the input x"
