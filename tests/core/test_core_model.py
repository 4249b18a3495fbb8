"""StabilityModel: assembly, input checks, decoding, guarantees and configuration."""

from __future__ import annotations

import json

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

import stabnet
from stabnet import Flow, InvalidInputError, InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block, VectorField


def _model(name: str = "lyadeq", **options):
    torch.manual_seed(0)
    given = {"in_shape": (1, 8, 8), "num_outputs": 4, **options}
    return stabnet.build(name, backbone={"name": "linear", "width": 8}, **given)


def test_outputs_have_one_row_per_input():
    model = _model()
    logits, solution = model.run(torch.rand(5, 1, 8, 8))
    assert logits.shape == (5, 4)
    assert len(solution.stages) == 2


def test_normalization_is_inside_the_model():
    plain, normalized = _model(), _model(mean=(0.25,), std=(0.5,))
    normalized.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(3, 1, 8, 8)
    expected = plain.eval()((x - 0.25) / 0.5)
    torch.testing.assert_close(normalized.eval()(x), expected)


@pytest.mark.parametrize("projection", ["output", "residual", "flow"])
@pytest.mark.parametrize("training", [False, True])
def test_gradient_through_the_whole_model_passes_gradcheck(projection, training):
    """In train mode the batch is one problem."""
    solver = {"name": "anderson", "tolerance": 1e-12, "max_evaluations": 300}
    model = _model(projection=projection, solver=solver, step_size=0.5).double().train(training)
    names = ["backbone.", "dynamics.stages.0.cell.inner.weight", "dynamics.stages.1.potential"]
    chosen = {
        n: p.detach().clone().requires_grad_()
        for n, p in model.named_parameters()
        if any(n.startswith(start) for start in names) and p.numel() < 100
    }
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def evaluate(x, *values):
        return torch.func.functional_call(model, dict(zip(chosen, values, strict=True)), (x,))

    inputs = (x, *chosen.values())
    assert torch.autograd.gradcheck(evaluate, inputs, atol=1e-6, fast_mode=True)


def test_decode_continues_from_any_stage_without_touching_statistics():
    model = _model(projection="flow").train()
    x = torch.rand(6, 1, 8, 8)
    logits, solution = model.run(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.testing.assert_close(model.decode(solution.state), logits)
    features = model.features(x)
    resumed = model.decode(solution.stages[0].state, stage=0, u=features)
    torch.testing.assert_close(resumed, logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(InvalidInputError, match="no stage 2; there are 2"):
        model.decode(solution.state, stage=2)


class _Scale(Block):
    """Multiplies the state; counts the batches that it saw in a normalization of its own."""

    state_shape = (4,)

    def __init__(self, factor):
        super().__init__()
        self.factor, self.norm = factor, nn.BatchNorm1d(4)

    def forward(self, z, u=None):
        self.norm(z)
        return self.factor * z


def _stacked(*stages):
    backbone = stabnet.build("identity", kind="backbone", in_shape=(4,))
    return StabilityModel((4,), 4, backbone, Stack(stages), nn.Identity())


def test_decode_skips_stages_without_touching_statistics():
    model = _stacked(_Scale(2.0), _Scale(3.0), _Scale(5.0), _Scale(7.0))
    z = torch.randn(3, 4)
    for skip, factor in (((), 105.0), ((1,), 35.0), ((2, 3), 3.0), ({1, 2, 3}, 1.0)):
        torch.testing.assert_close(model.decode(z, 0, skip=skip), factor * z)
    torch.testing.assert_close(model.decode(z, -2, skip=[3]), z)
    assert all(s.norm.num_batches_tracked == 0 for s in model.dynamics.stages)
    for stage, skip in ((1, (1,)), (0, (4,)), (None, (3,)), (0, (-1,))):
        with pytest.raises(InvalidInputError, match="cannot be skipped"):
            model.decode(z, stage, skip=skip)
    with pytest.raises(InvalidInputError, match="no stack"):
        _model("deq").decode(torch.zeros(2, 8), skip=(0,))


class _Normalized(VectorField):
    state_shape, feature_shape = (4,), (4,)

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, t, z, u=None):
        return t * self.norm(z) + (0 if u is None else u)


@pytest.mark.parametrize("initial", ["features", "zeros"])
def test_velocity_is_that_of_the_flow_and_leaves_statistics_alone(initial):
    flow = Flow(_Normalized(), stabnet.build("euler", kind="integrator", step_size=1.0), initial)
    z, u = torch.randn(5, 4), torch.randn(5, 4)
    expected = (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() / 2
    expected = expected if initial == "features" else expected + u
    alone = StabilityModel((4,), 4, _stacked(flow).backbone, flow, nn.Identity())
    torch.testing.assert_close(alone.velocity(0.5, z, u=u), expected)
    stacked = _stacked(_Scale(2.0), flow)
    torch.testing.assert_close(stacked.velocity(0.5, z, 1, u), expected)
    assert flow.vector_field.norm.num_batches_tracked == 0
    torch.testing.assert_close(stacked.velocity(0.5, z, u=u), expected)
    for model, stage, words in (
        (stacked, 0, "stage 0 is a _Scale and has no velocity"),
        (stacked, 2, "no stage 2"),
        (alone, 1, "no stage 1"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            model.velocity(0.5, z, stage, u)


def test_config_is_plain_data_and_rebuilds_the_model():
    model = _model(projection="flow", alpha=0.5, mean=(0.1,), std=(0.3,))
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    assert config["backbone"]["width"] == 8
    assert config["solver"]["memory"] == 5
    assert config["providers"]["model/lyadeq"].startswith("stabnet")
    for again in (stabnet.build(config), stabnet.build(**config)):
        assert again.config == model.config
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
    config["alpha"] = 7.0
    assert model.config["alpha"] == 0.5


def test_conventional_spellings_give_the_same_model():
    a = stabnet.build("deq", in_channels=1, image_size=8, num_classes=7)
    b = stabnet.build("deq", in_shape=(1, 8, 8), num_outputs=7)
    assert a.config == b.config


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.rand(2, 3, 8, 8), r"expected \(batch, 1, 8, 8\)"),
        (torch.rand(1, 8, 8), r"expected \(batch, 1, 8, 8\)"),
        (torch.randint(255, (2, 1, 8, 8), dtype=torch.uint8), "Divide 8-bit images by 255"),
        (torch.rand(2, 1, 8, 8, dtype=torch.float64), "convert the inputs"),
        (torch.full((2, 1, 8, 8), torch.nan), "NaN or infinite values in 2 of 2"),
        (torch.full((2, 1, 8, 8), torch.inf), "NaN or infinite"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_nothing_changes(x, words):
    model = _model().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InvalidInputError, match=words):
        model(x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_outputs": 0}, "got 0 outputs"),
        ({"mean": (0.1,)}, "mean and std together"),
        ({"mean": (0.1, 0.2), "std": (1, 1)}, "1 channels"),
        ({"mean": (0.1,), "std": (0.0,)}, "std must be positive"),
        ({"mean": (0.1,), "std": (float("nan"),)}, "std must be positive"),
        ({"num_outputs": 9}, "Use a wider state"),
        ({"projection": "outputs"}, "no reading"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(InvalidOptionError, match=words):
        _model(**options)


def test_guarantees_name_their_part_and_never_promise_robustness():
    guarantees = _model(projection="flow").guarantees()
    parts = {g.part for g in guarantees}
    flow = "dynamics.stages.1"
    assert parts == {
        "dynamics.stages.0",
        flow,
        f"{flow}.vector_field",
        f"{flow}.integrator",
        "head",
    }
    assert any(g.claim.startswith("NOT guaranteed") for g in guarantees)
    json.dumps([g.to_dict() for g in guarantees])


def test_a_part_that_covers_its_parts_speaks_alone():
    model = _model(projection="flow")
    alone = [g for g in model.guarantees() if not g.part.startswith("dynamics.stages.1.")]
    assert len(alone) < len(model.guarantees())
    model.dynamics.stages[1].covers_parts = True
    assert model.guarantees() == alone


def test_single_samples_and_mixed_precision_work():
    model = _model().eval()
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    assert torch.isfinite(low).all()
    assert (low.float() - model(x)).abs().max() < 0.1


def test_what_a_run_returns_can_be_mapped_exported_and_saved():
    class Run(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.run(x)

    solver = {"name": "anderson", "fixed_iterations": True, "max_evaluations": 6}
    run, x = Run(_model(projection="flow", solver=solver).eval()), torch.rand(4, 1, 8, 8)
    logits, solution = run(x)
    _, mapped = torch.vmap(lambda row: run(row[None]))(x)
    torch.testing.assert_close(mapped.state[:, 0], solution.state)
    torch.testing.assert_close(mapped.stages[0].residual[:, 0], solution.stages[0].residual)
    assert mapped.nfe == solution.nfe
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 mixes up the names of a stack's batch-norm buffers on export")
    with torch.no_grad():
        exported = torch.export.export(run, (x,))
    spec = pytree.treespec_loads(pytree.treespec_dumps(exported.call_spec.out_spec))
    again, found = pytree.tree_unflatten(pytree.tree_leaves(exported.module()(x)), spec)
    torch.testing.assert_close(again, logits)
    assert found.nfe == solution.nfe
    assert found.times is None


def test_a_model_assembled_by_hand_works_but_has_no_config():
    whole = _model("deq")
    by_hand = StabilityModel(
        (1, 8, 8), 4, whole.backbone, whole.dynamics, nn.Linear(8, 4), (0.5,), (0.5,)
    )
    assert by_hand(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(stabnet.UndescribedPartError, match="assembled by hand"):
        _ = by_hand.config


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_cpu_result():
    model = _model(projection="flow").eval()
    x = torch.rand(4, 1, 8, 8)
    expected = model(x)
    torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_resnet20_maps_images_to_logits_and_trains():
    model = stabnet.build("lyadeq", backbone="resnet20", num_classes=10)
    logits = model(torch.rand(4, 3, 32, 32))
    assert logits.shape == (4, 10)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
