"""Stable fields and steps take single states, batches, samples, and features of one or many."""

from __future__ import annotations

import pytest
import torch
from stabnet_projection import StableStep
from torch.utils._python_dispatch import TorchDispatchMode

import stabnet

FIELDS = ["projected", "negative_definite", "hurwitz", "negative_gradient"]
all_fields = pytest.mark.parametrize("name", FIELDS)


def _field(name: str, **options):
    torch.manual_seed(0)
    return stabnet.build(name, kind="vector_field", state_shape=(3,), **options).double()


def _normal(*shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@all_fields
def test_single_states_of_an_autonomous_field_equal_the_batch(name):
    field, z = _field(name), _normal(5, 3)
    expected = field(0.0, z)
    torch.testing.assert_close(torch.stack([field(0.0, row) for row in z]), expected)
    torch.testing.assert_close(torch.vmap(lambda row: field(0.0, row))(z), expected)


@all_fields
@pytest.mark.parametrize("potential", ["icnn", "energy"])
@pytest.mark.parametrize(("states", "features"), [(4, 4), (4, 1), (1, 4), (0, 0), (1, 1)])
def test_samples_take_the_features_of_their_input(name, potential, states, features):
    options = {"feature_shape": (3,), "center": "features"}
    if name in ("projected", "negative_gradient"):
        part = {"name": "energy", "function": "double_well", "center": [1.0, 0.0, 0.0]}
        options["potential"] = part if potential == "energy" else "icnn"
    field, z, u = _field(name, **options), _normal(states, 2, 3), _normal(features, 3)
    found = field(0.0, z, u)
    batch = max(states, features) if states else 0
    assert found.shape == (batch, 2, 3)
    for i in range(2):
        expected = field(0.0, z[:, i].expand(batch, 3), u.expand(batch, 3))
        torch.testing.assert_close(found[:, i], expected)


@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@pytest.mark.parametrize("batch", [4, 7])
@torch.no_grad()
def test_samples_descend_to_the_center_of_their_input(scheme, batch):
    """Four candidates of a step beside four inputs must not be taken for each other."""
    potential = {"name": "energy", "function": "double_well", "center": [1.0, 0.0, 0.0]}
    field = _field("projected", feature_shape=(3,), center="features", potential=potential)
    step = StableStep(0.5, scheme, halvings=3)
    z, u = _normal(batch, 2, 3), 2 * _normal(batch, 3)
    found = step(field, z, (0.0, 1.0), u).states[-1]
    for i in range(2):
        torch.testing.assert_close(found[:, i], step(field, z[:, i], (0.0, 1.0), u).states[-1])


@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
def test_steps_of_a_negative_gradient_compile_though_its_rate_depends_on_parameters(scheme):
    field, z = _field("negative_gradient", potential="quadratic"), _normal(5, 3)
    step = StableStep(0.25, scheme)

    def run(z):
        return step(field, z, (0.0, 0.5)).states[-1]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), run(z))


@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e-15, 1e15])
@all_fields
def test_gradients_are_finite_at_any_distance_from_the_center(name, scheme, size):
    """In float32, which has no squares of the smallest of these."""
    field, z = _field(name).float(), (size * _normal(5, 3)).float().requires_grad_()
    end = StableStep(0.5, scheme)(field, z, (0.0, 1.0)).states[-1]
    gradients = torch.autograd.grad(end.sum(), [z, *field.parameters()], allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)


class _Transfers(TorchDispatchMode):
    """Counts numbers that are read from tensors, and tensors that are made of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += operator in (aten._local_scalar_dense.default, aten.lift_fresh.default)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheme", ["scaled", "shortened"])
@pytest.mark.parametrize("potential", ["icnn", "quadratic", "energy"])
@all_fields
def test_more_steps_move_no_more_numbers_between_host_and_device(name, potential, scheme):
    options = {}
    if name in ("projected", "negative_gradient"):
        energy = {"name": "energy", "function": "quartic"}
        options["potential"] = energy if potential == "energy" else potential
    field, z = _field(name, **options), _normal(5, 3)
    counts = []
    for end in (0.25, 1.0):
        with _Transfers() as transfers:
            StableStep(0.25, scheme)(field, z, (0.0, end))
        counts.append(transfers.count)
    assert counts[0] == counts[1] <= 1
