"""The benchmark of Lyapunov training: it compares equals, counts memory, and writes results."""

from __future__ import annotations

import json

import pytest
import torch

CPU = torch.device("cpu")


@pytest.mark.parametrize("form", ["simplex", "direction"])
def test_both_steps_have_one_loss_and_one_set_of_gradients(benchmark, form):
    size = benchmark.Size(form, batch=5, samples=7, classes=4, width=3)
    assert benchmark.disagreement(size, CPU, chunk=2) < 1e-12


def test_a_step_that_differs_is_found(benchmark, monkeypatch):
    size = benchmark.Size("simplex", batch=3, samples=7, classes=4, width=3)
    other = benchmark.Problem.step

    def wrong(self, rows=slice(None)):
        loss, *gradients = other(self, rows)
        return loss, *gradients[:-1], 1.001 * gradients[-1]

    monkeypatch.setattr(benchmark.Problem, "step", wrong)
    assert benchmark.disagreement(size, CPU) > 1e-4


def test_peak_memory_counts_what_lives_at_once(benchmark):
    x = torch.ones(1000)

    def in_turn():
        for _ in range(5):
            x.exp()

    def together():
        return [x.exp() for _ in range(5)]

    def viewed():
        return x.view(10, 100).T, x.add_(0)

    sizes = [benchmark.peak_bytes(run, CPU) for run in (in_turn, together, viewed)]
    assert sizes == [4000, 20000, 0]


def test_peak_memory_counts_what_is_saved_for_the_backward_pass(benchmark):
    x = torch.ones(1000, requires_grad=True)

    def saving():
        y = x
        for _ in range(4):
            y = y.exp()  # saves its result
        (gradient,) = torch.autograd.grad(y.sum(), x)
        return gradient

    def not_saving():
        with torch.no_grad():
            y = x
            for _ in range(4):
                y = y.exp()

    assert benchmark.peak_bytes(not_saving, CPU) == 8000
    assert 16000 < benchmark.peak_bytes(saving, CPU) < 30000


def test_the_expanded_step_takes_at_least_what_is_said(benchmark):
    size = benchmark.Size("simplex", batch=4, samples=32, classes=10, width=16)
    found = benchmark.measure(size, CPU, 1, 1e9)
    assert found["bytes"]["expanded"] > size.expanded_bytes
    assert found["bytes"]["step"] < found["bytes"]["expanded"] / 8
    assert set(found["seconds"]) == {"step", "product", "expanded"}
    assert "expanded" not in benchmark.measure(size, CPU, 1, 1e3)["seconds"]


def test_results_are_written(benchmark, tmp_path, monkeypatch):
    build = benchmark.stabnet.build

    def tiny(name, **options):
        if name == "lyanet":
            options["backbone"] = {"name": "linear", "width": 64}
        return build(name, **options)

    monkeypatch.setattr(benchmark.stabnet, "build", tiny)
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "lyapunov-cpu-quick.json").read_text())
    assert len(record["results"]) == 16
    assert set(record["by"]) == {"samples", "batch", "classes"}
    for by, places in record["by"].items():
        assert len({record["results"][i][by] for i in places}) == (4 if by == "classes" else 3)
    assert set(record["training"]) == {"lyapunov", "back-propagated", "encoder alone"}
    table = (tmp_path / "lyapunov-cpu-quick.md").read_text()
    assert str(tmp_path) not in table + json.dumps(record)
    assert table.count("| simplex |") == table.count("| direction |") == 8
    assert (tmp_path / "lyapunov-cpu-quick.png").stat().st_size > 0


def test_targets_are_judged(benchmark):
    row = {"form": "simplex", "batch": 64, "samples": 512, "classes": 10, "width": 128}
    row["seconds"] = {"step": 1.0, "expanded": 31.0, "product": 0.5}
    row["bytes"] = {"step": 10, "expanded": 190, "product": 5}
    record = {
        "setting": {"text": "here"},
        "disagreement": {"simplex": 1e-12},
        "results": [row],
        "rk4": {"f": 1.2},
        "training": {},
    }
    record["targets"] = benchmark.verdicts(record)
    lines = benchmark.markdown(record).split("\n")
    verdicts = [line.split("|")[-2].strip() for line in lines[6:10]]
    assert verdicts == ["yes", "yes", "**no**", "**no**"]
