from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_stand_ins import OPTIONS, Info, SquaredLoss, TinyData

import stabnet
from stabnet.interfaces import Backbone, Block, FixedStep, Integrator, VectorField
from stabnet.training import StepSizeSensitivity, fit, step_size_sensitivity

RATE, STEP, END = 15.0, 0.1, 0.9
"""Nine Euler steps of ``ż = −15 z`` multiply by (1 − 1.5)⁹ < 0, ninety finer ones by 0.85⁹⁰ > 0."""
COARSE, FINE = (1 - RATE * STEP) ** 9, (1 - RATE * STEP / 10) ** 90


class Decay(VectorField):
    def __init__(self, n=3, rate=RATE):
        super().__init__()
        self.state_shape = self.feature_shape = (n,)
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, z, u=None):
        return -self.rate * z


class Flat(Backbone):
    def __init__(self, in_shape):
        super().__init__()
        self.in_shape, self.out_shape = in_shape, (math.prod(in_shape),)

    def forward(self, x):
        return x.flatten(1)


class Distracting(Block):
    """A block with a step size of its own, which is nobody's business."""

    state_shape = (3,)

    def __init__(self):
        super().__init__()
        self.step_size = 0.3

    def forward(self, z, u=None):
        return z * (1 if self.step_size == 0.3 else math.nan)


def flow(integrator, rate=RATE, end=END):
    return stabnet.Flow(Decay(3, rate), integrator, initial="features", times=(0.0, end))


def make(dynamics, in_shape=(3,)):
    return stabnet.StabilityModel(in_shape, 3, Flat(in_shape), dynamics, nn.Identity())


def euler(step_size=STEP):
    return stabnet.build("euler", kind="integrator", step_size=step_size)


def batches(n=20, batch_size=6, regression=False):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    y = x if regression else x.argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def test_an_artefact_of_the_step_is_found_to_the_closed_form():
    found = step_size_sensitivity(make(flow(euler())), batches())
    assert found.step_sizes == {"dynamics.integrator": STEP}
    assert (found.samples, found.factor) == (20, 10)
    assert (found.accuracy, found.refined_accuracy, found.changed) == (0.0, 1.0, 1.0)
    assert (found.nfe, found.refined_nfe) == (9, 90)
    x = batches(batch_size=20).dataset.tensors[0].double()
    norms = x.norm(dim=1) * (FINE - COARSE) / (FINE * x.norm() / math.sqrt(20))
    assert found.mean_change == pytest.approx(float(norms.mean()), rel=1e-4)
    assert found.largest_change == pytest.approx(float(norms.max()), rel=1e-4)
    assert found.depends_on_step


def test_small_steps_of_an_accurate_method_leave_the_result_as_it_is():
    rk4 = stabnet.build("rk4", kind="integrator", step_size=0.05)
    found = step_size_sensitivity(make(flow(rk4, rate=1.0)), batches())
    assert found.accuracy == found.refined_accuracy == 1.0
    assert found.changed == 0
    assert found.largest_change < 1e-4
    assert not found.depends_on_step


def test_the_factor_divides_the_step():
    found = step_size_sensitivity(make(flow(euler())), batches(), factor=3)
    assert found.refined_nfe == 27


def test_regression_compares_outputs():
    found = step_size_sensitivity(make(flow(euler())), batches(regression=True))
    assert (found.accuracy, found.refined_accuracy, found.changed) == (None, None, None)
    classified = step_size_sensitivity(make(flow(euler())), batches())
    assert found.mean_change == classified.mean_change > 1
    assert found.depends_on_step


@pytest.mark.parametrize(("samples", "batch_size"), [(6, 6), (7, 6), (1, 20), (13, 4)])
def test_only_the_first_samples_are_used(samples, batch_size):
    x, y = batches().dataset.tensors
    x = x.clone()
    x[samples:] = math.nan  # whoever looks at them is refused by the model
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size)
    found = step_size_sensitivity(make(flow(euler())), loader, samples=samples)
    assert found.samples == samples


def test_every_integrator_of_a_stack_is_refined_once_and_nothing_else():
    shared, block = euler(), Distracting()
    dynamics = stabnet.Stack([flow(shared), block, flow(shared), flow(euler(0.3))])
    model = make(dynamics)
    model.attack = Distracting()
    found = step_size_sensitivity(model, batches())
    assert sorted(found.step_sizes.values()) == [STEP, 0.3]
    assert (found.nfe, found.refined_nfe) == (9 + 9 + 3, 90 + 90 + 30)
    assert math.isfinite(found.largest_change)
    assert isinstance(block, FixedStep)
    assert not isinstance(block, Integrator)


class Delegating(Integrator):
    """An integrator whose step is another's."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    @property
    def step_size(self):
        return self.inner.step_size

    @step_size.setter
    def step_size(self, value):
        self.inner.step_size = value

    def forward(self, vector_field, z0, times, u=None):
        return self.inner(vector_field, z0, times, u)


def test_a_step_seen_through_two_integrators_is_divided_once():
    model = make(flow(Delegating(euler())))
    found = step_size_sensitivity(model, batches())
    assert (found.nfe, found.refined_nfe) == (9, 90)
    assert model.dynamics.integrator.step_size == STEP


def test_adaptive_integrators_and_models_without_any_have_nothing_to_refine():
    adaptive = stabnet.build("dopri5", kind="integrator")
    assert step_size_sensitivity(make(flow(adaptive)), batches()) is None
    assert step_size_sensitivity(nn.Linear(3, 3), batches()) is None


def test_modes_steps_and_gradients_are_as_before():
    model = make(flow(euler()))
    model.train()
    model.dynamics.vector_field.eval()
    modes = [m.training for m in model.modules()]
    seen = []
    model.register_forward_pre_hook(lambda m, _: seen.append((m.training, torch.is_grad_enabled())))
    plain = nn.Sequential(model)
    found = step_size_sensitivity(plain, batches())
    assert set(seen) == {(False, False)}
    assert [m.training for m in model.modules()] == modes
    assert model.dynamics.integrator.step_size == STEP
    assert (found.nfe, found.refined_nfe) == (None, None)
    assert found.refined_accuracy == 1


def test_an_error_on_the_way_leaves_steps_and_modes_as_before():
    model = make(flow(euler()))

    def fail(*_):
        if model.dynamics.integrator.step_size < STEP:
            raise RuntimeError("out of memory")

    model.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        step_size_sensitivity(model, batches())
    assert model.dynamics.integrator.step_size == STEP
    assert model.training


def test_outputs_that_overflow_are_wrong_and_infinitely_far():
    found = step_size_sensitivity(make(flow(euler(), rate=1e9, end=2.0)), batches())
    assert found.accuracy == 0
    assert found.mean_change == math.inf
    assert found.depends_on_step
    assert StepSizeSensitivity(**{**vars(found), "accuracy": None}).depends_on_step


def test_one_output_that_overflows_is_the_largest_change_of_all():
    flows = make(flow(euler(), rate=1.0))
    flows.dynamics.integrator.register_forward_hook(spoil_coarse)
    found = step_size_sensitivity(flows, batches())
    assert found.largest_change == math.inf
    assert found.accuracy == pytest.approx(19 / 20)
    assert found.changed == pytest.approx(1 / 20)


def spoil_coarse(integrator, args, trajectory):
    if integrator.step_size == STEP and len(trajectory.states[-1]) == 2:  # the last batch
        trajectory.states[-1, 0] = math.inf


def test_zero_outputs_do_not_change():
    x = torch.zeros(4, 3)
    found = step_size_sensitivity(make(flow(euler())), [(x, x)])
    assert found.mean_change == found.largest_change == 0


@pytest.mark.parametrize("options", [{"factor": 1}, {"factor": math.nan}, {"samples": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(stabnet.InvalidOptionError, match="factor"):
        step_size_sensitivity(make(flow(euler())), batches(), **options)


def test_no_batch_is_refused():
    with pytest.raises(stabnet.InvalidInputError, match="no batch"):
        step_size_sensitivity(make(flow(euler())), [])


@pytest.mark.parametrize(("other", "depends"), [(0.57, True), (0.565, False), (0.55, True)])
def test_one_percent_of_accuracy_is_notable(other, depends):
    found = StepSizeSensitivity({}, 10, 100, 0.56, other, 0.5, 9.0, 9.0, None, None)
    assert found.depends_on_step == depends


# In the report of a training.


def trained(tmp_path, monkeypatch, dynamics, **options):
    monkeypatch.setattr(sys.modules["stabnet.training.fit"], "save_figure", lambda *_: None)
    model = make(stabnet.Stack([Slice(), dynamics]), (1, 2, 3))
    data = TinyData(Info(task="regression" if options else "classification"))
    options = {**OPTIONS, "epochs": 1, "learning_rate": 1e-9, **options}
    return fit(model, data, run_dir=tmp_path / "run", **options)


class Slice(Block):
    state_shape = (6,)

    def forward(self, z, u=None):
        return z[:, :3]


def test_fit_compares_on_the_test_set_and_the_report_warns(tmp_path, monkeypatch):
    result = trained(tmp_path, monkeypatch, flow(euler()))
    found = result.step_size
    assert found.samples == 21
    assert found.accuracy == pytest.approx(result.test["accuracy"])
    assert found.depends_on_step
    report = result.report.read_text()
    section = report.split("## Step size")[1].split("\n## ")[0]
    assert "`dynamics.stages.1.integrator` 0.1" in section
    assert (
        f"| accuracy | {100 * found.accuracy:.2f} % | {100 * found.refined_accuracy:.2f} % |"
        in (section)
    )
    assert "| evaluations per batch (nfe) | 9 | 90 |" in section
    assert "**The result depends on the step size**" in section


def test_the_report_does_not_warn_of_a_result_that_stays(tmp_path, monkeypatch):
    result = trained(tmp_path, monkeypatch, flow(euler(), rate=0.1))
    assert not result.step_size.depends_on_step
    assert "depends on the step size" not in result.report.read_text()


def test_the_report_of_a_regression_speaks_of_outputs_alone(tmp_path, monkeypatch):
    result = trained(tmp_path, monkeypatch, flow(euler()), objective=SquaredLoss())
    section = result.report.read_text().split("## Step size")[1].split("\n## ")[0]
    assert "accuracy" not in section
    assert "predicted class" not in section
    assert "Outputs change by" in section
    assert "**The result depends on the step size**" in section


def test_the_report_says_why_nothing_was_compared(tmp_path, monkeypatch):
    adaptive = flow(stabnet.build("dopri5", kind="integrator"), rate=1.0)
    result = trained(tmp_path, monkeypatch, adaptive)
    assert result.step_size is None
    assert "integrators (AdaptiveRungeKutta) have no fixed step size" in result.report.read_text()
