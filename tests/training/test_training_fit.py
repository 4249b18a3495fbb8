from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_stand_ins import (
    OPTIONS,
    SIZES,
    Info,
    Loss,
    SquaredLoss,
    TinyData,
    _Flat,
    make_model,
)

import stabnet
from stabnet.interfaces import Objective
from stabnet.training import NonFiniteLossError, evaluate, fit


@pytest.fixture(autouse=True)
def _one_thread_and_no_plot(monkeypatch):
    monkeypatch.setattr(sys.modules["stabnet.training.fit"], "save_figure", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(run_dir, model=None, data=None, **options):
    return fit(
        model or make_model(),
        data or TinyData(),
        run_dir=run_dir,
        **{**OPTIONS, "objective": Loss(), **options},
    )


def without_times(history):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in history]


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("runs") / "whole")


def test_a_killed_run_resumes_to_the_bit_identical_result(tmp_path, uninterrupted):
    steps = -(-SIZES["train"] // OPTIONS["batch_size"])
    script = Path(__file__).with_name("training_stand_ins.py")
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), str(steps + steps // 2)],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert not (tmp_path / "run" / "report.md").exists()

    other_start = make_model(seed=5)
    resumed = train(tmp_path / "run", model=other_start, resume=True)

    assert_same_weights(resumed.model, uninterrupted.model)
    assert resumed.model.head.scale == uninterrupted.model.head.scale
    assert without_times(resumed.history) == without_times(uninterrupted.history)
    assert resumed.test == uninterrupted.test
    assert resumed.weights.read_bytes() == uninterrupted.weights.read_bytes()
    last = [torch.load(r.checkpoint, weights_only=True)["engine"] for r in (resumed, uninterrupted)]
    for name, tensor in last[0]["module"]["saved"].items():
        assert torch.equal(tensor, last[1]["module"]["saved"][name])
    assert json.dumps(last[0]["random"][0]["python"]) == json.dumps(last[1]["random"][0]["python"])


def test_training_learns_and_the_model_holds_the_best_validation_epoch(uninterrupted):
    values = [r["validation_accuracy"] for r in uninterrupted.history]
    assert uninterrupted.best_validation == max(values) > 0.5
    assert uninterrupted.best_epoch == 1 + values.index(max(values))
    again = evaluate(
        uninterrupted.model, TinyData().loader("validation", batch_size=20, shuffle=False,
                                               augment=False), Loss()
    )  # fmt: skip
    assert again["accuracy"] == pytest.approx(uninterrupted.best_validation, abs=1e-6)
    assert uninterrupted.complete


def test_the_run_folder_is_complete_and_nothing_half_written_is_left(uninterrupted):
    folder = uninterrupted.run_dir
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "report.md",
        "checkpoint/state.pt",
        "plots/training.png",
    }
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(uninterrupted.history)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["name"] == "tiny_for_training_tests"
    assert config["training"]["learning_rate"] == OPTIONS["learning_rate"]
    assert config["data"]["sizes"] == SIZES
    assert config["environment"]["torch"] == torch.__version__


def test_the_saved_weights_rebuild_the_best_model(uninterrupted):
    loaded = stabnet.load(uninterrupted.weights)
    assert_same_weights(loaded, uninterrupted.model)
    assert not loaded.training
    assert uninterrupted.model.training


def test_the_report_tells_accuracy_data_solves_and_guarantees(uninterrupted):
    report = uninterrupted.report.read_text()
    assert f"Test accuracy **{100 * uninterrupted.test['accuracy']:.2f} %**" in report
    assert "44 train, 20 validation, 21 test" in report
    assert "augmentation of the training inputs: noise" in report
    assert "mean evaluations of the field or cell per batch (nfe): 7 on the test set" in report
    assert "share of converged samples" in report
    assert "conditional" in report
    assert "cut short" not in report
    assert "bare state dict" not in report


def test_the_report_names_parts_with_the_same_guarantee_once(tmp_path):
    x, y = torch.rand(40, 2), torch.arange(40) % 2
    data = stabnet.data.from_tensors(x, y, x[:10], y[:10], name="points", num_outputs=2)
    torch.manual_seed(0)
    model = stabnet.build("hamiltonian_net", in_shape=(2,), num_outputs=2, width=4, blocks=5)
    result = stabnet.training.fit(
        model, stabnet.data.split(data), epochs=1, run_dir=tmp_path / "run", progress=False
    )
    report = result.report.read_text()
    assert report.count("the Jacobian of the block in the state is symplectic") == 1
    assert "dynamics.stages.1.blocks.0 and 4 like it" in report


def test_the_learning_rate_falls_along_a_cosine_over_all_steps(uninterrupted):
    rates = [r["learning_rate"] for r in uninterrupted.history]
    expected = [0.05 * (1 + np.cos(np.pi * e / 3)) / 2 for e in range(3)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_a_constant_schedule_keeps_the_learning_rate(tmp_path):
    result = train(tmp_path / "run", schedule="constant", epochs=2)
    assert [r["learning_rate"] for r in result.history] == [0.05, 0.05]


def test_training_steps_are_adam_with_cosine_annealing(tmp_path):
    """An independent loop over the same batches gives the same weights."""

    class Plain(Objective):
        def forward(self, model, x, y):
            return nn.functional.cross_entropy(model(x), y), {}

    def plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 3))

    class Ordered(TinyData):
        def loader(self, split, *, batch_size, shuffle, augment):
            return super().loader(split, batch_size=batch_size, shuffle=False, augment=False)

    data = Ordered()
    fitted = plain()
    result = train(tmp_path / "run", fitted, data, objective=Plain(), gradient_clip=None, epochs=2)
    reference = plain()
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.05, betas=(0.9, 0.999))
    batches = list(data.loader("train", batch_size=8, shuffle=False, augment=False))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * len(batches))
    for _ in range(2):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(reference(x), y).backward()
            optimizer.step()
            schedule.step()
    state = torch.load(result.checkpoint, weights_only=True)["engine"]["module"]["saved"]
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(state[f"model.{name}"], tensor)


def test_modes_and_generators_are_as_they_were_before(tmp_path):
    model = make_model()
    model.train()
    model.backbone.eval()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(11)
    np.random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(tmp_path / "run", model, epochs=1)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_time_limit_stops_cleanly_and_a_resume_finishes_identically(tmp_path, uninterrupted):
    cut = train(tmp_path / "run", time_limit=1e-6)
    assert not cut.complete
    assert len(cut.history) == 1
    assert not cut.history[0]["complete"]
    assert cut.checkpoint.is_file()
    assert "cut short" in cut.report.read_text()
    resumed = train(tmp_path / "run", resume=True)
    assert resumed.complete
    assert_same_weights(resumed.model, uninterrupted.model)
    assert without_times(resumed.history) == without_times(uninterrupted.history)


def test_resuming_a_finished_run_only_reports_it(tmp_path):
    first = train(tmp_path / "run", epochs=1)
    again = train(tmp_path / "run", epochs=1, resume=True)
    assert again.history == first.history
    assert again.test == first.test


def test_resume_with_other_options_lists_the_differences(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(stabnet.InvalidOptionError) as error:
        train(tmp_path / "run", epochs=2, batch_size=16, resume=True)
    assert "training.epochs was 1 and is now 2" in str(error.value)
    assert "training.batch_size was 8 and is now 16" in str(error.value)


def test_resume_with_another_split_of_the_data_is_refused(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(stabnet.InvalidOptionError, match="first_validation_batch"):
        train(tmp_path / "run", data=TinyData(seed=7), epochs=1, resume=True)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(stabnet.InvalidOptionError, match=r"not empty|no run to resume"):
            train(tmp_path / "run", resume=resume)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"garbage", b"]", b"\x80\x02."])
def test_a_damaged_checkpoint_gives_a_clear_error(tmp_path, content):
    result = train(tmp_path / "run", epochs=1)
    result.checkpoint.write_bytes(content)
    with pytest.raises(stabnet.CheckpointError, match="cannot be read"):
        train(tmp_path / "run", epochs=1, resume=True)


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ("[]", "no run")])
def test_a_damaged_configuration_gives_a_clear_error(tmp_path, content, message):
    run = train(tmp_path / "run", epochs=1).run_dir
    (run / "config.json").write_text(content)
    with pytest.raises(stabnet.CheckpointError, match=message):
        train(run, epochs=1, resume=True)


def test_resume_with_another_augmentation_is_refused(tmp_path):
    train(tmp_path / "run", epochs=1)
    data = TinyData(Info(augmentation="none"))
    with pytest.raises(stabnet.InvalidOptionError, match="augmentation was 'noise' and is now"):
        train(tmp_path / "run", data=data, epochs=1, resume=True)


def test_a_loss_that_becomes_nan_names_step_and_epoch_and_keeps_the_checkpoint(tmp_path):
    class Exploding(Loss):
        calls = 0

        def forward(self, model, x, y):
            loss, logs = super().forward(model, x, y)
            self.calls += self.training
            return loss * (float("nan") if self.calls == 8 else 1), logs

    model = make_model()
    with pytest.raises(NonFiniteLossError, match="at step 2 of epoch 2"):
        train(tmp_path / "run", model, objective=Exploding())
    state = torch.load(tmp_path / "run" / "checkpoint" / "state.pt", weights_only=True)
    assert len(state["ledger"]["history"]) == 1
    assert all(t.isfinite().all() for t in state["engine"]["module"]["saved"].values())


def test_bfloat16_autocast_trains_and_precisions_can_follow_each_other(tmp_path):
    seen = []

    class Watching(Loss):
        def forward(self, model, x, y):
            seen.append(model.backbone(x).dtype)
            return super().forward(model, x, y)

    half = train(tmp_path / "half", objective=Watching(), mixed_precision="bf16", epochs=1)
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.model(torch.rand(2, 1, 2, 3)).dtype == torch.float32
    seen.clear()
    train(tmp_path / "full", objective=Watching(), epochs=1)
    assert set(seen) == {torch.float32}


def test_regression_keeps_the_lowest_validation_loss(tmp_path):
    data = TinyData(Info(task="regression"))
    result = train(tmp_path / "run", data=data, objective=SquaredLoss())
    losses = [r["validation_loss"] for r in result.history]
    assert result.metric == "loss"
    assert result.best_validation == min(losses)
    assert "accuracy" not in result.test
    assert "Test loss" in result.report.read_text()


def test_an_objective_says_what_its_epochs_are_judged_by(tmp_path):
    class ByLoss(Loss):
        metric = "loss"

    result = train(tmp_path / "run", objective=ByLoss())
    losses = [r["validation_loss"] for r in result.history]
    assert (result.metric, result.best_validation) == ("loss", min(losses))


def test_of_epochs_equal_on_the_validation_set_the_last_is_kept(tmp_path):
    class ZeroOutsideTraining(SquaredLoss):
        def forward(self, model, x, y):
            return super().forward(model, x, y)[0] * self.training, {}

    data = TinyData(Info(task="regression"))
    result = train(tmp_path / "run", data=data, objective=ZeroOutsideTraining())
    assert [r["validation_loss"] for r in result.history] == [0.0] * len(result.history)
    assert result.best_epoch == len(result.history) > 1


def test_an_undescribed_model_is_trained_and_the_report_says_so(tmp_path):
    class Plain(Objective):
        def forward(self, model, x, y):
            return nn.functional.cross_entropy(model(x), y), {}

    def plain():
        """Build a model whose layers share a weight that is part of a larger storage."""
        first, second = nn.Linear(6, 6), nn.Linear(6, 6)
        first.weight = second.weight = nn.Parameter(torch.randn(6, 8)[:, :6])
        return nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Linear(6, 3))

    model = plain()
    result = train(tmp_path / "run", model, objective=Plain(), epochs=1)
    assert "bare state dict" in result.report.read_text()
    assert "The model states none" in result.report.read_text()
    assert "accuracy" in result.test
    other = plain()
    stabnet.load_weights(other, result.weights)
    assert_same_weights(other, model)


def test_clipping_bounds_the_first_step_of_plain_descent(tmp_path):
    model, before = make_model(), make_model()
    one_batch = TinyData(sizes={**SIZES, "train": 8})
    train(tmp_path / "run", model, one_batch, optimizer={"name": "sgd", "momentum": 0.0},
          gradient_clip=1e-3, learning_rate=1.0, epochs=1)  # fmt: skip
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    moved = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


def test_frozen_parameters_stay_and_a_model_without_others_is_refused(tmp_path):
    model = make_model()
    model.backbone.requires_grad_(False)
    before = model.backbone.linear.weight.clone()
    train(tmp_path / "run", model, epochs=1)
    assert torch.equal(model.backbone.linear.weight, before)
    model.requires_grad_(False)
    with pytest.raises(stabnet.InvalidOptionError, match="no parameter to train"):
        train(tmp_path / "other", model)


def test_tensorboard_events_are_written(tmp_path):
    result = train(tmp_path / "run", epochs=1, tensorboard=True)
    assert any((result.run_dir / "tensorboard").iterdir())


def test_progress_goes_to_the_standard_error(tmp_path, capsys):
    train(tmp_path / "run", epochs=1, progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "epoch 1" in err
    assert "validation loss" in err


class _NeedsFlow(Loss):
    dynamics = "flow"


class _NeedsEquilibrium(Loss):
    dynamics = "equilibrium"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": _NeedsFlow()}, "needs a model whose dynamics is a Flow"),
        ({"objective": SquaredLoss()}, "is for regression, but 'tiny' is data for classification"),
        ({"data": TinyData(Info(num_outputs=2))}, "num_outputs=3, but 'tiny' has 2"),
        ({"data": TinyData(Info(in_shape=(6,)))}, r"in_shape=\(1, 2, 3\), but 'tiny' has \(6,\)"),
        ({"data": TinyData(sizes={**SIZES, "validation": 0})}, "validation set has no batch"),
        ({"epochs": 0}, "epochs=0 must be"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be"),
        ({"gradient_clip": 0.0}, "gradient_clip=0.0 must be"),
        ({"schedule": "linear"}, "schedule='linear' is unknown"),
        ({"mixed_precision": "half"}, "mixed_precision='half' is unknown"),
        ({"mixed_precision": "fp16"}, "the CPU has none of"),
        ({"time_limit": 0}, "time_limit=0 must be"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used"),
        ({"optimizer": {"name": "adam", "lr": 1.0}}, "leave it out of the optimizer's"),
        ({"optimizer": {"name": "adam", "eps": torch.ones(())}}, "cannot be kept in config.json"),
        ({"seed": 2**70}, "is too large"),
        ({"data": Info()}, r"data is a Info, .* give stabnet.data.split"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        train(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_an_unknown_optimizer_is_named_with_its_nearest_match(tmp_path):
    with pytest.raises(stabnet.UnknownNameError, match="did you mean 'adam'"):
        train(tmp_path / "run", optimizer="adan")


def test_an_objective_for_equilibria_takes_a_stack_with_one(tmp_path):
    parts = make_model()
    stack = stabnet.Stack([parts.dynamics])
    model = stabnet.StabilityModel((1, 2, 3), 3, _Flat((1, 2, 3)), stack, parts.head)
    assert train(tmp_path / "run", model, objective=_NeedsEquilibrium(), epochs=1).complete


@pytest.mark.parametrize("batch_size", [1, 431])
def test_batch_size_that_leaves_batch_norm_a_single_sample_is_refused(tmp_path, batch_size):
    data = stabnet.data.split(stabnet.data.load("digits"))
    model = stabnet.build("deq", in_channels=1, image_size=8, backbone="linear")
    with pytest.raises(stabnet.InvalidOptionError, match="needs two; use another, such as"):
        fit(model, data, batch_size=batch_size, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_trained_model_is_renormalized_before_it_is_tested_and_written(tmp_path):
    class Lagging(nn.Linear):
        def renormalize(self):
            with torch.no_grad():
                self.weight.div_(self.weight.norm())

    model = make_model()
    model.head.linear = Lagging(4, 3)
    result = train(tmp_path / "run", model)
    assert float(model.head.linear.weight.detach().norm()) == pytest.approx(1, abs=1e-6)
    written = make_model()
    stabnet.load_weights(written, result.weights)
    assert_same_weights(written, model)


def test_renormalizing_counts_the_parts_that_needed_it():
    assert stabnet.renormalize(nn.Linear(2, 2)) == 0
