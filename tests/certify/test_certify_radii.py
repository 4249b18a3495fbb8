"""Certified radii: exact where they can be, never beaten, and honest about rounding."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stabnet
from stabnet.bounds import NoBoundError, spectral_norm_bound
from stabnet.certify import (
    LipschitzBound,
    RadiusReport,
    certified_accuracy,
    certified_radii,
)
from stabnet.cli import main
from stabnet.errors import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Block, Guarantee


class Layer(Block):
    """``z ↦ |Wz + b|``, with ``W`` orthogonal at first, times a factor."""

    def __init__(self, size, factor=1.0):
        super().__init__()
        self.state_shape = (size,)
        self.linear = nn.Linear(size, size)
        nn.init.orthogonal_(self.linear.weight, factor)

    def forward(self, z, u=None):
        return self.linear(z).abs()

    def lipschitz_bound(self):
        return spectral_norm_bound(self.linear.weight)


class Same(Block):
    """``z ↦ factor · z``."""

    def __init__(self, size, factor=1.0):
        super().__init__()
        self.state_shape, self.factor = (size,), factor

    def forward(self, z, u=None):
        return self.factor * z

    def lipschitz_bound(self):
        return abs(self.factor)


def build(*stages, size=2, classes=3, head=None, std=None, seed=0):
    """Return a model of inputs ``(size,)``; of no stages it is its head."""
    torch.manual_seed(seed)
    return stabnet.StabilityModel(
        (size,),
        classes,
        stabnet.build("identity", kind="backbone", in_shape=(size,)),
        stabnet.Stack([stage() for stage in stages] or [Same(size)]),
        nn.Linear(size, classes) if head is None else head,
        mean=None if std is None else [0.0] * size,
        std=None if std is None else [std] * size,
    ).eval()


def points(count=40, size=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, size, generator=generator, dtype=torch.float64).to(dtype)


@torch.no_grad()
def labeled(model, count=40, seed=0):
    """Return inputs, and what the model says they are."""
    dtype = next(model.parameters()).dtype
    x = points(count, model.in_shape[0], seed, dtype)
    return x, model(x).argmax(1)


@torch.no_grad()
def balanced(model):
    """Move the last bias so that every class is predicted somewhere."""
    x = points(200, model.in_shape[0], dtype=next(model.parameters()).dtype)
    list(model.head.parameters())[-1].sub_(model(x).mean(0))
    return model


def radii(model, x, y):
    return certified_radii(model, x, y).radius


# Exact where the classifier is linear.


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_radius_of_a_linear_classifier_is_the_distance_to_its_boundary(classes):
    model = build(classes=classes, size=3).double()
    x, y = labeled(model)
    found = radii(model, x, y).tolist()
    W = [[Fraction(v) for v in row] for row in model.head.weight.tolist()]
    b = [Fraction(v) for v in model.head.bias.tolist()]
    for r, image, i in zip(found, x.tolist(), y.tolist(), strict=True):
        logits = [
            sum(w * Fraction(v) for w, v in zip(row, image, strict=True)) + c
            for row, c in zip(W, b, strict=True)
        ]
        distances = []
        for j in set(range(classes)) - {i}:
            margin = logits[i] - logits[j]
            squared = sum((p - q) ** 2 for p, q in zip(W[i], W[j], strict=True))
            assert Fraction(r) ** 2 * squared <= margin**2  # in exact arithmetic
            distances.append(float(margin) / math.sqrt(squared))
        assert r == pytest.approx(min(distances), rel=1e-6, abs=1e-8)


@torch.no_grad()
def test_just_beyond_the_radius_of_a_linear_classifier_an_input_is_misclassified():
    model = build(classes=5).double()
    x, y = labeled(model)
    r, W = radii(model, x, y), model.head.weight
    flipped = torch.zeros(len(x), dtype=torch.bool)
    for j in range(5):
        away = F.normalize(W[j] - W[y], dim=1)  # zero for the class itself
        flipped |= model(x + 1.001 * r[:, None] * away).argmax(1) != y
    assert bool(flipped.all())


def test_logits_themselves_as_the_state_have_the_margin_over_root_two():
    model = build(size=3, head=nn.Identity())
    x = points(size=3)
    y = x.argmax(1)
    top = x.double().topk(2, 1).values
    expected = (top[:, 0] - top[:, 1]) / math.sqrt(2)
    assert bool((radii(model, x, y) <= expected).all())
    torch.testing.assert_close(radii(model, x, y), expected, rtol=1e-5, atol=1e-5)


def test_other_heads_have_the_margin_over_root_two_times_the_bound_of_the_outputs():
    model = build(lambda: Layer(2), head=nn.Sequential(nn.Linear(2, 3), nn.Tanh())).double()
    x, y = labeled(model)
    found = certified_radii(model, x, y)
    top = model(x).detach().topk(2, 1).values
    expected = (top[:, 0] - top[:, 1]) / (math.sqrt(2) * found.bound.outputs)
    torch.testing.assert_close(found.radius, expected, rtol=1e-6, atol=1e-8)


# Never beaten.


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_a_dense_grid_is_misclassified_within_the_radius(seed):
    model = balanced(build(lambda: Layer(2), lambda: Layer(2), seed=seed).double())
    x, y = labeled(model, 30)
    side = torch.linspace(-1, 2, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    other = model(grid).argmax(1) != y[:, None]
    nearest = torch.cdist(x, grid).where(other, math.inf).amin(1)
    r = radii(model, x, y)
    assert bool((r <= nearest).all())
    assert len(y.unique()) > 1
    reached = nearest.isfinite()
    assert float((r / nearest)[reached].median()) > 0.1  # it is not below for being nothing


def attacked(model, x, y, r, steps=100, seed=0):
    """Return inputs within ``r`` of each: gradient ascent on the worst margin, anywhere in R^n."""
    generator = torch.Generator().manual_seed(seed)
    delta = F.normalize(torch.randn(x.shape, generator=generator, dtype=x.dtype), dim=1)
    delta = r[:, None] * delta
    for _ in range(steps):
        delta.requires_grad_()
        logits = model(x + delta)
        others = logits.scatter(1, y[:, None], -math.inf).amax(1)
        loss = (others - logits.gather(1, y[:, None])[:, 0]).sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = delta.detach() + 0.1 * r[:, None] * F.normalize(gradient, dim=1)
        delta = delta * (r / delta.norm(dim=1).clamp_min(1e-30)).clamp_max(1)[:, None]
    return x + delta


@pytest.mark.parametrize("head", [None, nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3))])
def test_no_attack_succeeds_within_the_radius(head):
    model = balanced(build(lambda: Layer(8), lambda: Layer(8, 1.5), size=8, head=head, std=0.5))
    x, y = labeled(model, 100)
    r = radii(model, x, y)
    assert bool((r > 0).all())
    for seed in range(3):
        at = attacked(model, x, y, 0.999 * r.float(), seed=seed)
        assert torch.equal(model(at).argmax(1), y)
    beyond = attacked(model, x, y, 30 * r.float())
    assert bool((model(beyond).argmax(1) != y).any())  # the attack is one


# What the radius depends on.


def test_normalization_by_one_half_halves_the_radius():
    plain, normalized = (build(lambda: Layer(2), std=std).double() for std in (None, 0.5))
    x, y = labeled(normalized)
    expected = radii(plain, 2 * x, y) / 2
    assert bool((expected > 0).all())
    torch.testing.assert_close(radii(normalized, x, y), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 7.0, 1e150])
def test_the_scale_of_the_head_does_not_matter(scale):
    model = build(lambda: Layer(2)).double()
    x, y = labeled(model)
    before = radii(model, x, y)
    model.head.weight.data.mul_(scale)
    model.head.bias.data.mul_(scale)
    assert bool((before > 0).any())
    torch.testing.assert_close(radii(model, x, y), before, rtol=1e-7, atol=0)


def test_the_order_of_the_classes_does_not_matter():
    model = build(lambda: Layer(2), classes=5).double()
    x, y = labeled(model)
    before, order = radii(model, x, y), torch.tensor([3, 0, 4, 2, 1])
    model.head.weight.data = model.head.weight.data[order]
    model.head.bias.data = model.head.bias.data[order]
    torch.testing.assert_close(radii(model, x, order.argsort()[y]), before, rtol=1e-12, atol=0)


def test_the_runner_up_need_not_be_the_nearest_class():
    head = nn.Linear(2, 3)
    head.weight.data = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 9.0]])
    head.bias.data = torch.tensor([1.0, 0.9, 0.0])
    (r,) = radii(build(head=head), torch.zeros(1, 2), torch.tensor([0])).tolist()
    assert r == pytest.approx(1 / 9, rel=1e-5)  # not 0.1 / 0.1


def test_editing_a_weight_through_data_changes_the_certificate():
    model = build(lambda: Layer(2)).double()
    x, y = labeled(model)
    before = certified_radii(model, x, y)
    model.dynamics.stages[0].linear.weight.data.mul_(2)
    after = certified_radii(model, x, y)
    assert after.bound.features == pytest.approx(2 * before.bound.features)
    assert not torch.equal(after.radius, before.radius)
    model.head.bias.data[:] = torch.tensor([100.0, 0.0, 0.0])
    assert bool((radii(model, x, y)[y != 0] == 0).all())


def coinciding(biases):
    head = nn.Linear(2, len(biases))
    head.weight.data = torch.ones(len(biases), 2)
    head.bias.data = torch.tensor(biases)
    return build(head=head)


def test_of_rows_that_coincide_the_biases_decide():
    x = points(3)
    model, y = coinciding([1.0, 0.5, -2.0]), torch.tensor([0, 1, 2])
    assert radii(model, x, y).tolist() == [math.inf, 0, 0]
    assert not radii(coinciding([1.0, 1.0]), x, torch.zeros(3, dtype=torch.int64)).any()
    model = coinciding([1.0, 0.5, -2.0])
    model.head.weight.data[2] = 0
    (r,) = radii(model, x[:1], y[:1]).tolist()
    assert r == pytest.approx((float(x[0].sum()) + 3) / math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("head", [None, nn.Sequential(nn.Linear(2, 3), nn.Tanh())])
def test_a_constant_classifier_is_robust_everywhere_or_nowhere(head):
    model = build(lambda: Same(2, 0.0), head=head)
    x, y = labeled(model)
    assert bool(radii(model, x, y).isposinf().all())
    assert not radii(model, x, (y + 1) % 3).any()


# Where there is no radius.


def test_what_is_classified_wrongly_has_no_radius():
    model = build(lambda: Layer(2))
    x, y = labeled(model)
    wrong = y.clone()
    wrong[::2] = (y[::2] + 1) % 3
    found = certified_radii(model, x, wrong)
    assert found.correct.tolist() == (wrong == y).tolist()
    assert not found.radius[~found.correct].any()
    assert torch.equal(found.radius[1::2], radii(model, x, y)[1::2])


def test_labels_may_be_integers_of_any_size():
    model = build(lambda: Layer(2))
    x, y = labeled(model)
    assert torch.equal(radii(model, x, y.to(torch.uint8)), radii(model, x, y))


def test_logits_that_are_nan_have_no_radius():
    model = build(lambda: Layer(2))
    x, y = labeled(model)
    model.head.bias.data[0] = torch.nan
    found = certified_radii(model, x, torch.zeros_like(y))
    assert not found.radius.any()
    assert not found.correct.any()


def test_logits_that_overflow_in_the_models_own_precision_have_no_radius():
    model = build(lambda: Same(2, 1e30), lambda: Same(2, 1e30))
    x, y = labeled(model.double())
    exact = radii(model, x, y)
    assert bool((exact > 0).all())
    assert not radii(model.float(), x.float(), y).any()


# Rounding.


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.1)])
def test_rounding_of_the_model_shortens_its_radii(dtype, error):
    model = build(lambda: Layer(2)).to(dtype)
    x, y = labeled(model, 200)
    own = radii(model, x, y)
    twin = build(lambda: Layer(2)).to(dtype).double()
    with torch.no_grad():
        logits = twin(x.double())
        loss = 4 * (model(x).double() - logits).abs().amax(1)
        loss += 16 * torch.finfo(dtype).eps * logits.abs().amax(1)
    exact = certified_radii(twin, x.double(), y)
    W, L = twin.head.weight.detach(), exact.bound.features
    margins = logits.gather(1, y[:, None]) - logits - (loss + 1e-9 * logits.abs().amax(1))[:, None]
    expected = (margins / (L * torch.cdist(W, W)[y])).scatter(1, y[:, None], math.inf).amin(1)
    certified = own > 0
    assert bool(certified.any())
    torch.testing.assert_close(own[certified], expected[certified], rtol=1e-9, atol=1e-12)
    gap = (exact.radius - own)[certified]
    assert 0 < float(gap.max()) < error * 40


@torch.no_grad()
def test_rounding_at_the_boundary_does_not_reach_into_the_radius():
    """At images for which the logits happen to be exact, rounding elsewhere still counts."""
    model = build(size=64)
    model.head.bias.copy_(torch.tensor([1.0, 0.3, -0.2]))
    W = model.head.weight.double()
    x = torch.zeros(20, 64)
    x[1:] = torch.randint(0, 2, (19, 64)) / 4
    y = model(x).argmax(1)
    r, f = radii(model, x, y), x.double() @ W.T + model.head.bias.double()
    shares = 1 - 1e-8 * torch.arange(300)
    for at, label, logits, radius in zip(x, y, f, r, strict=True):
        away = W - W[label]
        length = away.square().sum(1).clamp_min(1e-9)
        steps = (logits[label] - logits) / length * away.T  # to every boundary
        near = (at.double() + shares[:, None, None] * steps.T).float().flatten(0, 1)
        inside = (near.double() - at.double()).norm(dim=1) < radius
        assert bool((model(near).argmax(1) == label)[inside].all())


# Accuracy.


def batches(model, size=7, count=40):
    x, y = labeled(model, count)
    y = y.clone()
    y[::5] = (y[::5] + 1) % 3
    return list(zip(x.split(size), y.split(size), strict=True))


def test_accuracy_is_that_of_the_radii_whatever_the_batches():
    model = build(lambda: Layer(2))
    x, y = (torch.cat(t) for t in zip(*batches(model), strict=True))
    r = radii(model, x, y)
    whole = certified_accuracy(model, [(x, y)], (0.01, 0.05))
    parts = certified_accuracy(model, batches(model), (0.01, 0.05))
    assert parts.radii == pytest.approx(r.tolist(), rel=1e-4)
    assert whole.radii == tuple(r.tolist())
    assert whole.correct == parts.correct == 32
    assert whole.accuracy_at(0.05) == float((r > 0.05).double().mean())
    assert certified_accuracy(model, [(x, y.int())], 0.05).radii == whole.radii
    some = certified_accuracy(model, batches(model), max_images=10)
    assert (some.images, some.eps) == (10, (0.5, 1.0, 1.58))
    assert some.radii == parts.radii[:10]


def test_certifying_leaves_the_model_alone():
    model = build(lambda: Layer(2), head=nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)))
    model.train()
    model.dynamics.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    certified_accuracy(model, batches(build(lambda: Layer(2))), (0.1,))
    assert model.training
    assert model.head[0].training
    assert not model.dynamics.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


def report(*found, eps=(0.5,), parts=(("normalize", 2.0), ("backbone", 1.5))):
    right = sum(r > 0 for r in found)
    return RadiusReport("m", eps, tuple(found), right, LipschitzBound(parts, 0.5), 1.0, 2.0)


def test_a_radius_is_certified_for_less_than_itself():
    kept = report(0.0, 0.5, 0.6, math.inf)
    assert kept.curve((0.0, 0.4, 0.5, 0.6, 1e300)) == (0.75, 0.75, 0.5, 0.25, 0.25)
    assert kept.clean_accuracy == 0.75
    assert kept.images == 4


@given(
    st.lists(st.floats(0, 4), min_size=1, max_size=9),
    st.lists(st.floats(0, 4), min_size=2, max_size=9),
)
def test_certified_accuracy_never_rises_with_the_radius(found, eps):
    kept = report(*found)
    assert all(a >= b for a, b in pairwise(kept.curve(sorted(eps))))
    assert kept.accuracy_at(0.0) <= kept.clean_accuracy


def test_the_report_says_what_was_certified_of_which_images(tmp_path):
    kept = report(0.0, 0.4, 0.8, math.inf, eps=(0.1, 0.5))
    path = kept.write_json(tmp_path / "certificates" / "radii.json")
    read = json.loads(path.read_text())
    assert [float(r) for r in read["radii"]] == list(kept.radii)
    assert read["certified"] == [
        {"eps": 0.1, "accuracy": 0.75},
        {"eps": 0.5, "accuracy": 0.5},
    ]
    assert read["bound"]["parts"][0] == {"part": "normalize", "bound": 2.0}
    assert read["bound"]["features"] == kept.bound.features >= 3
    assert (read["norm"], read["bound_seconds"], read["seconds"]) == ("l2", 2.0, 1.0)
    guarantee = kept.guarantee()
    assert isinstance(guarantee, Guarantee)
    assert guarantee.status == "verified"
    assert "for 3 of the 4 images" in guarantee.claim
    assert "3 exceed 0.1, 2 exceed 0.5" in guarantee.claim
    assert any("own precision" in assumption for assumption in guarantee.assumptions)
    table = kept.to_markdown()
    assert "| l2 | 0.5 | 4 | 75.00% | 50.00% |" in table
    assert "| normalize | 2 |" in table
    assert "| input to state | 3 |" in table
    assert "lower bound of the accuracy under any perturbation" in table


def test_a_bound_that_is_infinite_can_be_written_down():
    kept = report(0.0, parts=(("backbone", math.inf),))
    assert json.loads(json.dumps(kept.to_dict(), allow_nan=False))["bound"]["features"] == "inf"


# Refusals.


def with_backbone(name, **options):
    backbone = stabnet.build(name, kind="backbone", in_shape=(3, 8, 8), **options)
    size = math.prod(backbone.out_shape)
    return stabnet.StabilityModel(
        (3, 8, 8), 3, backbone, stabnet.Stack([Same(size)]), nn.Linear(size, 3)
    )


def hooked():
    model = build(lambda: Layer(2))
    model.dynamics.stages[0].linear.register_forward_hook(lambda *_: None)
    return model


COUPLED = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 3))
LINEAR = {"name": "linear", "width": 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 3), "Linear is no StabilityModel"),
        (lambda: with_backbone("resnet20"), "backbone"),
        (lambda: stabnet.build("deq", in_shape=(2,), num_outputs=3, backbone=LINEAR), "Equilib"),
        (lambda: stabnet.build("lyanet", in_shape=(2,), num_outputs=3, backbone=LINEAR), "Flow"),
        (lambda: build(head=COUPLED), "couples the samples"),
        (lambda: build(head=nn.Sequential(nn.Linear(2, 3), nn.GELU())), "GELU"),
        (hooked, "hooks"),
    ],
    ids=["no model", "resnet", "equilibrium", "flow", "batch norm", "head", "hooks"],
)
def test_a_model_without_a_bound_is_refused_by_the_name_of_its_part(make, message):
    with pytest.raises(NoBoundError, match=message):
        certified_radii(make(), points(3), torch.tensor([0, 1, 2]))


def test_weights_that_are_not_finite_are_refused():
    model = build(lambda: Layer(2))
    model.dynamics.stages[0].linear.weight.data[0, 0] = torch.inf
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        certified_radii(model, points(3), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, :1], y), "expected"),
        (lambda x, y: (x * torch.nan, y), "NaN"),
        (lambda x, y: (x, y + 1), "labels go from 1 to 3"),
        (lambda x, y: (x, y.float()), "float32"),
        (lambda x, y: (x, y[:2]), "2 images"),
        (lambda x, y: (x[:0], y[:0]), "no inputs"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        certified_radii(build(), *change(points(3), torch.tensor([0, 1, 2])))


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, InvalidInputError, "no images"),
        ([(points(3) + 1, torch.zeros(3).long())], {}, InvalidInputError, r"expected \[0, 1\]"),
        ([], {"eps": ()}, InvalidOptionError, "one radius or more"),
        ([], {"eps": (0.5, -1.0)}, InvalidOptionError, "at least 0"),
        ([], {"eps": (math.nan,)}, InvalidOptionError, "eps=nan"),
        ([], {"eps": "0.5"}, InvalidOptionError, "eps='0.5'"),
        ([], {"max_images": 0}, InvalidOptionError, "max_images=0"),
    ],
)
def test_bad_images_and_options_are_refused(given, options, error, message):
    with pytest.raises(error, match=message):
        certified_accuracy(build(), given, **options)


def test_one_output_has_no_radius_and_no_negative_radius_is_asked_for():
    with pytest.raises(InvalidInputError, match="1 output"):
        certified_radii(build(classes=1), points(3), torch.zeros(3).long())
    with pytest.raises(InvalidOptionError, match="eps=-1"):
        report(0.5).accuracy_at(-1.0)


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a run folder of a registered model with a Lipschitz bound."""

    @stabnet.register.model("lipschitz_digits")
    def lipschitz_digits(in_shape, num_outputs):
        """Return a linear model."""
        torch.manual_seed(0)
        size = math.prod(in_shape)
        return stabnet.StabilityModel(
            in_shape,
            num_outputs,
            stabnet.build("identity", kind="backbone", in_shape=in_shape),
            stabnet.Stack([Same(size)]),
            nn.Linear(size, num_outputs),
        )

    made = tmp_path_factory.mktemp("run")
    model = stabnet.build("lipschitz_digits", in_shape=(1, 8, 8), num_outputs=10)
    stabnet.save(model, made / "model.safetensors")
    (made / "config.json").write_text(json.dumps({"data": {"name": "digits"}}))
    return made


def run(capsys, *arguments):
    """Run a command and return its exit status, output and errors."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0), *capsys.readouterr()


def test_certify_in_l2_prints_and_keeps_the_radii(capsys, folder):
    options = ("--norm", "l2", "--eps", "0.01", "--eps", "0.5", "--images", "30")
    status, out, _ = run(capsys, "certify", folder, *options)
    kept = json.loads((folder / "certification.json").read_text())
    assert status == 0
    assert "### Certified radii of `lipschitz_digits`" in out
    assert (kept["norm"], kept["images"]) == ("l2", 30)
    assert [c["eps"] for c in kept["certified"]] == [0.01, 0.5]
    assert f"| l2 | 0.01 | 30 | {kept['clean_accuracy']:.2%} |" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--norm", "l1", "--eps", "0.5"), "norm='l1'"),
        (("--norm", "l2", "--eps", "-1"), "at least 0"),
        (("--eps", "0.1", "--eps", "0.2"), "one radius"),
        (("--eps", "0.1"), "--norm l2"),
    ],
)
def test_certify_refuses_with_one_clean_message(capsys, folder, options, message):
    status, out, err = run(capsys, "certify", folder, *options)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
