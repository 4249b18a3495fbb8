"""Saving and loading: exact, atomic, without pickle, with clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import stabnet
from stabnet import CheckpointError, UndescribedPartError


def _model(**options):
    given = {"in_shape": (1, 8, 8), "num_outputs": 4, "backbone": "linear", **options}
    return stabnet.build("lyadeq", **given)


@pytest.fixture(autouse=True)
def _shared_parts():
    """Register a backbone whose one PReLU is used twice and whose two layers share a weight."""

    class Tied(nn.Module):
        def __init__(self, in_shape):
            super().__init__()
            self.in_shape, self.out_shape = tuple(in_shape), (64,)
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight
            self.activation = self.again = nn.PReLU()

        def forward(self, x):
            return self.again(self.second(self.activation(self.first(x.flatten(1)))))

    def tied(*, in_shape):
        return Tied(in_shape)

    stabnet.register.backbone("tied_test_backbone", override=True)(tied)


@pytest.mark.parametrize("projection", ["output", "flow"])
@pytest.mark.parametrize("backbone", ["linear", "tied_test_backbone"])
@pytest.mark.parametrize("training", [False, True])
def test_round_trip_is_exact_and_keeps_sharing(tmp_path, projection, backbone, training):
    model = _model(projection=projection, backbone=backbone, mean=(0.3,), std=(0.2,))
    x = torch.rand(8, 1, 8, 8)
    model(x).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.train(training)
    path = stabnet.save(model, tmp_path / "deep" / "model.safetensors")
    loaded = stabnet.load(path)
    assert loaded.training == training
    assert loaded.config == model.config
    assert torch.equal(loaded(x), model(x))
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    if backbone == "tied_test_backbone":
        assert loaded.backbone.first.weight is loaded.backbone.second.weight
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_precision_survives(tmp_path):
    model = _model().double().eval()
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    loaded = stabnet.load(stabnet.save(model, tmp_path / "model.safetensors"))
    assert torch.equal(loaded(x), model(x))


def test_loads_in_another_process_and_working_directory(tmp_path):
    model = _model().eval()
    path = stabnet.save(model, tmp_path / "model.safetensors")
    x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
    code = (
        f"import torch, stabnet; m = stabnet.load({str(path)!r}); "
        "print(m(torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)).tolist())"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), model(x))


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    path = stabnet.save(_model(), tmp_path / "model.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    stabnet.load(path)
    assert torch.equal(torch.rand(3), expected)


def test_weight_file_of_a_backbone_is_not_needed_to_load(tmp_path):
    backbone = stabnet.build("linear", kind="backbone", in_shape=(1, 8, 8))
    weights = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file(backbone.state_dict(), weights)
    model = _model(backbone={"name": "linear", "weights": str(weights), "frozen": True})
    assert torch.equal(next(model.backbone.parameters()), next(backbone.parameters()))
    path = stabnet.save(model, tmp_path / "model.safetensors")
    weights.unlink()
    loaded = stabnet.load(path)
    assert torch.equal(next(loaded.backbone.parameters()), next(backbone.parameters()))


def test_unregistered_part_is_refused_by_name(tmp_path):
    class Mine(nn.Module):
        out_shape = (64,)

        def forward(self, x):
            return x.flatten(1)

    model = _model(backbone=Mine())
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(UndescribedPartError, match=r"part backbone .*Mine"):
        stabnet.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_described_module_given_as_a_part_is_described(tmp_path):
    backbone = stabnet.build("linear", kind="backbone", in_shape=(1, 8, 8), width=16)
    model = _model(backbone=backbone)
    assert model.config["backbone"]["name"] == "linear"
    loaded = stabnet.load(stabnet.save(model, tmp_path / "m.safetensors"))
    assert loaded.backbone.out_shape == (16,)


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    whole = stabnet.save(_model(), tmp_path / "model.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    pickle = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, pickle)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at"):
        stabnet.load(tmp_path / "nowhere.safetensors")
    for broken in (cut, empty, pickle):
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            stabnet.load(broken)
    with pytest.raises(CheckpointError, match=r"not one that stabnet\.save wrote"):
        stabnet.load(foreign)


def test_checkpoint_of_a_missing_plugin_says_which(tmp_path):
    model = _model(backbone="tied_test_backbone")
    path = stabnet.save(model, tmp_path / "model.safetensors")
    code = f"import stabnet; stabnet.load({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "tied_test_backbone" in done.stderr
    assert "cannot be built here" in done.stderr


def test_weights_of_another_shape_are_refused(tmp_path):
    path = stabnet.save(_model(), tmp_path / "model.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    description = json.loads(metadata["stabnet"])
    description["config"]["num_outputs"] = 5
    safetensors.torch.save_file(tensors, path, {"stabnet": json.dumps(description)})
    with pytest.raises(CheckpointError, match="do not fit"):
        stabnet.load(path)


def test_interrupted_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    old = _model().eval()
    stabnet.save(old, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        stabnet.save(_model(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def _interrupt(*_):
    raise KeyboardInterrupt


def test_unwritable_folder_is_an_error_of_ours(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        stabnet.save(_model(), file / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"config": "deq"},
        {"config": 3},
        {"config": None},
        {"config": {"name": [1], "kind": "model"}},
        {"training": "yes"},
        {"shared": ["a"]},
        {"shared": {"a": ["b"]}},
        {"shared": {"a": "b"}, "config": {"name": "deq", "kind": "model"}},
        {"config": {"name": "deq", "kind": "model", "backbone": {"name": "mlp", "hidden": "x"}}},
        {"config": {"name": "digits", "kind": "dataset"}},
        {"config": {"name": "pgd", "kind": "attack", "eps": 0.1}},
    ],
)
def test_odd_descriptions_are_errors_of_ours(tmp_path, change):
    path = stabnet.save(_model(), tmp_path / "model.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["stabnet"])
    text = json.dumps({**description, **change})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"stabnet": text})
    with pytest.raises(CheckpointError):
        stabnet.load(path)
