from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import stabnet
from stabnet.interfaces import Backbone

CONVOLUTIONAL = ["convnet", "resnet20", "resnet56", "resnet18"]
ALL = ["identity", "linear", "mlp", *CONVOLUTIONAL]


def backbone(name, in_shape=(3, 8, 8), **options):
    torch.manual_seed(0)
    return stabnet.build(name, kind="backbone", in_shape=in_shape, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def resnet_count(blocks, in_channels, width):
    """Count the parameters of 3×3 convolutions, batch norms and the last layer in closed form."""

    def layer(before, after):
        return 9 * before * after + 2 * after

    total = layer(in_channels, 16)
    for before, after in ((16, 16), (16, 32), (32, 64)):
        total += layer(before, after) + (2 * blocks - 1) * layer(after, after)
    return total + 64 * width + width


@pytest.mark.parametrize(
    ("name", "blocks", "published"), [("resnet20", 3, 269_722), ("resnet56", 9, 853_018)]
)
def test_resnets_have_the_parameter_counts_of_the_paper(name, blocks, published):
    assert count(backbone(name, (3, 32, 32), width=10)) == published == resnet_count(blocks, 3, 10)
    assert count(backbone(name, (3, 32, 32))) == resnet_count(blocks, 3, 64)
    assert count(backbone(name, (1, 9, 8), width=5)) == resnet_count(blocks, 1, 5)


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet56", 56), ("resnet18", 18)])
def test_resnets_have_the_layers_of_their_name(name, layers):
    weighted = [m for m in backbone(name).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weighted) - len(shortcuts) == layers


def test_resnet18_keeps_the_image_size_up_to_its_second_stage():
    net = backbone("resnet18", (3, 32, 32)).net
    seen = {}
    for name in ("layer1", "layer4"):
        net.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, tuple(out.shape[2:]))
        )
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == {"layer1": (32, 32), "layer4": (4, 4)}


def test_resnet18_with_the_stem_of_imagenet_is_torchvisions():
    part = backbone("resnet18", (3, 32, 32), width=10, stem="imagenet").eval()
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    theirs.load_state_dict(part.net.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(part(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("in_shape", [(1, 8, 8), (4, 28, 31)])
def test_the_stem_of_imagenet_takes_any_channels_and_sizes(in_shape):
    part = backbone("resnet18", in_shape, width=5, stem="imagenet").eval()
    assert part(torch.rand(2, *in_shape)).shape == (2, *part.out_shape) == (2, 5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("in_shape", [(1, 8, 8), (3, 9, 9), (4, 28, 28), (3, 32, 8)])
def test_backbones_take_any_channels_and_sizes(name, in_shape):
    if name == "resnet56" and in_shape[1] > 9:
        in_shape = (in_shape[0], 11, 8)  # the same code as resnet20, at a third of the time
    part = backbone(name, in_shape)
    assert isinstance(part, Backbone)
    assert part.in_shape == in_shape
    assert part.out_shape == (in_shape if name == "identity" else (64,))
    for batch in (1, 2):
        u = part.eval()(torch.rand(batch, *in_shape))
        assert u.shape == (batch, *part.out_shape)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"identity"}))
def test_width_is_the_number_of_features(name):
    part = backbone(name, width=7)
    assert part.out_shape == (7,)
    assert part.eval()(torch.rand(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize("name", ["identity", "linear", "mlp"])
def test_dense_backbones_take_inputs_that_are_no_images(name):
    assert backbone(name, [2])(torch.rand(5, 2)).shape[0] == 5


def test_linear_is_one_matrix_on_the_raveled_image():
    part = backbone("linear", (1, 28, 28))
    assert count(part) == 784 * 64 + 64
    x = torch.rand(3, 1, 28, 28)
    layer = part.net[-1]
    torch.testing.assert_close(part(x), x.flatten(1) @ layer.weight.T + layer.bias)


def test_mlp_activates_between_layers_and_not_after():
    part = backbone("mlp", (5,), hidden=[4, 3], width=2, activation="tanh")
    kinds = [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [type(m) for m in part.net] == kinds


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_backbone_does_not_change(name):
    part = backbone(name, (3, 9, 9), frozen=True)
    before = {k: v.clone() for k, v in part.state_dict().items()}
    whole = nn.Sequential(part, nn.BatchNorm1d(64) if name != "identity" else nn.Flatten()).train()
    assert whole[1].training
    assert not any(m.training for m in part.modules())
    x = torch.rand(3, 3, 9, 9, requires_grad=True)
    whole(x).square().sum().backward()
    assert all(p.grad is None for p in part.parameters())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in part.state_dict().items())


def test_a_backbone_that_is_not_frozen_trains():
    part = backbone("convnet", channels=(4,)).train()
    before = {k: v.clone() for k, v in part.named_buffers()}
    part(torch.rand(3, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in part.parameters())
    assert not all(torch.equal(v, before[k]) for k, v in part.named_buffers())


@pytest.mark.parametrize("name", ["mlp", "convnet"])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_come_from_a_file(name, frozen, tmp_path):
    trained = backbone(name)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    part = backbone(name, weights=str(tmp_path / "w.safetensors"), frozen=frozen)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(part.eval()(x), trained.eval()(x), rtol=0, atol=0)


def test_weights_of_another_network_are_refused(tmp_path):
    safetensors.torch.save_file(backbone("mlp").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(stabnet.CheckpointError):
        backbone("convnet", weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize(
    ("in_shape", "message"),
    [((3, 7, 8), "at least 8 × 8"), ((64,), "channels, height, width"), ((0, 8, 8), "positive")],
)
def test_impossible_images_are_refused(name, in_shape, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        backbone(name, in_shape)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {"width": 0}, "width is a positive whole number; got 0"),
        ("convnet", {"channels": ()}, "at least one convolution"),
        ("mlp", {"hidden": 3}, "sequence of positive whole numbers"),
        ("mlp", {"activation": "rleu"}, "activation is one of elu.*got 'rleu'"),
        ("resnet18", {"stem": "mnist"}, "stem is 'cifar' or 'imagenet'; got 'mnist'"),
        ("identity", {"in_shape": ()}, "shape of one sample"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        backbone(name, **options)


def test_an_input_of_another_shape_is_refused():
    with pytest.raises(stabnet.InvalidInputError, match=r"\(batch, 3, 8, 8\); got \(2, 1, 8, 8\)"):
        backbone("convnet")(torch.rand(2, 1, 8, 8))
