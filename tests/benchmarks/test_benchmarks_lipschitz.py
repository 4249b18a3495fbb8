"""The benchmark of non-expansive blocks: it trains by the clock, compares equals, writes tables."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

LABELS = ["vectors/gradient_flow", "vectors/sll", "images/aol"]


@pytest.fixture(scope="module")
def run(benchmark, tmp_path_factory):
    """Return record, table and folder of a short run."""
    out = tmp_path_factory.mktemp("lipschitz")
    short = ["--quick", "--seconds", "0.2", "--images", "100"]
    benchmark.main([*short, "--only", *LABELS, "--out", str(out)])
    record = json.loads((out / "lipschitz-cpu-quick.json").read_text())
    return record, (out / "lipschitz-cpu-quick.md").read_text(), out


def test_results_are_written_without_the_folder(run):
    record, table, out = run
    found = [f"{row['states']}/{row['block']}" for row in record["models"]]
    assert sorted(found) == sorted(LABELS)
    assert len(record["norms"]) == 3
    assert "python benchmarks/lipschitz.py --quick --seconds 0.2 --images 100 --only" in table
    assert str(out) not in table + json.dumps(record)


def test_certified_accuracies_fall_with_the_radius(run):
    for row in run[0]["models"]:
        shares = [row["clean"], *row["certified"]]
        assert shares == sorted(shares, reverse=True)
        assert row["images"] == 100
        assert row["steps"] > 0


def test_after_renormalization_models_expand_by_rounding_only(run):
    assert all(row["bound"] <= 1 + 1e-5 for row in run[0]["models"])
    as_trained = {row["block"]: row["bound_as_trained"] for row in run[0]["models"]}
    assert as_trained["gradient_flow"] > 1 + 1e-6
    assert as_trained["sll"] <= 1 + 1e-5


def test_bounds_of_norms_are_above_and_close(run):
    for row in run[0]["norms"]:
        assert -1e-14 <= row["slack"] <= 1e-10
        assert abs(row["shortfall"]) < 1e-3


def test_training_lasts_and_slows_by_the_clock(benchmark, monkeypatch):
    ticks, rates = iter(range(100)), []
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(process_time=lambda: next(ticks)))
    monkeypatch.setattr(benchmark, "stepper", lambda *_: lambda _, rate: rates.append(rate))
    x = torch.zeros(3 * benchmark.BATCH, 1)
    # One tick for the start; the steps at 1 to 7 of 8 ticks are made, of three epochs.
    assert benchmark.train(torch.nn.Identity(), x, x, 8, 2.0) == 7
    expected = [1 + math.cos(math.pi * tick / 8) for tick in range(1, 8)]
    assert rates == pytest.approx(expected)


def test_a_step_lowers_the_loss_of_its_samples(benchmark):
    data = benchmark.quick_data()
    x, y = next(iter(benchmark.stabnet.data.loader(data.train, batch_size=32)))
    torch.manual_seed(0)
    model = benchmark.build(benchmark.ROWS[2], data)
    objective = benchmark.stabnet.build(benchmark.OBJECTIVE, kind="objective")
    before, step = objective(model, x, y)[0], benchmark.stepper(model, x, y)
    for _ in range(5):
        step(torch.arange(32), 3e-3)
    assert objective(model, x, y)[0] < 0.8 * before


def test_models_of_one_kind_and_their_twins_have_the_same_states(benchmark):
    data = benchmark.quick_data()
    for states in ("vectors", "images"):
        seen = set()
        for row in (row for row in benchmark.ROWS if row.states == states):
            model, twin = benchmark.build(row, data), benchmark.twin(row, data)
            shapes = [tuple(stage.state_shape) for stage in model.dynamics.stages]
            free = [tuple(m.state_shape) for m in twin if hasattr(m, "state_shape")]
            assert free == [s for s in free if s in shapes]
            read = next(m for m in reversed(list(twin)) if isinstance(m, torch.nn.Linear))
            assert read.weight.shape == model.head.weight.shape
            seen.add((*shapes[-2:], *free))
        assert len(seen) == 1


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_norms_compared_with_agree_with_each_other(benchmark, padding, monkeypatch):
    norms = sys.modules["lipschitz_norms"]
    geometry = norms.operator((3, 6, 6), padding_mode=padding)
    weight = torch.randn(geometry.weight_shape, generator=torch.Generator().manual_seed(0)).double()
    norm, how = norms.norm_of(geometry, weight)
    assert how == "SVD"
    assert math.isclose(norms.lanczos(geometry, weight, 108), norm, rel_tol=1e-12)
    assert norms.lanczos(geometry, weight, 4) < norm
    monkeypatch.setattr(norms, "EXPLICIT", 0)
    assert math.isclose(norms.norm_of(geometry, weight)[0], norm, rel_tol=1e-12)


def test_an_unknown_model_is_named(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.parsed(["--only", "vectors/nothing"])
    assert "vectors/nothing" in capsys.readouterr().err


def test_readings_follow_the_numbers(benchmark):
    row = {
        "states": "vectors",
        "architecture": "one layer",
        "parameters": 12345,
        "images": 100,
        "steps": 7,
        "bound_as_trained": 1.25,
        "bound_seconds": 0.5,
        "radii_seconds": 2.0,
        "twin_seconds": 0.01,
    }
    good = {"block": "good", "clean": 0.95, "certified": [0.9, 0.3], "bound": 1 + 2e-6}
    good |= {"step_seconds": 0.015, "learning_rate": 0.1}
    bad = {"block": "bad", "clean": 0.5, "certified": [0.4, 0.35], "bound": 0.8}
    bad |= {"step_seconds": 0.04, "learning_rate": 0.02}
    record = {
        "setting": "here",
        "data": "mnist",
        "seconds": 50.0,
        "eps": [0.5, 1.0],
        "objective": benchmark.OBJECTIVE,
        "batch": 128,
        "learning_rate": 0.1,
        "models": [row | good, row | bad],
        "norms": [],
    }
    text = benchmark.markdown(record)
    assert "a cosine from 0.1; from 0.02 for `bad` (vectors)." in text
    assert "| 1.250 | 1 + 2.0e-06 | 15.0 | 1.50 | 0.500 | 2.00 |" in text
    assert "| 1.250 | 0.800 | 40.0 | 4.00 |" in text
    assert "95.00 % clean (`good`), 90.00 % certified at 0.5 (`good`)" in text
    assert "35.00 % certified at 1 (`bad`)" in text
    assert "1.5 (`good`) to 4.0 (`bad`) times" in text
    assert "below 80 %: `bad` (vectors)." in text
    assert "took 1 % of the training time at most" in text
    assert "## Norms" not in text
