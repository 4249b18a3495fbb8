"""The benchmark of depth: it counts what is saved, finds wrong gradients, and writes results."""

from __future__ import annotations

import json
import math

import pytest
import torch

CPU = torch.device("cpu")
STATE = 3 * 4 * 4  # bytes of three states of four numbers


def test_saved_bytes_count_each_storage_once_and_no_parameter(benchmark):
    x = torch.ones(1000, requires_grad=True)
    w = torch.ones(1000, requires_grad=True)

    def saving():
        y = (x * w).exp()  # saves both factors, and its result
        return y[:500] * y[500:]  # saves both halves of one storage

    assert benchmark.saved_bytes(saving, []) == 12000
    assert benchmark.saved_bytes(saving, [w]) == 8000
    with torch.no_grad():
        assert benchmark.saved_bytes(saving, []) == 0


@pytest.mark.parametrize("depth", [4, 9])
def test_saved_states_are_counted_exactly(benchmark, depth):
    problem = benchmark.Problem(
        benchmark.Case((4,), 3, "symplectic_euler"), depth, CPU, torch.float32
    )
    saved = {
        name: benchmark.saved_bytes(forward, problem.parameters)
        for name, forward in problem.ways().items()
    }
    # The first state and the last, one every √depth, and one before every block.
    assert saved["reversible"] == 2 * STATE
    assert saved["reversible, √depth"] == (math.ceil(depth / math.isqrt(depth)) + 1) * STATE
    assert saved["checkpoint, each"] == depth * STATE
    # A state, which is what the drift is evaluated at, the moved q, and both activations.
    assert saved["stored"] == depth * (STATE + 3 * STATE // 2)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
@pytest.mark.parametrize("scheme", ["symplectic_euler", "leapfrog"])
def test_all_ways_give_the_same_gradients(benchmark, shape, scheme):
    found = benchmark.disagreement(benchmark.Case(shape, 3, scheme, compared=8), CPU, torch.float64)
    assert len(found) == 4
    assert max(found.values()) < 1e-13


def test_a_wrong_gradient_is_found(benchmark, monkeypatch):
    inverse = benchmark.Reversible.forward

    def wrong(self, z, u=None):
        return inverse(self, z if self.stored else 1.001 * z, u)

    monkeypatch.setattr(benchmark.Reversible, "forward", wrong)
    case = benchmark.Case((4,), 3, "leapfrog", compared=4)
    found = benchmark.disagreement(case, CPU, torch.float64)
    assert min(found["reversible"], found["reversible, √depth"]) > 1e-4
    assert max(found["checkpoint, √depth"], found["checkpoint, each"]) < 1e-13


def test_runs_take_turns(benchmark):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = benchmark.in_turn(runs, CPU, 3)
    assert order == list("ababab")
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}


def test_results_are_written(benchmark, tmp_path):
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--quick", "--repeats", "2", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "depth-cpu-quick.json").read_text())
    assert len(record["cases"]) == 4
    for case in record["cases"]:
        assert [row["depth"] for row in case["rows"]] == [4, 8]
        for row in case["rows"]:
            assert all(len(times) == 2 for times in row["seconds"].values())
            assert min(min(times) for times in row["seconds"].values()) > 0
            assert row["peak"]["reversible"] < row["peak"]["stored"] or row["depth"] == 4
    # All that does not depend on the clock is met even here.
    targets = [target for target in record["targets"] if "time" not in target[0]]
    for what, value, relation, wanted in targets:
        assert value <= wanted if relation == "≤" else value >= wanted, what
    table = (tmp_path / "depth-cpu-quick.md").read_text()
    assert str(tmp_path) not in table + json.dumps(record)
    assert table.count("| checkpoint, each |") == 12
    assert (tmp_path / "depth-cpu-quick.png").stat().st_size > 0


def test_targets_are_judged(benchmark):
    ways = ("reversible", "reversible, √depth", "stored")
    rows = [
        {
            "depth": depth,
            "saved": dict(zip(ways, (saved, 3, depth), strict=True)),
            "seconds": dict(zip(ways, ([3.0, 1.7, 0.1], [1.4], [1.0]), strict=True)),
            "peak": dict.fromkeys(ways, 1.1 * depth),
            "parameters": depth,
        }
        for depth, saved in ((50, 10), (100, 10), (800, 12))
    ]
    del rows[2]["seconds"], rows[2]["peak"]
    case = {
        "state_shape": [64],
        "batch": 128,
        "scheme": "leapfrog",
        "potential": "",
        "rows": rows,
        "compared": 200,
    }
    differences = {"float32": {"reversible": 1e-4}, "float64": {"reversible": 1e-9}}
    record = {"setting": "here", "cases": [case | {"differences": differences}]}
    record["targets"] = benchmark.verdicts(record)
    lines = benchmark.markdown(record).split("\n")
    verdicts = [line.split("|")[-2].strip() for line in lines[6:19]]
    yes, no = "yes", "**no**"
    assert verdicts == [no, yes, no, yes, no, yes, yes, yes, yes, yes, yes, yes, no]
    assert "(64, leapfrog, depth 50) | 1.7 | ≤ 1.8 | yes |" in lines[9]
    assert "| 50 | reversible | 1e-05 | 5.5e-05 | 5e-06 | 1700 | 1.70 | 0.10 |" in lines
    assert "| 800 | reversible | 1.2e-05 |  |  |  |  |  |" in lines
