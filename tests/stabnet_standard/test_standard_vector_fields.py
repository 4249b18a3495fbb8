from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import stabnet

CASES = [
    ("mlp", (3,), (4,), {"hidden": (5,)}),
    ("mlp", (2, 3), (4, 2), {"hidden": (5, 4), "activation": "softplus"}),
    ("mlp", (3,), None, {"hidden": ()}),
    ("conv", (2, 3, 4), (3, 3, 4), {"channels": (3,)}),
    ("conv", (2, 3, 4), (5,), {"channels": (3, 2), "activation": "silu"}),
    ("conv", (2, 3, 4), (), {"channels": (), "kernel_size": 1}),
]
FIELDS = pytest.mark.parametrize(("name", "state_shape", "feature_shape", "options"), CASES)


def field(name, state_shape, feature_shape, **options):
    torch.manual_seed(0)
    return stabnet.build(
        name,
        kind="vector_field",
        state_shape=state_shape,
        feature_shape=feature_shape,
        **options,
    ).double()


def random(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def features(feature_shape, batch):
    return random(batch, *feature_shape) if feature_shape else None


@FIELDS
@pytest.mark.parametrize("time_dependent", [False, True])
def test_gradients_are_exact(name, state_shape, feature_shape, options, time_dependent):
    part = field(name, state_shape, feature_shape, time_dependent=time_dependent, **options)
    z, u = random(2, *state_shape).requires_grad_(), features(feature_shape, 2)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=time_dependent)
    inputs = [t, z] + ([] if u is None else [u.requires_grad_()])
    assert gradcheck(part, inputs)
    names, parameters = zip(*part.named_parameters(), strict=True)

    def of_parameters(*values):
        swapped = dict(zip(names, values, strict=True))
        return torch.func.functional_call(part, swapped, (t.detach(), z.detach(), u))

    assert gradcheck(of_parameters, parameters)


@FIELDS
def test_samples_give_what_a_loop_over_them_gives(name, state_shape, feature_shape, options):
    part = field(name, state_shape, feature_shape, time_dependent=True, **options)
    u = features(feature_shape, 3)
    z = random(3, 4, *state_shape)
    looped = torch.stack([part(0.5, z[:, j], u) for j in range(4)], 1)
    torch.testing.assert_close(part(0.5, z, u), looped)
    if u is not None:
        shared = part(0.5, z[:1], u)
        torch.testing.assert_close(shared, part(0.5, z[:1].expand(3, 4, *state_shape), u))


@pytest.mark.parametrize(
    ("name", "state_shape", "feature_shape"),
    [("mlp", (3,), (4,)), ("conv", (2, 3, 4), (3, 3, 4)), ("conv", (2, 3, 4), (5,))],
)
def test_features_are_not_expanded_over_samples(name, state_shape, feature_shape):
    part = field(name, state_shape, feature_shape)
    rows = []
    part.drive.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    part(0.0, random(1, 7, *state_shape), features(feature_shape, 3))
    assert rows == [3]


@FIELDS
def test_every_argument_matters(name, state_shape, feature_shape, options):
    part = field(name, state_shape, feature_shape, time_dependent=True, **options)
    z, u = random(2, *state_shape), features(feature_shape, 2)
    value = part(0.0, z, u)
    assert not torch.allclose(value, part(1.0, z, u))
    assert not torch.allclose(value, part(0.0, z + 1, u))
    if u is not None:
        assert not torch.allclose(value, part(0.0, z, u + 1))


@FIELDS
def test_time_is_left_out_unless_asked_for(name, state_shape, feature_shape, options):
    part = field(name, state_shape, feature_shape, **options)
    z, u = random(2, *state_shape), features(feature_shape, 2)
    assert torch.equal(part(0.0, z, u), part(1.0, z, u))


@pytest.mark.parametrize(("name", "state_shape"), [("mlp", (3,)), ("conv", (2, 3, 4))])
@pytest.mark.parametrize("feature_shape", [None, ()])
def test_an_autonomous_field_ignores_features(name, state_shape, feature_shape):
    part = field(name, state_shape, feature_shape)
    assert part.feature_shape == ()
    z = random(2, *state_shape)
    assert torch.equal(part(0.0, z), part(0.0, z, random(2, 9)))


def test_a_field_without_hidden_layers_is_affine():
    part = field("mlp", (3,), (4,), hidden=())
    z, u = random(2, 3), random(2, 4)
    expected = z @ part.first.weight.T + part.first.bias + u @ part.drive.weight.T
    torch.testing.assert_close(part(0.0, z, u), expected)


def test_a_scalar_time_of_double_precision_keeps_the_precision_of_the_state():
    part = field("mlp", (3,), None, time_dependent=True).float()
    t = torch.tensor(0.5, dtype=torch.float64)
    assert part(t, torch.zeros(2, 3)).dtype == torch.float32


def test_the_default_activation_is_smooth():
    part = field("mlp", (1,), None)
    z = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
    third = torch.diff(part(0.0, z)[:, 0], n=3)
    assert third.abs().max() < 1e-3  # of a kink it would be of the order of the grid, 0.04


@pytest.mark.parametrize(
    ("z", "u", "message"),
    [
        (random(2, 4), random(2, 4), r"states \(batch, 3\) or"),
        (random(3), random(2, 4), r"states \(batch, 3\) or"),
        (random(2, 3), None, "driven by features"),
        (random(2, 3), (random(2, 4),), "got tuple"),
        (random(2, 3), random(2, 5), r"\(batch, 4\); got \(2, 5\)"),
    ],
)
def test_arguments_of_another_shape_are_refused(z, u, message):
    with pytest.raises(stabnet.InvalidInputError, match=message):
        field("mlp", (3,), (4,))(0.0, z, u)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("conv", {"state_shape": (3,)}, "channels, height, width"),
        ("conv", {"kernel_size": 2}, "odd"),
        ("conv", {"feature_shape": (2, 5, 5)}, "same grid"),
        ("mlp", {"activation": "swish"}, "activation is one of"),
        ("mlp", {"hidden": (0,)}, "positive whole number"),
        ("mlp", {"state_shape": ()}, "shape of one sample"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    options = {"state_shape": (2, 3, 4), "feature_shape": None, **options}
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        field(name, **options)
