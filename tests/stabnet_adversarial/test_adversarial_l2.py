from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stabnet_adversarial.balls import L2Ball
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Attack
from stabnet.robustness import AttackError, attack_model, seeded

CPU = torch.device("cpu")


def images(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 4, 4, generator=generator, dtype=dtype)
    return x.mul(1.4).sub(0.2).clamp(0, 1), torch.arange(count) % 3  # some pixels on the border


def network() -> nn.Sequential:
    with seeded(0, CPU):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip


def attack(**options: Any) -> Attack:
    return stabnet.build("pgd_l2", kind="attack", **options)  # type: ignore[no-any-return]


def ball(x: Tensor, eps: float) -> L2Ball:
    return L2Ball(x, torch.full((len(x),), eps, dtype=torch.float64))


def lengths(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.double().flatten(1), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-3, 127 / 255, 2.5])
def test_result_stays_in_the_ball_and_in_the_unit_cube_and_goes_far(
    dtype: torch.dtype, eps: float
) -> None:
    x, y = images(dtype=dtype)
    found = attack(eps=eps)(network().to(dtype), x, y)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    size = lengths(found - x)
    assert size.max() <= eps + 16 * torch.finfo(dtype).eps
    assert size.min() >= eps / 2


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(1e-3, 2.0),
    scale=st.sampled_from([1e-3, 0.3, 1.0, 30.0]),
)
def test_projection_is_the_nearest_point_of_ball_and_cube(
    seed: int, eps: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 7, generator=generator, dtype=torch.float64).mul(1.6).sub(0.3).clamp(0, 1)
    v = x + scale * torch.randn(3, 7, generator=generator, dtype=torch.float64)
    v[0, :3] = x[0, :3]  # pixels that do not move
    found = ball(x, eps).nearest(v)
    for k in range(3):  # against a root of the multiplier's condition, found by bisection

        def at(s: float, k: int = k) -> Tensor:
            return (x[k] + s * (v[k] - x[k])).clamp(0, 1)

        def beyond(s: float, k: int = k) -> float:
            return float((at(s) - x[k]).norm()) - eps

        s = 1.0 if beyond(1.0) <= 0 else scipy.optimize.brentq(beyond, 0, 1, xtol=1e-15)
        torch.testing.assert_close(found[k], at(s), rtol=0, atol=1e-9)
    assert (lengths(found - x) <= eps + 1e-12).all()
    # No feasible point is nearer to v: the angle condition of projections on convex sets.
    others = ball(x, eps).nearest(x + torch.randn(3, 7, generator=generator, dtype=torch.float64))
    assert (((v - found) * (others - found)).sum(1) <= 1e-9).all()


def test_projection_of_the_center_itself_is_the_center() -> None:
    x, _ = images()
    assert torch.equal(ball(x, 0.1).nearest(x.clone()), x)


def test_start_is_uniform_in_the_ball() -> None:
    torch.manual_seed(0)
    draws = ball(torch.zeros(20_000, 1, 3, dtype=torch.float64), 2.0).draw().flatten(1)
    share = (lengths(draws) / 2).pow(3)  # uniform on [0, 1] for a uniform point of the ball
    assert share.max() <= 1
    assert share.mean() == pytest.approx(1 / 2, abs=4 * math.sqrt(1 / 12 / 20_000))
    assert share.square().mean() == pytest.approx(1 / 3, abs=0.01)
    assert draws.mean(0).abs().max() < 4 * 2 / math.sqrt(20_000)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-12, 1.0, 1e30])
def test_direction_has_unit_length_however_small_the_gradient(scale: float) -> None:
    gradient = torch.tensor([[3.0, 4.0], [-4.0, 3.0]]) * scale
    direction, finite = ball(gradient, 1.0).ascent(gradient)
    assert finite.all()
    # Gradients below 1.2e-38 are subnormal numbers, of few digits.
    tolerance = 1e-4 if scale < 1e-38 else 1e-6
    expected = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    torch.testing.assert_close(direction, expected, rtol=tolerance, atol=0)


def test_direction_of_a_gradient_that_is_zero_or_not_finite_is_zero() -> None:
    rows = [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [0.0, -2.0]]
    gradient = torch.tensor(rows)
    direction, finite = ball(gradient, 1.0).ascent(gradient)
    assert direction.tolist() == [[0, 0], [0, 0], [0, 0], [0, -1]]
    assert finite.tolist() == [True, False, False, True]


class Plane(nn.Module):
    """Two classes on the sides of a plane."""

    def __init__(self, n: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.normal = nn.Parameter(torch.randn(n, generator=generator))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        margin = self.scale * ((x - 0.5) @ self.normal)
        return torch.stack([-margin, margin], 1)


# How far from the edge the lead is the same to rounding: the square root of the precision.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-3), (torch.float64, 1e-7)])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_images_in_the_interior_go_straight_to_the_edge_of_the_ball(
    scale: float, loss: str, dtype: torch.dtype, atol: float
) -> None:
    model = Plane(scale=scale).to(dtype)
    x = 0.5 + 0.1 * torch.rand(50, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = model(x).argmax(1)
    found = attack(eps=0.2, step_size=0.2, steps=25, loss=loss)(model, x, y)
    away = torch.where(y == 1, -1.0, 1.0)[:, None] * model.normal.detach() / model.normal.norm()
    torch.testing.assert_close(found, x + 0.2 * away, rtol=0, atol=atol)


def test_linear_model_reaches_its_closed_form_robust_accuracy() -> None:
    model, eps = Plane(), 0.3
    x = torch.rand(300, 8, generator=torch.Generator().manual_seed(2))
    y = model(x).argmax(1)
    y[::10] = 1 - y[::10]
    sign = torch.where(y == 1, 1.0, -1.0)
    worst = ball(x, eps).nearest(x - 1e6 * sign[:, None] * model.normal)  # the ball's far end
    robust = int(((model(x).argmax(1) == y) & (model(worst).argmax(1) == y)).sum())
    batches = [(x[:100], y[:100]), (x[100:], y[100:])]
    options = {"name": "pgd_l2", "eps": eps, "step_size": eps, "steps": 40}
    result = attack_model(model, batches, options)
    assert (result.norm, result.eps, result.attack) == ("l2", eps, "pgd_l2")
    assert 0 < robust == result.robust < result.clean.correct < 300
    assert result.max_perturbation == pytest.approx(eps, abs=1e-6)


def test_result_of_an_image_does_not_depend_on_the_others_in_its_batch() -> None:
    x, y = images(dtype=torch.float64)
    model = network().double()
    start = ball(x, 0.5).draw()

    def found(rows: slice, monkeypatch: pytest.MonkeyPatch) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(L2Ball, "draw", lambda self: start[rows])
            return attack(eps=0.5)(model, x[rows], y[rows])

    with pytest.MonkeyPatch.context() as monkeypatch:
        alone = torch.cat([found(slice(k, k + 1), monkeypatch) for k in range(6)])
        torch.testing.assert_close(found(slice(None), monkeypatch), alone)


def test_random_start_depends_on_the_seed_alone() -> None:
    x, y = images()
    found = []
    for seed in (1, 1, 2):
        with seeded(seed, CPU):
            found.append(attack(eps=0.1, steps=2)(network(), x, y))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attack_works_where_gradients_are_off_and_leaves_everything_alone(context: Any) -> None:
    model = network().train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with context():
        x, y = images()
        before = x.clone()
        found = attack()(model, x, y)
    assert not torch.equal(found, before)
    assert torch.equal(x, before)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Detached(nn.Module):
    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :3] * self.scale


@pytest.mark.parametrize("trained", [False, True])
def test_model_that_cuts_the_gradient_is_not_called_robust(trained: bool) -> None:
    with pytest.raises(AttackError, match="do not depend differentiably"):
        attack()(Detached(trained), *images())


class NotANumberInTheFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        zero = (x[:1] - x[:1].detach()).flatten(1)[:, :3].sqrt()  # its derivative is infinite
        return x.flatten(1)[:, :3] + nn.functional.pad(zero, (0, 0, 0, len(x) - 1))


def test_gradient_that_is_not_finite_is_reported_and_spoils_no_other_image() -> None:
    x, y = images()
    with pytest.warns(RuntimeWarning, match="not finite in 1 of 6 images"):
        found = attack(eps=0.5)(NotANumberInTheFirst(), x, y)
    logits = found.flatten(1)[:, :3], x.flatten(1)[:, :3]
    after, before = (nn.functional.cross_entropy(v, y, reduction="none") for v in logits)
    assert (after[1:] > before[1:]).all()


def test_options_default_to_a_reach_beyond_the_ball() -> None:
    default = attack()
    assert (default.eps, default.norm, default.steps) == (127 / 255, "l2", 20)
    assert default.steps * default.step_size == pytest.approx(2.5 * default.eps)  # type: ignore[attr-defined]
    assert attack(step_size=2 / 255, steps=10).step_size == 2 / 255  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps=0 must be a positive finite number"),
        ({"eps": math.inf}, "eps=inf must be a positive finite number"),
        ({"eps": "127/255"}, "eps='127/255' must be a positive finite number"),
        ({"step_size": -1.0}, "step_size=-1.0 must be a positive finite number"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
    ],
)
def test_bad_options_are_refused_with_a_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        attack(**options)


def test_bad_input_is_refused_with_a_reason() -> None:
    x, y = images()
    with pytest.raises(stabnet.InvalidInputError, match=r"expected \[0, 1\]"):
        attack()(network(), x * 2, y)
    with pytest.raises(stabnet.InvalidInputError, match="the model has 3 classes"):
        attack()(network(), x, y + 1)
    with pytest.raises(stabnet.InvalidInputError, match=r"eps=127\.0 exceeds 4, .* 127/255"):
        attack(eps=127)(network(), x, y)


def test_no_extra_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    x, y = images()
    assert not torch.equal(attack()(network(), x, y), x)
