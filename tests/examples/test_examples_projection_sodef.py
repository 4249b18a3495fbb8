"""The example of SODEF runs, attacks within its radii, and says what its figures mean."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchattacks", reason="the attacks come with the extra 'attacks'")

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """Return a script as a module, imported from its file as nothing else may import it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setitem(sys.modules, "sodef_attacks", load("sodef_attacks"))
    return load("sodef")


def test_the_example_writes_its_tables_and_spectra(script, tmp_path):
    small = "--backbone-epochs 1 --epochs 1 --width 16 --step-size 1 --images 10 --steps 2"
    script.main([*small.split(), "--queries", "3", "--eps", "0.1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "sodef-digits.json").read_text())
    labels = ["backbone + linear", "neural ODE", "SODEF joint", "SODEF phased"]
    assert [row["label"] for row in record["rows"]] == labels
    for row in record["rows"]:
        left = row["robustness"]["accuracy"]["0.1"]
        assert left["all"] <= min(left.values())
        assert max(r["max_perturbation"] for r in row["robustness"]["results"]) <= 0.1 + 1e-6
    assert [len(row["objectives"]) for row in record["rows"]] == [1, 1, 1, 3]
    text = (tmp_path / "sodef-digits.md").read_text()
    assert "python examples/sodef.py --backbone-epochs 1" in text
    assert "Stability in the state is not robustness in the input" in text
    assert (tmp_path / "sodef-digits.png").read_bytes().startswith(b"\x89PNG")


def test_features_are_rescaled_without_changing_the_classifier(script):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6))
    plain = nn.Sequential(backbone, nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(8, 3)
    expected = plain(x)
    script.rescale(plain, x, 4.0)
    torch.testing.assert_close(backbone(x).norm(dim=1).mean(), torch.tensor(4.0))
    torch.testing.assert_close(plain(x), expected)


def test_a_gradient_that_is_hidden_is_found_out(script):
    class Hidden(nn.Module):
        """Class 1 where the first pixel is above one half, in steps that have no gradient."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            first = x.flatten(1)[:, :1]
            above = (first > 0.5).float() + 0 * first
            return self.scale * torch.cat([1 - above, above], 1)

    class Smooth(nn.Module):
        def forward(self, x):
            first = x.flatten(1)[:, :1]
            return torch.cat([0.5 - first, first - 0.5], 1)

    class Options:
        eps, steps, starts, queries, seed = (0.2,), 40, 1, 5, 0

    x = torch.full((20, 1, 4, 4), 0.55)
    y = torch.ones(20, dtype=torch.int64)
    # An image is fooled by lowering its first pixel. The gradient, which is zero, moves none; a
    # random start lowers it on some images only.
    found = script.robustness(Hidden(), Smooth(), [(x, y)], Options)
    assert found["accuracy"]["0.2"]["FGSM"] == 1
    assert found["accuracy"]["0.2"]["transfer"] == 0
    assert found["accuracy"]["0.2"]["all"] == 0
    assert any("transfer fools" in sign for sign in found["masking"])
    assert any("input gradient that is exactly zero" in sign for sign in found["masking"])


def test_a_single_step_that_finds_more_than_many_is_a_sign_of_masking(script):
    """Iterating from a random start is held against the single step too."""

    class Wave(nn.Module):
        """Wrong beyond a distance that a full step reaches, with a slope back to the image."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            d = (x.flatten(1)[:, :1] - 0.5).abs()
            margin = torch.where(d < 0.02, 1 - d, torch.where(d < 0.18, 0.5 + d, -d))
            return self.scale * torch.cat([-margin, margin], 1)

    class Options:
        eps, steps, starts, queries, seed = (0.2,), 3, 1, 1, 0

    x = torch.full((100, 1, 4, 4), 0.501)
    y = torch.ones(100, dtype=torch.int64)
    wave = Wave()
    found = script.robustness(wave, wave, [(x, y)], Options)
    left = found["accuracy"]["0.2"]
    assert left["FGSM"] == 0
    assert left["PGD, restarts"] > 0.5
    assert any("a single step leaves 0.0%" in sign for sign in found["masking"])
