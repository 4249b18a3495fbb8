"""The benchmark of the projection: it compares equals, finds what is wrong, and writes results."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("hidden", [(4,), (4, 3, 5)])
def test_all_forms_give_the_same_values_and_gradients(benchmark, hidden, tangent):
    assert benchmark.disagreement(benchmark.Size(3, hidden, tangent, 7)) < 1e-12


def test_a_form_that_differs_is_found(benchmark, monkeypatch):
    right = benchmark.three_cases
    monkeypatch.setattr(benchmark, "three_cases", lambda x, d: 1.001 * right(x, d))
    assert benchmark.disagreement(benchmark.Size(3, (4,), False, 7)) > 1e-4


def test_the_three_cases_are_those_of_the_formula(benchmark):
    x = torch.tensor([-1.0, 0.0, 0.25, 0.5, 3.0], dtype=torch.float64)
    expected = torch.tensor([0, 0, 0.0625, 0.25, 2.75], dtype=torch.float64)
    torch.testing.assert_close(benchmark.three_cases(x, 0.5), expected)


def test_a_field_that_does_not_descend_is_found(benchmark, monkeypatch):
    assert benchmark.violation(320, torch.float64) <= 1e-10
    field = benchmark.ProjectedField.forward
    monkeypatch.setattr(
        benchmark.ProjectedField, "forward", lambda self, t, z, u=None: -field(self, t, z, u)
    )
    assert benchmark.violation(320, torch.float64) > 1e-2


def test_results_are_written(benchmark, tmp_path):
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "projection-cpu-quick.json").read_text())
    assert len(record["results"]) == 8
    assert all(seconds > 0 for row in record["results"] for seconds in row["seconds"].values())
    assert len(record["rises"]) == 2 * 4 * 3
    # All that does not depend on the clock, and on how long it trained, is met even here.
    targets = {what: (value, wanted) for what, value, _, wanted in record["targets"]}
    for what, (value, wanted) in targets.items():
        if "least" not in what and "Euler" not in what:
            assert value <= wanted, what
    assert targets["share of plain Euler steps that raise V, most"][0] > 0.1
    assert record["center"]["base field"] > 1e-3
    table = (tmp_path / "projection-cpu-quick.md").read_text()
    assert str(tmp_path) not in table + json.dumps(record)
    assert table.count("| wavy |") == table.count("| icnn |") == 12


def test_targets_are_judged(benchmark):
    seconds = {
        f"{form}, {passes}": 2.0
        for form in ("differentiated", "tuned")
        for passes in ("forward", "both")
    }
    seconds |= {"closed, forward": 1.5, "closed, both": 1.0}
    row = {"state": 4, "hidden": [64], "tangent": True, "batch": 128, "seconds": seconds}
    rises = {"potential": "wavy", "alpha": 1.0, "step_size": 0.1}
    record = {
        "setting": "here",
        "results": [row | {"disagreement": 1e-12}],
        "violation": {"float64": 1e-11, "float32": 1e-5},
        "center": {"value": 0.0, "field": 1e-11, "base field": 0.3},
        "rises": [rises | {"euler": 0.5, "scaled": 0.0, "shortened": 1e-3}],
        "states": 10,
        "training steps": 3,
    }
    record["targets"] = benchmark.verdicts(record)
    lines = benchmark.markdown(record).split("\n")
    verdicts = [line.split("|")[-2].strip() for line in lines[6:15]]
    yes, no = "yes", "**no**"
    assert verdicts == [yes, no, yes, no, yes, no, yes, no, yes]
    assert "| 4 | 64 | yes | 128 | 1.5e+03 | 1.33 | 1.33 | 1e+03 | 2.00 | 2.00 |" in lines
