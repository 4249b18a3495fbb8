"""Margins: sound, tight where they can be, and trainable."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from certify_stand_ins import Net, Settled, Silent, Unknown, build, data, pgd, trained
from torch import nn

from stabnet.bounds import NoBoundError
from stabnet.certify import interval_logits, margin_bounds
from stabnet.errors import InvalidInputError, InvalidOptionError

EPS = 0.05


@pytest.fixture(scope="module")
def model():
    return trained()


def margins_of(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, y[:, None]) - logits


def test_bounds_contain_every_sampled_and_every_attacked_input(model):
    x, y = (t[:6] for t in data(seed=1))
    lower, upper = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    bounds = interval_logits(model, lower, upper, sound=True)
    least = margin_bounds(model, x, y, EPS, sound=True)
    share = torch.rand(10_000, *x.shape, generator=torch.Generator().manual_seed(0))
    share[:5000] = share[:5000].round()  # corners, where the worst is
    inputs = [torch.lerp(lower, upper, share).flatten(0, 1)]
    inputs += [pgd(model, x, y, EPS, seed=s) for s in range(20)]
    points = torch.cat(inputs).double()
    points = points.clamp(lower.double().repeat(10_020, 1, 1, 1), upper.repeat(10_020, 1, 1, 1))
    with torch.no_grad():
        logits = build_double(model)(points).unflatten(0, (-1, 6))
    rounding = 1e-13
    assert bool((logits >= bounds[0] - rounding).all())
    assert bool((logits <= bounds[1] + rounding).all())
    for group in logits:
        assert bool((margins_of(group, y) >= least - rounding).all())


def build_double(model):
    twin = build().double().eval()
    twin.load_state_dict(model.state_dict())
    return twin


def test_margins_of_an_affine_model_are_the_exact_minimum():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    found = margin_bounds(nn.Sequential(nn.Flatten(), layer), x, y, EPS, sound=True)
    W, b = (
        [[Fraction(v) for v in r] for r in layer.weight.tolist()],
        [Fraction(v) for v in layer.bias.tolist()],
    )
    for row in range(5):
        own = int(y[row])
        for j in set(range(3)) - {own}:
            exact = b[own] - b[j]
            for k, value in enumerate(x[row].tolist()):
                slope = W[own][k] - W[j][k]
                low = max(Fraction(0), Fraction(value) - Fraction(EPS))
                high = min(Fraction(1), Fraction(value) + Fraction(EPS))
                exact += slope * (low if slope > 0 else high)
            bound = Fraction(found[row, j].item())
            assert bound <= exact <= bound + Fraction(1, 10**14)


@torch.no_grad()
def test_elided_margins_are_tighter_than_those_of_the_logits(model):
    x, y = data(seed=1)
    lower, upper = interval_logits(model, (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1))
    loose = lower.gather(1, y[:, None]) - upper
    tight = margin_bounds(model, x, y, EPS)
    others = torch.ones_like(tight).scatter(1, y[:, None], 0).bool()
    assert bool((tight >= loose - 1e-5)[others].all())
    assert float((tight - loose)[others].mean()) > 0.1


@pytest.mark.parametrize(
    "head",
    [
        lambda: nn.Sequential(nn.Linear(12, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3))),
        lambda: nn.Sequential(nn.Linear(12, 3), nn.Tanh()),
    ],
    ids=["ends affine", "ends otherwise"],
)
def test_margins_hold_for_other_heads(head):
    model = build(head=head()).double()
    x, y = data(12)
    x = x.double()
    for sound in (False, True):
        least = margin_bounds(model, x, y, EPS, sound=sound)
        for seed in range(5):
            worst = margins_of(model(pgd(model, x, y, EPS, seed=seed)), y)
            assert bool((worst >= least - 1e-13).all())


def test_margins_without_perturbation_are_those_of_the_prediction(model):
    x, y = data(seed=1)
    expected = margins_of(model(x), y)
    torch.testing.assert_close(margin_bounds(model, x, y, 0.0), expected, rtol=1e-5, atol=1e-5)
    sound = margin_bounds(model, x, y, 0.0, sound=True)
    exact = margins_of(build_double(model)(x.double()), y)
    assert bool((sound <= exact + 1e-14).all())
    torch.testing.assert_close(sound, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sound", [False, True])
def test_margins_do_not_depend_on_how_many_samples_there_are(model, sound):
    x, y = data(seed=1)
    together = margin_bounds(model, x, y, EPS, sound=sound)
    assert len(x) > together.shape[1] > 2
    alone = [margin_bounds(model, x[k : k + 1], y[k : k + 1], EPS, sound=sound) for k in range(9)]
    tolerance = 1e-12 if sound else 1e-5
    torch.testing.assert_close(torch.cat(alone), together[:9], rtol=tolerance, atol=tolerance)


def test_the_margin_of_the_true_class_to_itself_is_zero(model):
    x, y = data()
    for sound in (False, True):
        assert not margin_bounds(model, x, y, EPS, sound=sound).gather(1, y[:, None]).any()


def test_margins_shrink_as_the_radius_grows(model):
    x, y = data(seed=1)
    radii = [margin_bounds(model, x, y, eps, sound=True) for eps in (0.0, 0.01, 0.05, 0.2)]
    for smaller, larger in pairwise(radii):
        assert bool((larger <= smaller).all())


def test_margins_have_the_right_gradients():
    model = build(width=4).double()
    x, y = data(3)
    parameters = dict(model.named_parameters())

    class Margins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self):
            return margin_bounds(self.model, x.double(), y, EPS)

    def margins(*tensors):
        named = {f"model.{n}": t for n, t in zip(parameters, tensors, strict=True)}
        return torch.func.functional_call(Margins(), named, ())

    assert torch.autograd.gradcheck(margins, tuple(parameters.values()))


def test_training_on_the_worst_case_verifies_what_was_not(model):
    x, y = data(seed=1)

    def share(network):
        others = margin_bounds(network, x, y, EPS).scatter(1, y[:, None], 1.0)
        return float((others > 0).all(1).float().mean())

    assert share(build()) < 0.5
    assert share(model) > 0.8


def test_rows_without_a_bound_have_none():
    model = build(dynamics=Unknown(12))
    x, y = data(6)
    least = margin_bounds(model, x, y, EPS, sound=True)
    others = torch.ones_like(least).scatter(1, y[:, None], 0).bool()
    assert bool((least[::2][others[::2]] == -torch.inf).all())
    assert bool(least[1::2].isfinite().all())


class Noted(nn.Module):
    """A head that says it is affine, and no more."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 3)

    def forward(self, z):
        return self.inner(z)

    def affine(self):
        return self.inner.weight, self.inner.bias


def test_a_head_that_says_it_is_affine_is_elided():
    head = Noted()
    model, plain = build(head=head), build(head=head.inner)
    x, y = data(6)
    assert torch.equal(margin_bounds(model, x, y, EPS), margin_bounds(plain, x, y, EPS))


def hooked():
    model = build()
    model.register_forward_hook(lambda *_: None)
    return model


def with_hooked_head():
    model = build(head=nn.Sequential(nn.Linear(12, 3)))
    model.head.register_forward_pre_hook(lambda *_: None)
    return model


def convolutional(layer):
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), layer)
    model = build()
    model.backbone = Net(net, (1, 6, 1), (12,))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (build(dynamics=Silent()), "Silent"),
        (build(dynamics=Settled(12, bound=False)), "Settled"),
        (build(head=nn.GELU()), "GELU"),
        (convolutional(nn.BatchNorm1d(12)), "couples the samples"),
        (hooked(), "hooks"),
        (with_hooked_head(), "hooks"),
    ],
    ids=["silent", "settled", "head", "batch norm", "hooks", "hooks of the head"],
)
def test_what_cannot_be_bounded_is_refused(model, message):
    x, y = data(4)
    for sound in (False, True):
        with pytest.raises(NoBoundError, match=message):
            margin_bounds(model, x, y, EPS, sound=sound)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x - 1, y, EPS), InvalidInputError, "range from"),
        (lambda x, y: (x * torch.nan, y, EPS), InvalidInputError, "NaN"),
        (lambda x, y: (x[:, :, :3], y, EPS), InvalidInputError, r"takes \(batch, 1, 6, 1\)"),
        (lambda x, y: (x, y + 1, EPS), InvalidInputError, "labels go from 1 to 3"),
        (lambda x, y: (x, y - 1, EPS), InvalidInputError, "labels go from -1 to 1"),
        (lambda x, y: (x, y.float(), EPS), InvalidInputError, "float32"),
        (lambda x, y: (x, y, -EPS), InvalidOptionError, "eps=-0.05"),
        (lambda x, y: (x, y, float("nan")), InvalidOptionError, "eps=nan"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        margin_bounds(build(), *change(*data(9)))


def test_one_output_has_no_margins():
    with pytest.raises(InvalidInputError, match="1 output"):
        margin_bounds(build(classes=1), data(3)[0], torch.zeros(3, dtype=torch.int64), EPS)
