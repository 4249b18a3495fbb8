"""The piecewise field, and the networks that Lyapunov training is compared on."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torchvision
from stabnet_lyapunov import PiecewiseConvField, continuous_net, resnet18

import stabnet
from stabnet import Flow, InvalidInputError, InvalidOptionError, Stack


def _field(pieces=3, **options):
    torch.manual_seed(0)
    return PiecewiseConvField((2, 5, 4), pieces=pieces, **options).double()


def _small(**options):
    torch.manual_seed(0)
    return continuous_net(
        **{"in_shape": (1, 8, 8), "num_outputs": 3, "channels": [4, 6], "pieces": 2, **options}
    )


def test_the_field_is_its_formula():
    field, z = _field(), torch.randn(3, 2, 5, 4, dtype=torch.float64)
    conv, _, norm, conv2, _, norm2 = field.pieces[1]
    expected = 3 * norm2(conv2(norm(conv(z).relu())).relu())
    torch.testing.assert_close(field(0.5, z), expected)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7, 10])
def test_pieces_begin_at_their_start_and_the_last_one_is_closed(pieces):
    field = _field(pieces).eval()
    z = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    values = [field.scale * piece(z) for piece in field.pieces]
    step = 1 / pieces
    for k in range(pieces):
        starts = [k / pieces, k * step, sum([step] * k), 1 - (pieces - k) * step]
        for t in [*starts, *(torch.tensor(s) for s in starts), (k + 0.5) * step]:
            assert torch.equal(field(t, z), values[k]), (k, t)
        assert torch.equal(field((k + 0.999) * step, z), values[k])
    for t in (1.0, torch.tensor(1.0), 1 - 1e-9, 2.0):
        assert torch.equal(field(t, z), values[-1])
    assert torch.equal(field(-0.1, z), values[0])
    assert len({v.sum().item() for v in values}) == pieces


def test_states_with_samples_are_mapped_one_by_one():
    field = _field().eval()
    z = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64)
    expected = torch.stack([field(0.4, z[:, k]) for k in range(3)], 1)
    torch.testing.assert_close(field(0.4, z), expected)


def test_what_the_field_cannot_take_is_refused():
    with pytest.raises(InvalidOptionError, match=r"state_shape=\(channels, height, width\)"):
        PiecewiseConvField((4,))
    with pytest.raises(InvalidOptionError, match="not driven by features"):
        PiecewiseConvField((2, 4, 4), feature_shape=(2, 4, 4))
    for options in ({"pieces": 0}, {"pieces": 1.5}, {"scale": 0.0}, {"scale": float("nan")}):
        with pytest.raises(InvalidOptionError, match=next(iter(options))):
            PiecewiseConvField((2, 4, 4), **options)
    with pytest.raises(InvalidInputError, match="samples"):
        _field()(0.0, torch.zeros(2, 3, 5, 4, dtype=torch.float64))


def test_the_network_of_the_paper_has_its_number_of_parameters():
    model = continuous_net()
    assert sum(p.numel() for p in model.parameters()) == 370_650
    solution = model.solve(torch.rand(1, 3, 32, 32))
    flows = [
        s
        for s, m in zip(solution.stages, model.dynamics.stages, strict=True)
        if isinstance(m, Flow)
    ]
    assert [tuple(s.state.shape[1:]) for s in flows] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [s.nfe for s in flows] == [12, 12, 12]
    for s in flows:
        torch.testing.assert_close(s.times, torch.tensor([0, 1 / 3, 2 / 3, 1]))


def test_each_step_of_the_network_uses_its_own_piece_but_for_its_end():
    model = _small().eval()
    flow = model.dynamics.stages[1]
    used = []
    for index, piece in enumerate(flow.vector_field.pieces):
        piece.register_forward_hook(lambda *_, index=index: used.append(index))
    model(torch.rand(1, 1, 8, 8))
    # The last slope of a step is taken at the start of the next piece.
    assert used == [0, 0, 0, 1, 1, 1, 1, 1]


def test_the_network_rebuilds_from_its_description():
    integrator = {"name": "euler", "step_size": 0.5}
    built = stabnet.build(
        "continuous_net",
        in_shape=(1, 8, 8),
        num_outputs=3,
        channels=(4,),
        integrator=integrator,
        mean=[0.1],
        std=[0.3],
    ).eval()
    again = stabnet.build(built.config).eval()
    again.load_state_dict(built.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(built(x), again(x))
    assert built.run(x)[1].nfe == 3


def test_gradients_reach_every_parameter():
    model = _small().train()
    model(torch.rand(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_network_without_flows_is_refused():
    with pytest.raises(InvalidOptionError, match="at least one flow"):
        _small(channels=())


def _as_torchvision(model, source):
    """Return torchvision's state dict under the names of our model."""
    stages = itertools.product(range(1, 5), range(2))
    prefixes = {f"layer{a}.{b}.": f"dynamics.stages.{i}.body." for i, (a, b) in enumerate(stages)}
    prefixes |= {"conv1.": "backbone.net.0.", "bn1.": "backbone.net.1.", "fc.": "head."}
    renamed = {}
    for name, value in source.items():
        old = next(p for p in prefixes if name.startswith(p))
        renamed[re.sub(f"^{re.escape(old)}", prefixes[old], name)] = value
    return renamed


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_resnet18_is_torchvisions(stem):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    if stem == "cifar":
        theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = torch.nn.Identity()
    ours = resnet18(in_shape=(3, 32, 27), num_outputs=7, stem=stem)
    ours.load_state_dict(_as_torchvision(ours, theirs.state_dict()))
    count = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert count[0] == count[1]
    x = torch.rand(2, 3, 32, 27)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.backbone(x).shape[1:] == ours.backbone.out_shape


def test_resnet18_is_a_stack_of_its_residual_blocks():
    model = stabnet.build("resnet18", in_channels=3, image_size=32, num_classes=10)
    assert isinstance(model.dynamics, Stack)
    shapes = [stage.out_shape for stage in model.dynamics.stages]
    grids = [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 2 + [(512, 4, 4)] * 2
    assert shapes == [*grids, (512,)]
    for options, words in (
        ({"stem": "mnist"}, "'cifar' or 'imagenet'"),
        ({"in_shape": (9,)}, "images"),
    ):
        with pytest.raises(InvalidOptionError, match=words):
            resnet18(**options)
