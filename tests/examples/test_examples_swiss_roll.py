"""The swiss roll runs at a small size, and its report says what was measured."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import stabnet

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = ["--seeds", "0", "--tuning-seeds", "9", "--rates", "0.03"]
OPTIONS += ["--epochs", "3", "--points", "400", "--resolution", "20"]
LABELS = ["HNN-12", "ResNet-12", "MLP-12", "MLP-2"]


def load(name):
    """Return a script as a module, imported from its file as nothing else may import it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    """The script, which registers its names once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "swiss_roll_report", load("swiss_roll_report"))
        yield load("swiss_roll")


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    """What the script writes at a small size."""
    out = tmp_path_factory.mktemp("swiss-roll")
    script.main([*OPTIONS, "--out", str(out)])
    return out


@pytest.fixture
def record(folder):
    return json.loads((folder / "swiss-roll.json").read_text())


def test_files_are_whole(folder, record):
    text = (folder / "swiss-roll.md").read_text()
    assert f"Made with `python examples/swiss_roll.py {' '.join(OPTIONS)}`" in text
    assert record["steps"] == 6
    assert [row["model"] for row in record["rows"]] == LABELS
    assert [row["model"] for row in record["tuning"]] == LABELS
    lines = text.splitlines()
    for label in LABELS:
        assert sum(line.startswith(f"| {label} |") for line in lines) == 2
    for name in ("boundaries", "jacobians"):
        assert f"](swiss-roll-{name}.png)" in text
        assert (folder / f"swiss-roll-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_hamiltonian_layers_never_shrink_all_directions_and_gradients_arrive(record):
    rows = {row["model"]: row for row in record["rows"]}
    assert rows["HNN-12"]["least norm"] >= 1 - 1e-9
    assert rows["MLP-12"]["least norm"] < 0.9
    for when in ("start", "end"):
        arrives = rows["HNN-12"][f"gradient at the {when}"]
        assert arrives > 0.1
        assert rows["MLP-12"][f"gradient at the {when}"] < 0.01 * arrives


def test_rate_is_the_best_on_the_validation_sets(script, monkeypatch):
    found = {0.1: (0.9, 0.3), 0.2: (0.95, 0.5), 0.3: (0.95, 0.4), 0.4: (0.95, 0.6)}

    def train(label, rate, seed, args, run_dir, *, watched):
        assert not watched
        accuracy, loss = found[rate]
        history = ({"validation_loss": 9.0}, {"validation_loss": loss})
        return None, Namespace(best_validation=accuracy, best_epoch=2, history=history)

    monkeypatch.setattr(script, "train", train)
    args = Namespace(rates=list(found), tuning_seeds=[7, 8], out=Path("nowhere"))
    tuned = script.tune("HNN-12", args)
    assert tuned["rate"] == 0.3
    assert tuned["validation accuracy"] == {"0.1": 0.9, "0.2": 0.95, "0.3": 0.95, "0.4": 0.95}


def test_jacobians_are_recorded_from_before_the_first_step_to_after_the_last(folder):
    lines = (folder / "HNN-12-0" / "monitor.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in lines]
    assert [record["step"] for record in seen] == list(range(7))
    for record in seen:
        assert len(record["largest"]) == len(record["least"]) == 12
        assert all(v >= 1 - 1e-9 for v in record["largest"])
        assert all(v <= 1 + 1e-9 for v in record["least"])


def test_classes_are_the_arms_of_a_spiral(script):
    x, y = script.roll(500, seed=3)
    radius = x.double().norm(dim=1) / script.SCALE
    angle = torch.atan2(x[:, 1], x[:, 0]).double()
    arm = (angle / math.pi - script.HALF_TURNS * radius) % 2
    # The angle of a point near the center is that of rounding.
    apart = ((arm - y + 1) % 2 - 1).abs()[radius > 0.01]
    assert apart.max() < 1e-4
    assert radius.max() <= 1
    assert not torch.equal(x, script.unseen_roll(1000, seed=3)[0])


def test_skip_connection_is_all_that_tells_resnet_from_mlp(script):
    plain, skip = (script.TanhLayer((4,), skip=s) for s in (False, True))
    skip.load_state_dict(plain.state_dict())
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(skip(z) - z, (z + plain(z)) - z)


def test_networks_begin_with_the_same_states_and_come_back_from_a_file(script, tmp_path):
    x = script.roll(6, seed=0)[0]
    expected = torch.stack([x[:, 0], 0 * x[:, 0], x[:, 1], 0 * x[:, 1]], 1)
    for label in LABELS:
        model = script.make(label)
        assert torch.equal(model.dynamics.stages[0](x), expected)
        assert len(stabnet.monitors.singular_values(model, x)) == 1 + int(label.split("-")[1])
        stabnet.save(model, tmp_path / f"{label}.safetensors")
        again = stabnet.load(tmp_path / f"{label}.safetensors")
        assert torch.equal(again(x), model(x))


def test_verdicts_follow_from_the_numbers(script):
    verdicts = script.markdown.__globals__["verdicts"]
    row = {"seed": 0, "least norm": 1.0, "CPU seconds": 30.0, "test accuracy": 0.995}
    row["gradient at the start"] = 1.5
    good = [row | {"model": label} for label in LABELS]
    text = "\n".join(verdicts(good))
    assert "HNN-12 reaches 99.50 %" in text
    assert "ResNet-12 reaches 99.50 %" in text
    assert "is never below 1" in text
    assert "stay within 120 CPU seconds" in text
    bad = [r | {"test accuracy": 0.9949, "least norm": 0.99, "CPU seconds": 31.0} for r in good]
    text = "\n".join(verdicts(bad))
    assert "HNN-12 does not reach 99.50 %" in text
    assert "ResNet-12 does not reach 99.50 %" in text
    assert "is not always at least 1" in text
    assert "do not stay within 120 CPU seconds" in text


def test_rates_at_the_edge_of_the_grid_are_named(script):
    edges = script.markdown.__globals__["edges"]
    accuracy = {"validation accuracy": {"0.01": 0.5, "0.1": 0.5, "1": 0.5}}
    rates = {"a": 0.01, "b": 0.1, "c": 1.0}
    tuning = [accuracy | {"model": label, "rate": rate} for label, rate in rates.items()]
    assert edges(tuning) == ["At the edge of the grid: a (0.01), c (1).", ""]
    assert edges(tuning[1:2]) == []


def test_rates_are_never_chosen_on_reported_seeds(script, tmp_path, capsys):
    options = ["--seeds", "1", "2", "--tuning-seeds", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        script.main(options)
    assert "other seeds" in capsys.readouterr().err
