"""The benchmark of the equilibrium engine: it counts rightly and writes what it measured."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def tiny(benchmark):
    """Return a problem of four samples, one of which is stiff."""
    cell, (b, _) = benchmark.stiff(0)
    scale = torch.tensor([0.2, 0.2, 0.2, 1.0])
    return benchmark.Problem("tiny", cell, (b[:4], scale), memory=10, solvers=("anderson",))


def count(benchmark, contender, problem):
    weight = torch.ones(4, 64)
    reference = benchmark.reference_gradient(problem, weight)
    return benchmark.count(contender, problem, weight, reference)


def test_counts_agree_with_what_the_solver_reports(benchmark, tiny):
    solver = benchmark.our_solver("anderson", 10)
    solution = benchmark.Equilibrium(tiny.cell, solver)(benchmark.with_gradients(tiny.features))
    solution.state.sum().backward()
    counts = count(benchmark, benchmark.eager(tiny)[0], tiny)
    assert counts.evaluations == solution.nfe
    assert counts.products == solution.backward.nfe + 1  # the last reaches the features
    assert counts.residual == pytest.approx(solution.residual.max().item(), rel=0.1)
    assert counts.unconverged == counts.wrongly_claimed == 0
    assert counts.gradient_error < 1e-2


def test_rows_that_go_on_after_converging_are_counted_as_wasted(benchmark, tiny):
    solver = benchmark.Anderson(memory=10, max_evaluations=200, compaction=1.0)
    keeping = benchmark.Contender(
        "anderson", lambda cell: benchmark.ours(solver, solver, False, cell)
    )
    kept, dropped = (count(benchmark, c, tiny) for c in (keeping, benchmark.eager(tiny)[0]))
    assert kept.rows == 1
    assert dropped.rows < 0.6
    assert dropped.wasted < 0.2 < 0.5 < kept.wasted


def test_false_claims_of_convergence_are_found(benchmark, tiny):
    def lying(cell):
        def solve(u, training):
            state = u[0] + 0 * cell(u[0], u)
            return state, torch.ones(4, dtype=torch.bool)

        return solve

    counts = count(benchmark, benchmark.Contender("liar", lying), tiny)
    assert counts.unconverged == counts.wrongly_claimed == 4
    assert counts.gradient_error > 0.1


def test_short_runs_are_warm_and_all_are_timed_in_turn(benchmark, monkeypatch):
    log = []

    def seconds(run, calls, device):
        log.append("timed")
        run()
        return 0.2 if log[-1] == "long" else 1e-2

    monkeypatch.setattr(benchmark, "seconds", seconds)
    runs = {"short": lambda: log.append("short"), "long": lambda: log.append("long")}
    _, samples = benchmark.medians(runs, torch.device("cpu"), 0.0)
    assert samples == {"short": 3, "long": 3}
    assert log[4:] == ["short", "timed", "short", "timed", "long"] * 3


def test_results_are_written_without_the_peer(benchmark, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "problems", lambda quick, compiled: iter([tiny]))
    monkeypatch.setattr(benchmark, "has_peer", lambda: False)
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "equilibrium-cpu-quick.json").read_text())
    (result,) = record["results"]
    assert [r["solver"] for r in result["rows"]] == ["anderson"]
    assert result["rows"][0]["both_speedup"] is None
    table = (tmp_path / "equilibrium-cpu-quick.md").read_text()
    assert "torchdeq is not installed" in table
    assert str(tmp_path) not in table + json.dumps(record)
    assert (tmp_path / "equilibrium-cpu-quick.png").stat().st_size > 0


def test_peer_solves_the_same_problem(benchmark, tiny):
    pytest.importorskip("torchdeq", reason="the peer, torchdeq, comes with the extra 'bench'")
    _, peer = benchmark.eager(tiny)
    counts = count(benchmark, peer, tiny)
    assert peer.name == benchmark.PEER
    assert counts.rows == 1
    assert counts.evaluations > 10
    assert counts.residual < 1e-3
