"""The examples of Lyapunov training run, and the two circles come out as they are meant to."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import stabnet

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    """Return a script as a module, imported from its file as nothing else may import it."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(name, out, stem, *options):
    """Run a script, and return its record; its table must show what is there."""
    load(name).main([*options, "--out", str(out)])
    text = (out / f"{stem}.md").read_text()
    shown = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert shown
    for figure in shown:
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    return json.loads((out / f"{stem}.json").read_text())


def test_two_circles_writes_its_tables_and_boundaries(tmp_path):
    options = ("--epochs", "1", "--train", "100", "--points", "1", "--eps", "0.001")
    record = run("two_circles", tmp_path, "two-circles", *options, "--resolution", "20")
    assert [row["model"] for row in record["rows"]] == ["MLP", "neural ODE", "LyaNet"]
    assert [c["model"] for c in record["certificates"]] == ["neural ODE", "LyaNet"]


def test_lyanet_separates_the_circles_decays_and_is_certified(tmp_path):
    script = load("two_circles")
    x, y = script.circles(1000, 1000)
    data = stabnet.data.from_tensors(*script.circles(1000, 0), x, y)
    args = argparse.Namespace(epochs=40, out=tmp_path)
    model, row = script.train("LyaNet", data, args, seed=0)
    assert row["training accuracy"] == 1
    assert row["decay share"] >= 0.999
    assert row["change at finer steps"] < 1e-3
    found = script.certify(model, x[:4], y[:4], eps=0.05)
    assert found["radius > 0"] == 1
    assert found["fooled within"] == 0
    assert found["slowed: accuracy"] == 1
    assert found["slowed: verified"] == 0


def test_the_attack_of_two_circles_reaches_every_corner_of_its_radius_and_no_further():
    script = load("two_circles")
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    # Class 0 where x1 + x2 > 0; within r in the maximum norm the sum changes by up to 2 r.
    x, y = torch.full((2, 2), 0.1), torch.zeros(2, dtype=torch.int64)
    radius = torch.tensor([[0.099], [0.101]])
    assert script.attack(model, x, y, radius).tolist() == [False, True]


def test_phase_portrait_draws_both_models_before_and_after_training(tmp_path):
    record = run("phase_portrait", tmp_path, "phase-portrait", "--epochs", "4")
    before, lyanet, neural_ode = record["rows"]
    assert (lyanet["model"], neural_ode["model"]) == ("LyaNet", "neural ODE")
    assert lyanet["states that violate"] < 0.1 < 0.9 < before["states that violate"]


def test_the_excess_of_the_portrait_is_the_rate_of_the_potential_along_the_flow():
    script = load("phase_portrait")
    x, y = script.circles(2, 0)
    portrait = script.Portrait(script.make(0).double(), x[:1].double(), y[:1])
    portrait.potential.truncation = 0.0
    z, h = script.grid(3).double(), 1e-6
    with torch.no_grad():
        step = h * portrait.velocity(z)
        rate = (portrait.value(z + step) - portrait.value(z - step)) / (2 * h)
        expected = rate + script.KAPPA * portrait.value(z)
        torch.testing.assert_close(portrait.excess(z), expected, rtol=1e-6, atol=1e-7)


def test_early_termination_measures_both_models_over_time(tmp_path):
    options = ("--epochs", "1", "--width", "4", "--samples", "16")
    record = run("early_termination", tmp_path, "early-termination-digits", *options)
    assert [row["model"] for row in record["rows"]] == ["neural ODE", "LyaNet"]
    for row in record["rows"]:
        assert row["loss at 0"] == pytest.approx(torch.tensor(10.0).log().item(), rel=1e-5)


def test_kappa_ablation_measures_every_rate_and_quotes_the_paper(tmp_path):
    options = ("--epochs", "1", "--width", "4", "--samples", "16", "--kappas", "1", "5")
    record = run("kappa_ablation", tmp_path, "kappa-digits", *options, "--seeds", "0")
    assert [row["kappa"] for row in record["rows"]] == [1.0, 5.0]
    assert "39.83 at kappa = 1.0" in (tmp_path / "kappa-digits.md").read_text()
