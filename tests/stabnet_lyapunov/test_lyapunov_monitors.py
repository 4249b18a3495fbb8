from __future__ import annotations

import math

import pytest
import stabnet_lyapunov
import torch
from stabnet_lyapunov import EarlyTermination, decay_share, early_termination
from torch import nn

import stabnet
from stabnet.interfaces import Backbone, Context, Potential, VectorField


class Plain(Backbone):
    in_shape = out_shape = (2,)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, torch.is_grad_enabled(), len(x)))
        return x * self.scale


class Linear(VectorField):
    """``ż_k = −a_k z_k + c_k``, solved exactly by :func:`exact`."""

    state_shape = feature_shape = (2,)

    def __init__(self, rates=(1.0, 1.0), drift=(0.0, 0.0)):
        super().__init__()
        self.register_buffer("rates", torch.tensor(rates))
        self.register_buffer("drift", torch.tensor(drift))
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, t, z, u=None):
        self.calls += 1
        return self.drop(-self.rates * z + self.drift)


def make(field=None, head=None, times=(0.0, 1.0), step=0.05):
    integrator = stabnet.build("rk4", kind="integrator", step_size=step)
    flow = stabnet.Flow(field or Linear(), integrator, initial="features", times=times)
    model = stabnet.StabilityModel((2,), 2, Plain(), flow, head or nn.Identity())
    return model.double()


def points(n=8):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# The share of decayed pairs.


def test_a_linear_flow_decays_at_twice_its_rate_exactly():
    x = points()
    report = decay_share(make(), x, torch.zeros_like(x), kappa=2.0)
    assert report.share == 1
    # The truncation takes its part off V at every time, and so lowers the ratio a little.
    assert 1 - 1e-4 < report.worst_ratio <= 1 + 1e-6
    assert report.times == pytest.approx([k / 10 for k in range(11)])
    mean = float(x.square().sum(1).mean() / 2)
    expected = [mean * math.exp(-2 * t) for t in report.times]
    assert report.potential == pytest.approx(expected, rel=1e-4)
    assert (report.samples, report.kappa, report.slack) == (8, 2.0, 1.01)


def test_the_share_is_that_of_the_times_before_the_bound_is_passed():
    # V decays at 2 and the bound at 2.25: it is passed when exp(0.25 t) > 1.1, at t = 0.381….
    x = points()
    report = decay_share(make(), x, torch.zeros_like(x), kappa=2.25, slack=1.1)
    assert report.share == 0.3
    assert report.worst_ratio == pytest.approx(math.exp(0.25), rel=1e-4)


def test_each_sample_counts_by_itself():
    field = Linear(rates=(1.0, 3.0))  # V decays at 2 along one axis and at 6 along the other
    x = torch.eye(2, dtype=torch.float64).repeat(3, 1)
    report = decay_share(make(field), x, torch.zeros_like(x), kappa=4.0)
    assert report.share == 0.5
    assert report.worst_ratio == pytest.approx(math.exp(2), rel=1e-4)


def test_the_start_does_not_count_and_is_prepended_where_it_is_missing():
    field = Linear(rates=(-1.0, -1.0))  # V grows
    x = points()
    y = torch.zeros_like(x)
    growing = decay_share(make(field), x, y, kappa=1.0)
    assert growing.share == 0
    late = decay_share(make(field), x, y, kappa=1.0, times=[0.5, 1.0])
    assert late.times == (0.0, 0.5, 1.0)
    assert late.worst_ratio == pytest.approx(math.exp(3), rel=1e-4)


def test_the_time_of_the_bound_runs_from_the_flows_start():
    x = points()
    report = decay_share(make(times=(2.0, 3.0)), x, torch.zeros_like(x), kappa=2.0)
    assert report.times[0] == 2
    assert report.share == 1
    assert report.worst_ratio > 0.99


def test_cross_entropy_is_the_potential_of_labels():
    field = Linear(rates=(0.0, 0.0), drift=(1.0, -1.0))  # logits z + t(1, −1)
    x, y = points(), torch.zeros(8, dtype=torch.long)
    report = decay_share(make(field), x, y, kappa=0.1)
    for t, mean in zip(report.times, report.potential, strict=True):
        moved = x + t * torch.tensor([1.0, -1.0], dtype=torch.float64)
        expected = nn.functional.cross_entropy(moved, y)
        assert mean == pytest.approx(float(expected), abs=2e-6)
    assert report.share == 1


def test_the_head_is_part_of_the_potential():
    head = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    x, y = points(), torch.zeros(8, dtype=torch.long)
    model = make(head=head)
    report = decay_share(model, x, y, kappa=1.0)
    expected = nn.functional.cross_entropy(head(x), y).detach()
    assert report.potential[0] == pytest.approx(float(expected), abs=2e-6)


class Quadratic(Potential):
    state_shape = (2,)

    def forward(self, z, context=None):
        assert isinstance(context, Context)
        assert context.features is not None
        return z.square().sum(-1)


def test_a_given_potential_is_used_instead_and_sees_states_and_features():
    x, y = points(), torch.zeros(8, dtype=torch.long)
    report = decay_share(make(), x, y, kappa=2.0, potential=Quadratic(), slack=1.0001)
    assert report.share == 1
    assert report.potential[0] == pytest.approx(float(x.square().sum(1).mean()))
    untruncated = {"name": "supervised", "truncation": 0.0}
    assert decay_share(make(), x, y, kappa=2.0, potential=untruncated).potential[0] > 0


def test_a_potential_that_is_zero_and_stays_zero_decays():
    x = torch.zeros(3, 2, dtype=torch.float64)
    report = decay_share(make(), x, torch.zeros_like(x), kappa=5.0)
    assert (report.share, report.worst_ratio) == (1.0, 0.0)


def test_a_potential_that_was_zero_and_grows_does_not():
    x = torch.zeros(3, 2, dtype=torch.float64)
    field = Linear(drift=(1.0, 0.0))
    report = decay_share(make(field), x, torch.zeros_like(x), kappa=5.0)
    assert (report.share, report.worst_ratio) == (0.0, math.inf)


def test_a_bound_below_rounding_is_not_missed_by_rounding():
    # In float32 the potential cannot follow exp(−40) below 4 units of rounding of its start.
    class Floored(Potential):
        state_shape = (2,)

        def forward(self, z, context=None):
            return z.square().sum(-1).float() + 3e-7

    x = torch.eye(2, dtype=torch.float64)
    field = Linear(rates=(20.0, 20.0))
    options = {"potential": Floored(), "times": [1.0]}
    y = torch.zeros_like(x)
    assert decay_share(make(field), x, y, kappa=30.0, **options).share == 1
    slow = decay_share(make(Linear(rates=(5.0, 5.0))), x, y, kappa=30.0, **options)
    assert slow.share == 0  # exp(−10) is well above rounding


def test_what_is_not_finite_does_not_decay():
    class Bad(Potential):
        state_shape = (2,)

        def __init__(self, at_start):
            super().__init__()
            self.at_start, self.calls = at_start, 0

        def forward(self, z, context=None):
            self.calls += 1
            value = math.inf if self.at_start == (self.calls == 1) else 1.0
            return torch.full((len(z),), value)

    x = points(2)
    for at_start in (True, False):
        report = decay_share(
            make(), x, torch.zeros_like(x), kappa=1.0, times=[1.0], potential=Bad(at_start)
        )
        assert (report.share, report.worst_ratio) == (0.0, math.inf)


def test_the_finding_is_sampled_evidence_at_most_and_falsified_by_an_exception():
    x = points()
    guarantee = decay_share(make(), x, torch.zeros_like(x), kappa=2.0).guarantee()
    assert guarantee.status == "sampled"
    assert "100 % of 8 inputs × 10 times" in guarantee.detail
    assert "perturbed" in guarantee.claim
    faster = decay_share(make(), x, torch.zeros_like(x), kappa=2.25, slack=1.1).guarantee()
    assert faster.status == "falsified"
    assert "30 % of 8 inputs × 10 times" in faster.detail


# Early termination.


def test_loss_and_accuracy_follow_the_state_at_every_time():
    field = Linear(rates=(0.0, 0.0), drift=(1.0, 0.0))  # logits z + (t, 0)
    x, y = points(50), torch.zeros(50, dtype=torch.long)
    times = [0.0, 0.25, 0.5, 1.0]
    found = early_termination(make(field), (x, y), times)
    assert found.times == tuple(times)
    assert found.samples == 50
    for t, loss, accuracy in zip(times, found.loss, found.accuracy, strict=True):
        moved = x + t * torch.tensor([1.0, 0.0], dtype=torch.float64)
        assert loss == pytest.approx(float(nn.functional.cross_entropy(moved, y)), rel=1e-12)
        assert accuracy == float((moved[:, 0] > moved[:, 1]).double().mean())
    assert found.accuracy[0] < found.accuracy[-1]


def test_the_trajectory_starts_at_the_flows_start_even_if_not_asked_for():
    field = Linear(rates=(0.0, 0.0), drift=(1.0, 0.0))
    x, y = points(), torch.zeros(8, dtype=torch.long)
    every = early_termination(make(field), (x, y), [0.0, 0.5, 1.0])
    late = early_termination(make(field), (x, y), [0.5])
    assert late.times == (0.5,)
    assert late.loss == pytest.approx(every.loss[1:2], rel=1e-12)


def test_target_values_have_a_loss_and_no_accuracy():
    x = points()
    found = early_termination(make(), (x, torch.zeros_like(x)))
    assert found.accuracy is None
    mean = float(x.square().sum(1).mean() / 2)
    assert found.loss == pytest.approx([mean * math.exp(-2 * t) for t in found.times], rel=1e-6)


def test_the_last_time_agrees_with_the_model_itself():
    torch.manual_seed(0)
    model = make(Linear((1.0, 2.0), (0.5, -0.5)), head=nn.Linear(2, 2)).eval()
    x, y = points(30), torch.arange(30) % 2
    found = early_termination(model, (x, y))
    outputs = model(x).detach()
    assert found.loss[-1] == pytest.approx(float(nn.functional.cross_entropy(outputs, y)))
    assert found.accuracy[-1] == float((outputs.argmax(1) == y).double().mean())


def test_batches_of_any_size_give_the_same_and_one_integration_each():
    x, y = points(11), torch.arange(11) % 2
    whole = make()
    expected = early_termination(whole, (x, y))
    assert whole.dynamics.vector_field.calls == 4 * 20  # rk4, steps of 0.05
    model = make()
    found = early_termination(model, list(zip(x.split(4), y.split(4), strict=True)))
    assert model.dynamics.vector_field.calls == 3 * 4 * 20
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.accuracy == pytest.approx(expected.accuracy)
    assert isinstance(found, EarlyTermination)


def test_large_tensors_are_taken_in_pieces():
    x, y = points(300), torch.arange(300) % 2
    model = make()
    early_termination(model, (x, y), [1.0])
    assert [n for *_, n in model.backbone.seen] == [256, 44]
    decay_share(model, x, y, 1.0)
    assert [n for *_, n in model.backbone.seen] == [256, 44] * 2


# Both.


def watch(which, model, x, y, **options):
    if which == "decay":
        return decay_share(model, x, y, 1.0, **options)
    return early_termination(model, (x, y), **options)


@pytest.mark.parametrize("which", ["decay", "early"])
def test_modes_are_eval_meanwhile_and_restored(which):
    model = make()
    model.train()
    model.head.eval()
    modes = [m.training for m in model.modules()]
    watch(which, model, points(), torch.zeros(8, dtype=torch.long))
    assert {seen[:2] for seen in model.backbone.seen} == {(False, False)}
    assert [m.training for m in model.modules()] == modes

    def fail(*_):
        raise RuntimeError("out of memory")

    model.backbone.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        watch(which, model, points(), torch.zeros(8, dtype=torch.long))
    assert [m.training for m in model.modules()] == modes


def test_outputs_that_are_not_finite_are_wrong():
    # A linear flow that overflows: the first NaN would be taken for the greatest output.
    x, y = torch.full((4, 2), 1e300, dtype=torch.float64), torch.zeros(4).long()
    found = early_termination(make(Linear((-1e3, -1e3))), (x, y), times=[0.0, 1.0])
    assert found.accuracy == (1.0, 0.0)


def test_inputs_and_targets_may_come_in_a_list():
    x, y = points(), torch.zeros(8).long()
    assert early_termination(make(), [x, y]) == early_termination(make(), (x, y))


@pytest.mark.parametrize("which", ["decay", "early"])
@pytest.mark.parametrize("times", [[0.0], [], [0.5, 0.5], [-1.0, 1.0], [0.5, math.nan], [math.inf]])
def test_times_that_do_not_increase_from_the_start_are_refused(which, times):
    with pytest.raises(stabnet.InvalidInputError, match="increasing"):
        watch(which, make(), points(), torch.zeros(8, dtype=torch.long), times=times)


@pytest.mark.parametrize("which", ["decay", "early"])
def test_models_without_a_flow_and_samples_that_do_not_fit_are_refused(which):
    x, y = points(), torch.zeros(8, dtype=torch.long)
    model = make()
    model.dynamics = stabnet.Stack([model.dynamics])
    for wrong, found in ((model, "a Stack"), (nn.Linear(2, 2), "Linear")):
        with pytest.raises(stabnet.InvalidOptionError, match=f"is a Flow; got {found}"):
            watch(which, wrong, x, y)
    with pytest.raises(stabnet.InvalidInputError, match="8 inputs have 3 targets"):
        watch(which, make(), x, y[:3])
    with pytest.raises(stabnet.InvalidInputError, match="no sample"):
        watch(which, make(), x[:0], y[:0])
    with pytest.raises(stabnet.InvalidInputError, match="label 7"):
        watch(which, make(), x, y + 7)


def test_no_batch_is_refused():
    with pytest.raises(stabnet.InvalidInputError, match="no sample"):
        early_termination(make(), [])


@pytest.mark.parametrize("options", [{"kappa": 0.0}, {"kappa": math.nan}, {"slack": 0.9}])
def test_rates_and_slacks_out_of_range_are_refused(options):
    with pytest.raises(stabnet.InvalidOptionError, match="kappa"):
        decay_share(make(), points(), points(), **{"kappa": 1.0, **options})


def test_the_models_of_the_plugin_are_monitored():
    torch.manual_seed(0)
    model = stabnet_lyapunov.lyanet(
        in_shape=(1, 8, 8), num_outputs=3, backbone={"name": "linear", "width": 16}
    )
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5) % 3
    report = decay_share(model, x, y, 5.0)
    assert report.potential[0] == pytest.approx(math.log(3), rel=1e-5)
    assert early_termination(model, (x, y)).loss[0] == pytest.approx(math.log(3), rel=1e-5)
