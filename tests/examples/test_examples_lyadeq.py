"""The examples of LyaDEQ run, and their reports say what was attacked and how."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a script from its file; scripts find their neighbors."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    torch.set_num_threads(threads)


OPTIONS = ("--data", "digits", "--epochs", "1")


def test_the_ablations_write_one_table(load, tmp_path, monkeypatch):
    script = load("lyadeq")
    monkeypatch.setattr(script, "ABLATIONS", {"LyaDEQ": script.ABLATIONS["LyaDEQ"]})
    script.main([*OPTIONS, "--images", "4", "--out", str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert "python examples/lyadeq.py --data digits --backbone linear --epochs 1 --images 4" in text
    assert str(tmp_path) not in text
    record = json.loads((tmp_path / "table.json").read_text())
    assert [row["label"] for row in record["rows"]] == ["LyaDEQ"]
    assert len(record["rows"][0]["robustness"]["results"]) == 8


def test_the_sweep_writes_its_report_and_figures(load, tmp_path, monkeypatch):
    script = load("lyadeq_sweep")
    kept = ("DEQ", "DEQ + orthogonal", "LyaDEQ")
    monkeypatch.setattr(script, "MODELS", {k: script.MODELS[k] for k in kept})
    monkeypatch.setattr(script, "RADII", script.RADII[:2])
    monkeypatch.setattr(script, "STRONG", script.RADII[1:2])
    monkeypatch.setattr(script, "STEPS", 2)
    script.main([*OPTIONS, "--images", "12", "--features", "12", "--out", str(tmp_path)])
    text = (tmp_path / "lyadeq-digits-sweep.md").read_text()
    assert str(tmp_path) not in text
    for said in ("--images 12", "the first 12 test images", "l-infinity", "| 2 (2) | 4 (5) |"):
        assert said in text
    assert "concerns the state, not the input" in text
    assert "no evidence of robustness" in text
    figures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line[:2] == "!["]
    assert len(figures) == 4
    for figure in figures:
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "lyadeq-digits-sweep.json").read_text())
    assert "cut short" not in text
    record["rows"][0]["complete"] = False
    again = script.head(record["rows"], Namespace(**record["setting"], command=""))
    assert any("| DEQ (cut short) |" in line for line in again)
    for row in record["rows"]:
        clean, *attacked = row["strong"]
        assert clean == row["protocol"]["clean"]["accuracy"] >= max(attacked)
        assert set(record["transfer"]["8/255"][row["label"]]) == set(kept)


class Threshold(nn.Module):
    """Class 1 where the mean of an image is above one half; a layer between hides the gradient."""

    def __init__(self, equilibrium):
        super().__init__()
        self.solve = equilibrium

    def forward(self, x):
        score = self.solve(x.flatten(1)).state.mean(1) - 0.5
        return torch.stack([-score, score], 1)


def test_the_strong_attack_reaches_just_as_far_as_its_radius(load):
    import stabnet
    from stabnet.interfaces import Cell

    class Copies(Cell):
        """The equilibrium of the contraction z ↦ (z + u)/2 is u."""

        state_shape = feature_shape = (4,)

        def forward(self, z, u=None):
            return (z + u) / 2

    solver = stabnet.build("anderson", kind="solver", tolerance=1e-7)
    model = Threshold(stabnet.Equilibrium(Copies(), solver))
    script = load("lyadeq_sweep")
    margins = torch.tensor([2, 6, 10, 14, 18, 22]) / 255
    x, y = (0.5 + margins).view(6, 1, 1, 1).expand(6, 1, 2, 2).clone(), torch.ones(6, dtype=int)
    # Lost are the images whose margin is below the radius, 4, 8, 12, 16 or 20 / 255.
    expected = [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert script.strong(model, x, y) == pytest.approx(expected)
    assert model.solve.gradient == "implicit"
