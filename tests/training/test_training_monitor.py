from __future__ import annotations

import json
import math
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from training_stand_ins import OPTIONS, Loss, TinyData, make_model

import stabnet
from stabnet.monitors import gradient_norms, singular_values
from stabnet.training import fit

STEPS = 6  # of an epoch; OPTIONS has three


@pytest.fixture(autouse=True)
def _one_thread_and_no_plot(monkeypatch):
    monkeypatch.setattr(sys.modules["stabnet.training.fit"], "save_figure", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(run_dir, model=None, **options):
    return fit(
        model or make_model(),
        TinyData(),
        run_dir=run_dir,
        **{**OPTIONS, "objective": Loss(), **options},
    )


def weight(model):
    return {"weight": model.head.linear.weight.tolist()}


def nosy(model):
    """Look at everything: draw random numbers, differentiate, change modes, use real monitors."""
    assert not any(m.training for m in model.modules())
    x, y = torch.rand(4, 1, 2, 3), torch.tensor([0, 1, 2, 0])
    random.random()
    np.random.rand()
    nn.functional.cross_entropy(model(x), y).backward()
    (values,) = singular_values(model, x)
    norms = gradient_norms(model, x, y)
    model.head.drop.train()
    return {"values": values.tolist(), "norms": norms.tolist(), **weight(model)}


def lines(folder):
    return [json.loads(line) for line in (folder / "monitor.jsonl").read_text().splitlines()]


def trained_state(result):
    return torch.load(result.checkpoint, weights_only=True)["engine"]


def assert_same_state(a, b):
    a, b = trained_state(a), trained_state(b)
    for part in ("saved", "others"):
        assert a["module"][part].keys() == b["module"][part].keys()
        for name, tensor in a["module"][part].items():
            assert torch.equal(tensor, b["module"][part][name]), name
    assert torch.equal(a["random"][0]["torch"], b["random"][0]["torch"])
    assert a["random"][0]["python"] == b["random"][0]["python"]


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("runs") / "unwatched")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("runs") / "watched", monitor=nosy, monitor_every=4)


def test_training_is_bit_identical_with_and_without_a_monitor(watched, unwatched):
    assert_same_state(watched, unwatched)
    assert watched.weights.read_bytes() == unwatched.weights.read_bytes()
    assert watched.test == unwatched.test
    assert unwatched.monitored == ()
    assert not (unwatched.run_dir / "monitor.jsonl").exists()
    assert "monitor.jsonl" not in unwatched.report.read_text()


def test_the_monitor_is_called_before_the_first_step_regularly_and_after_the_last(watched):
    assert [r["step"] for r in watched.monitored] == [0, 4, 8, 12, 16, 18]
    assert list(watched.monitored) == lines(watched.run_dir)
    assert watched.monitored[0]["weight"] == weight(make_model())["weight"]
    last = trained_state(watched)["module"]["saved"]["model.head.linear.weight"]
    assert watched.monitored[-1]["weight"] == last.tolist()
    report = watched.report.read_text()
    assert "monitor.jsonl" in report
    assert "s of training, its monitor and validation" in report


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [0, 6, 12]), (12, [0, 12]), (5, [0, 5, 10, 12]), (99, [0, 12])]
)
def test_steps_are_counted_over_epochs_and_the_last_is_there_once(tmp_path, every, steps):
    result = train(tmp_path / "run", epochs=2, monitor=weight, monitor_every=every)
    assert [r["step"] for r in result.monitored] == steps
    weights = [json.dumps(r["weight"]) for r in result.monitored]
    assert len(set(weights)) == len(weights)


class KillError(Exception):
    """What stands for a kill."""


class StoppedLoss(Loss):
    """Stops at a training step; a run in the same folder goes on with the loss itself."""

    def __init__(self, at):
        super().__init__()
        self.steps_left = at

    def forward(self, model, x, y):
        self.steps_left -= self.training
        if self.steps_left < 0:
            raise KillError
        return super().forward(model, x, y)


StoppedLoss.__qualname__, StoppedLoss.__module__ = Loss.__qualname__, Loss.__module__


def test_a_resumed_run_has_all_records_and_none_twice(tmp_path, watched):
    options = {"monitor": nosy, "monitor_every": 4}
    with pytest.raises(KillError):
        train(tmp_path / "run", objective=StoppedLoss(STEPS + 3), **options)
    # The record of step 8 is newer than the checkpoint after step 6, and is made again.
    assert [r["step"] for r in lines(tmp_path / "run")] == [0, 4, 8]
    resumed = train(tmp_path / "run", make_model(seed=5), resume=True, **options)
    assert resumed.monitored == watched.monitored
    assert lines(tmp_path / "run") == lines(watched.run_dir)
    assert_same_state(resumed, watched)


def test_a_run_that_was_cut_short_has_its_last_step_and_a_resume_the_regular_ones(
    tmp_path, watched
):
    options = {"monitor": nosy, "monitor_every": 4}
    cut = train(tmp_path / "run", time_limit=1e-6, **options)
    assert [r["step"] for r in cut.monitored] == [0, 1]
    resumed = train(tmp_path / "run", resume=True, **options)
    assert resumed.monitored == watched.monitored
    assert lines(tmp_path / "run") == lines(watched.run_dir)


def test_a_finished_run_that_is_resumed_keeps_its_records_even_without_a_monitor(tmp_path):
    first = train(tmp_path / "run", epochs=1, monitor=weight)
    for options in ({}, {"monitor": weight, "monitor_every": 1}):
        again = train(tmp_path / "run", epochs=1, resume=True, **options)
        assert again.monitored == first.monitored
        assert lines(tmp_path / "run") == list(first.monitored)


def test_a_checkpoint_from_before_monitors_is_resumed(tmp_path):
    result = train(tmp_path / "run", epochs=1)
    state = torch.load(result.checkpoint, weights_only=True)
    del state["monitored"]
    torch.save(state, result.checkpoint)
    assert train(tmp_path / "run", epochs=1, resume=True).monitored == ()


def test_records_that_a_resumed_run_does_not_have_are_not_in_its_file(tmp_path):
    train(tmp_path / "run", time_limit=1e-6)
    with pytest.raises(KillError):
        train(
            tmp_path / "run",
            objective=StoppedLoss(3),
            resume=True,
            monitor=weight,
            monitor_every=1,
        )
    assert [r["step"] for r in lines(tmp_path / "run")] == [1, 2, 3]
    assert train(tmp_path / "run", resume=True).monitored == ()
    assert not (tmp_path / "run" / "monitor.jsonl").exists()


def test_a_record_does_not_write_those_before_it_again(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        sys.modules["stabnet.training.run_folder"].RunFolder,
        "write_monitored",
        lambda _, records: written.append(len(records)),
    )
    result = train(tmp_path / "run", epochs=1, monitor=weight, monitor_every=1)
    assert written == [1]
    assert lines(tmp_path / "run") == list(result.monitored[1:])


def test_numbers_that_are_not_finite_are_null_in_the_file_only(tmp_path):
    values = {"a": math.nan, "b": [1.0, [math.inf]], "c": {"d": -math.inf}, "e": None, "f": True}
    result = train(tmp_path / "run", epochs=1, monitor=lambda _: values)
    assert math.isnan(result.monitored[0]["a"])
    assert result.monitored[0]["b"] == [1.0, [math.inf]]
    assert lines(tmp_path / "run")[0] == {
        "step": 0, "a": None, "b": [1.0, [None]], "c": {"d": None}, "e": None, "f": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3.0, "returned 3.0; expected a dict"),
        ({1: 2.0}, "expected a dict"),
        ({"step": 1}, "named 'step'"),
        ({"norm": torch.ones(2)}, r"norm=tensor.*tensor\.tolist"),
        ({"norms": [np.float32(1)]}, "norms="),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_training_and_leaves_the_folder_free(
    tmp_path, returned, message
):
    model = make_model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        train(tmp_path / "run", model, monitor=lambda _: returned)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    train(tmp_path / "run", model, epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": weight, "monitor_every": 0}, "monitor_every=0"),
        ({"monitor": weight, "monitor_every": 1.5}, "monitor_every=1.5"),
        ({"monitor_every": 5}, "no use without a monitor"),
        ({"monitor": {"norm": 1}}, "must be a function"),
    ],
)
def test_impossible_options_of_a_monitor_are_refused(tmp_path, options, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_monitor_itself_leaves_modes_and_generators(tmp_path):
    model = make_model()
    model.train()
    before = torch.get_rng_state()

    def broken(model):
        torch.rand(())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", model, monitor=broken)
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
