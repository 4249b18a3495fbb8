"""The inverse problem runs, and what it compares with is what it says."""

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


def load(name):
    """Return a script as a module, imported from its file as nothing else may import it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch):
    figures = "inverse_problem_figures"
    monkeypatch.setitem(sys.modules, figures, load(figures))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load("inverse_problem")
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_script_runs_and_its_record_holds_together(script, tmp_path):
    options = ["--sizes", "20", "60", "--test", "200", "--steps", "40"]
    script.main([*options, "--out", str(tmp_path)])
    text = (tmp_path / "inverse-problem.md").read_text()
    assert f"Made with `python examples/inverse_problem.py {' '.join(options)}" in text
    for figure in ("data", "reconstructions", "maps", "errors"):
        assert f"](inverse-problem-{figure}.png)" in text
        png = (tmp_path / f"inverse-problem-{figure}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
    record = json.loads((tmp_path / "inverse-problem.json").read_text())
    assert [row["training set"] for row in record["errors"]] == [20, 60]
    for row in record["errors"]:
        assert 0 < row["least possible"] < row["best Tikhonov"] <= row["Tikhonov"] < row["naive"]
        assert row["L*"] == script.tikhonov_constant(row["tau"])
    assert len(record["networks"]) == 6
    for row in record["networks"]:
        assert 0 < row["far pairs"] <= row["bound"] <= row["L"] * (1 + 1e-6)
        assert 0 < row["Jacobians"] <= row["bound"] <= row["bound as trained"] * (1 + 1e-6)


def test_the_same_seed_gives_the_same_numbers(script):
    results = [
        script.reconstruct(Namespace(sizes=[20], test=50, noise=0.15, steps=5, seed=seed))[:2]
        for seed in (0, 0, 1)
    ]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_training_side_by_side_is_training_one_by_one(script):
    sets = [script.sample(count, 0.15, generator(count)) for count in (20, 150)]

    def networks():
        torch.manual_seed(0)
        return [stabnet.build("invnet", lipschitz=k, blocks=2) for k in (0.3, 2.0, 0.5, 4.0)]

    together, alone = networks(), networks()
    script.train(together, sets, 12, generator())
    rows = generator()
    orders = [script.shuffled(len(y), 12, rows) for y, _ in sets]
    for k, model in enumerate(alone):
        (y, x), order = sets[k // 2], orders[k // 2]
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-3)
        for batch in order:
            optimizer.zero_grad()
            (model(y[batch].float()) - x[batch].float()).square().sum(1).mean().backward()
            optimizer.step()
        for found, expected in zip(
            together[k].state_dict().values(), model.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_tikhonov_is_least_squares_with_a_penalty_and_its_constant_is_its_norm(script):
    y, x = script.sample(50, 0.15, generator())
    for tau in (0.0, 0.03, 2.0):
        M = script.inverse(tau)
        stacked = torch.cat([script.A, math.sqrt(tau) * torch.eye(2)])
        padded = torch.cat([y, torch.zeros_like(y)], 1)
        expected = torch.linalg.lstsq(stacked, padded.T).solution.T
        torch.testing.assert_close(y @ M.T, expected)
        norm = torch.linalg.matrix_norm(M, 2).item()
        assert script.tikhonov_constant(tau) == pytest.approx(norm, rel=1e-12)
    best = script.best_tau(y, x)
    least = script.error(y @ script.inverse(best).T, x)
    for tau in (best / 3, best * 3):
        assert least < script.error(y @ script.inverse(tau).T, x)


def test_the_posterior_mean_has_the_least_error_of_all_reconstructions_tried(script):
    y, x = script.sample(2000, 0.15, generator())
    mean = script.posterior_mean(y, 0.15)
    least = script.error(mean, x)
    ticks = torch.linspace(-math.pi, math.pi, 2001, dtype=y.dtype)
    nearest = script.curve(ticks)[torch.cdist(y, script.curve(ticks) @ script.A.T).argmin(1)]
    others = [nearest, y @ script.inverse(script.best_tau(y, x)).T, 1.02 * mean, mean + 0.02]
    assert all(least < script.error(other, x) for other in others)


def test_every_round_of_batches_uses_the_whole_set(script):
    small = script.shuffled(20, 7, generator())
    assert small.shape == (7, script.BATCH)
    assert (small.sort(1).values == torch.arange(20).repeat_interleave(5)).all()
    large = script.shuffled(500, 10, generator())
    for part in large.split(5):
        assert torch.equal(part.flatten().sort().values, torch.arange(500))


def test_the_committed_results_meet_what_was_asked(script):
    """Errors at L* and 3 L* at most 40 % of the best Tikhonov's, in 2 minutes."""
    record = json.loads((EXAMPLES / "results" / "inverse-problem.json").read_text())
    assert record["CPU seconds"] < 120
    rows = record["networks"]
    assert {row["training set"] for row in rows} == {20, 100, 500}
    for row in rows:
        assert max(row["Jacobians"], row["far pairs"]) <= row["bound"] <= row["L"] * (1 + 1e-6)
        if row["training set"] >= 100 and row["network"] != "L*/3":
            assert row["of best Tikhonov"] <= 0.4
