from __future__ import annotations

import json

import pytest
import stabnet_standard
import torch
from torch import nn

import stabnet

PARTS = [
    e
    for e in stabnet.entries()
    if e.provider.plugin == "standard" and e.kind not in ("dataset", "optimizer")
]


@pytest.mark.parametrize("entry", PARTS, ids=lambda e: f"{e.kind}-{e.name}")
def test_every_part_is_built_from_its_description(entry):
    torch.manual_seed(0)
    part = stabnet.build(entry.name, kind=entry.kind, **entry.example)
    config = json.loads(json.dumps(part._stabnet_config))
    again = stabnet.build(config)
    assert again._stabnet_config == part._stabnet_config
    again.load_state_dict(part.state_dict())
    assert entry.summary
    assert "\n" not in entry.summary


def test_public_classes_are_reachable_from_the_package():
    for name in stabnet_standard.__all__:
        assert getattr(stabnet_standard, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = stabnet_standard.nothing_of_the_kind


def test_linear_head_is_an_affine_map():
    head = stabnet.build("linear", kind="head", in_features=4, num_outputs=3)
    z = torch.rand(2, 4)
    torch.testing.assert_close(head(z), z @ head.weight.T + head.bias)
    bare = stabnet.build("linear", kind="head", in_features=4, num_outputs=3, bias=False)
    assert bare.bias is None


def test_identity_head_returns_the_state_and_refuses_another_number_of_outputs():
    z = torch.rand(2, 4)
    assert stabnet.build("identity", kind="head", in_features=4, num_outputs=4)(z) is z
    with pytest.raises(stabnet.InvalidOptionError, match="a state of 4 and 3 outputs"):
        stabnet.build("identity", kind="head", in_features=4, num_outputs=3)


@pytest.mark.parametrize("num_outputs", [0, 2.5, True])
def test_linear_head_refuses_an_impossible_number_of_outputs(num_outputs):
    with pytest.raises(stabnet.InvalidOptionError, match="num_outputs is a positive whole number"):
        stabnet.build("linear", kind="head", in_features=4, num_outputs=num_outputs)


@pytest.mark.parametrize(
    ("name", "options", "peer"),
    [
        ("adam", {}, lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.999))),
        ("adam", {"betas": [0.5, 0.9]}, lambda p: torch.optim.Adam(p, betas=(0.5, 0.9))),
        ("adamw", {"lr": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1e-2)),
        (
            "sgd",
            {"lr": 0.1, "nesterov": True, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True),
        ),
    ],
)
def test_optimizers_take_the_steps_of_torch(name, options, peer):
    def trained(make):
        weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = make([weight])
        for _ in range(5):
            optimizer.zero_grad()
            weight.pow(4).sum().backward()
            optimizer.step()
        return weight.detach()

    built = trained(lambda p: stabnet.build(name, kind="optimizer", params=p, **options))
    torch.testing.assert_close(built, trained(peer), rtol=0, atol=0)


def test_impossible_betas_are_refused():
    with pytest.raises(stabnet.InvalidOptionError, match="betas are two numbers"):
        stabnet.build("adam", kind="optimizer", params=[nn.Parameter(torch.ones(1))], betas=[0.9])
