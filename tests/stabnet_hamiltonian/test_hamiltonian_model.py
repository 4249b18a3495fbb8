from __future__ import annotations

import pytest
import torch

import stabnet

F64 = torch.float64


def image_net(**options):
    torch.manual_seed(0)
    chosen = {"in_shape": (1, 4, 4), "num_outputs": 3, "width": 2, "blocks": (3, 2), **options}
    return stabnet.build("hamiltonian_net", **chosen).double()


@pytest.mark.parametrize("steps", [0, 30])
def test_map_from_the_first_state_to_the_last_is_symplectic(steps):
    net = image_net(step_size=0.5)
    x = torch.rand(4, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    x = x[:1]
    states = net.solve(x)
    _, *stages = net.dynamics.stages
    first = states.stages[0].state

    def through(z):
        for stage in stages:
            z = stage(z)
        return z

    n = first.numel()
    m = torch.func.jacrev(through)(first).reshape(n, n)
    eye, zero = torch.eye(n // 2, dtype=F64), torch.zeros(n // 2, n // 2, dtype=F64)
    j = torch.cat([torch.cat([zero, eye], 1), torch.cat([-eye, zero], 1)])
    size = torch.linalg.matrix_norm(m, 2)
    assert torch.linalg.matrix_norm(m.T @ j @ m - j, 2) <= 1e-12 * size**2
    assert size > 1


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_features_are_recovered_from_the_last_state(channels):
    net = image_net(in_shape=(channels, 4, 4), width=4, step_size=0.5)
    x = torch.rand(3, channels, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    state = net.solve(x).state
    assert not torch.allclose(state.flatten(1)[:, : x[0].numel()], x.flatten(1), atol=0.1)
    torch.testing.assert_close(net.dynamics.inverse(state), net.features(x), rtol=0, atol=1e-13)


def test_states_begin_at_the_features_of_a_backbone():
    net = image_net(backbone={"name": "linear", "width": 5}, width=None, blocks=2)
    x = torch.rand(3, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    u = net.features(x)
    state = net.solve(x).stages[0].state
    assert state.shape == (3, 6)
    torch.testing.assert_close(state[:, [0, 1, 2, 3, 4]], u)
    net(x).square().sum().backward()
    assert all(p.grad.any() for p in net.backbone.parameters())
    with pytest.raises(stabnet.InvalidOptionError, match=r"features of shape \(5,\) have only one"):
        image_net(backbone={"name": "linear", "width": 5})


def test_blocks_speak_for_their_fields_whose_energy_a_step_does_not_keep():
    guarantees = image_net().guarantees()
    assert all("energy" not in g.claim for g in guarantees)
    blocks = [g.part for g in guarantees if "symplectic" in g.claim]
    assert blocks == [
        *(f"dynamics.stages.1.blocks.{i}" for i in range(3)),
        *(f"dynamics.stages.3.blocks.{i}" for i in range(2)),
    ]


def test_gradients_equal_those_of_stored_activations():
    x = torch.rand(5, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = []
    for stored in (False, True):
        net = image_net(stored=stored)
        net(x).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_training_lowers_the_loss_on_points_that_no_line_separates():
    torch.manual_seed(0)
    net = stabnet.build(
        "hamiltonian_net", in_shape=(2,), num_outputs=2, width=4, blocks=8, step_size=0.5
    )
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(128, 2, generator=generator)
    y = (x.square().sum(1) > 3).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert float((net(x).argmax(1) == y).float().mean()) >= 0.95


def test_model_is_rebuilt_from_its_description(tmp_path):
    net = image_net(scheme="leapfrog", checkpoint_every=2)
    x = torch.rand(2, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    stabnet.save(net, tmp_path / "net")
    assert torch.equal(stabnet.load(tmp_path / "net")(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (2,), "blocks": (2, 2)}, "only one"),
        ({"blocks": ()}, "at least one"),
        ({"blocks": (2, 0)}, "at least 1"),
        ({"blocks": 2.5}, r"such as \[2, 30\]"),
        ({"blocks": "(8, 8)"}, r"such as \[2, 30\]"),
        ({"blocks": (1, 1, 1, 1)}, "even height"),
        ({"width": 3}, "even"),
        ({"vector_field": "hamiltonian_field"}, "separable|velocity"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        image_net(**options)
