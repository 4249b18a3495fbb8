from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from stabnet_adversarial.apgd import _checkpoints
from stabnet_adversarial.balls import L2Ball, LinfBall
from stabnet_adversarial.losses import LOSSES
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Attack
from stabnet.robustness import AttackError, attack_model, seeded

CPU = torch.device("cpu")
EPS = {"linf": 0.06, "l2": 0.5}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # models and starts


def images(count: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 4, 4, generator=generator, dtype=dtype)
    return x.mul(1.6).sub(0.3).clamp(0, 1), torch.arange(count) % 4  # some pixels on the border


class Bumpy(nn.Module):
    """Four classes with many local extrema."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        with seeded(3, CPU):
            self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.sin(6 * self.first(x.flatten(1))))
        return self.scale * logits


def attack(name: str = "apgd", **options: Any) -> Attack:
    return stabnet.build(name, kind="attack", **options)  # type: ignore[no-any-return]


def lead(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By how much the best other class leads."""
    with torch.no_grad():
        logits = model(x)
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own  # type: ignore[no-any-return]


def size(x: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(x.double().flatten(1), 2 if norm == "l2" else torch.inf, dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", [*LOSSES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_is_in_ball_and_cube_without_a_rounding_error(
    norm: str, loss: str, dtype: torch.dtype
) -> None:
    x, _ = images(dtype=dtype)
    model = Bumpy().to(dtype)
    y = model(x).argmax(1)
    found = attack(norm=norm, eps=EPS[norm], steps=8, loss=loss)(model, x, y)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    assert size(found.double() - x.double(), norm).max() <= EPS[norm] * (1 + 1e-14)
    assert size(found - x, norm).min() > EPS[norm] / 3
    assert (lead(model, found, y) > lead(model, x, y)).all()


@pytest.mark.parametrize("name", ["apgd", "pgd_l2"])
def test_every_image_is_attacked_within_its_own_radius(name: str) -> None:
    x, y = images(6)
    radii = torch.tensor([0.0, 1e-6, 1e-3, 0.1, 1.0, 4.0], dtype=torch.float64)
    options = {"norm": "l2"} if name == "apgd" else {}
    found = attack(name, steps=12, **options).within(Bumpy(), x, y, radii)  # type: ignore[attr-defined]
    sizes = size(found.double() - x.double(), "l2")
    assert (sizes <= radii * (1 + 1e-14)).all()
    assert (sizes >= radii / 2)[[0, 2, 3, 4]].all()


def test_one_radius_for_each_image_is_one_radius_for_all() -> None:
    x, y = images()
    built = attack(norm="l2", eps=0.3, steps=6)
    found = []
    for run in (
        lambda: built(Bumpy(), x, y),
        lambda: built.within(Bumpy(), x, y, torch.full((8,), 0.3, dtype=torch.float64)),  # type: ignore[attr-defined]
    ):
        with seeded(0, CPU):
            found.append(run())
    assert torch.equal(*found)


class Peers:
    """APGD of its authors, from the same start as ours."""

    def __init__(self, norm: str, eps: float, steps: int, loss: str) -> None:
        peer = pytest.importorskip("pyautoattack.autopgd_base")
        name = {"linf": "Linf", "l2": "L2"}[norm]
        loss = {"cross_entropy": "ce", "dlr": "dlr"}[loss]
        self.make = lambda model: peer.APGDAttack(
            model, n_iter=steps, norm=name, eps=eps, loss=loss, device="cpu"
        )

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        run = self.make(model)
        run.init_hyperparam(x)
        *_, highest, _ = run.attack_single_run(x, y, x_init=start)
        return highest  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_it_finds_what_its_authors_find(
    norm: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, count = Bumpy().eval(), 200
    generator = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand(count, 16, generator=generator)  # no pixel ever leaves [0, 1]
    y = model(x).argmax(1)
    eps = EPS[norm]
    start = torch.rand_like(x).sub(0.5).mul(0.2 * eps)
    kind = L2Ball if norm == "l2" else LinfBall
    monkeypatch.setattr(kind, "draw", lambda self: start)
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        logits = model(images)
        seen.append(LOSSES[loss](logits.detach(), y))
        return logits  # type: ignore[no-any-return]

    module = nn.Identity()
    module.forward = watched  # type: ignore[method-assign]
    attack(norm=norm, eps=eps, loss=loss)(module, x, y)
    ours = torch.stack(seen).amax(0)
    theirs = Peers(norm, eps, 100, loss).losses(model, x, y, x + start)
    # Their first judgement compares with a loss of 0, and theirs is `<=`: some images may differ.
    close = (ours - theirs).abs() < 1e-5 * (1 + theirs.abs())
    assert close.double().mean() > 0.9


@pytest.mark.parametrize("name", ["apgd", "pgd_l2"])
def test_black_pixels_do_not_keep_it_from_the_optimum(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 60, generator=generator).sub(0.8).clamp_min(0).double()  # most are black
    model = nn.Linear(60, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 60, generator=generator))
    y = model(x).argmax(1)
    away = (model.weight[1 - y] - model.weight[y]).detach()
    radii = torch.full((20,), 1.0, dtype=torch.float64)
    best = lead(model, L2Ball(x, radii).nearest(x + 1e6 * away), y)  # the model is linear
    options = {"norm": "l2"} if name == "apgd" else {"step_size": 1.0}
    found = attack(name, eps=1.0, steps=100, **options)(model, x, y)
    torch.testing.assert_close(lead(model, found, y), best, rtol=1e-6, atol=1e-6)


def test_small_logits_are_attacked_as_well_as_large_ones() -> None:
    x, y = images(40)
    robust = []
    for scale in (1.0, 1e-4, 1e4):
        model = Bumpy(scale)
        y = model(x).argmax(1)
        options = {"name": "apgd", "norm": "l2", "eps": 0.3, "steps": 20, "loss": "margin"}
        robust.append(attack_model(model, [(x, y)], options).robust)
    assert 0 < robust[0] < 40
    assert max(robust) - min(robust) <= 1


def test_restarts_find_more_and_never_less() -> None:
    x, y = images(200)
    model = Bumpy()
    y = model(x).argmax(1)
    leads = []
    for restarts in (1, 2, 5):
        with seeded(0, CPU):
            built = attack("pgd_l2", eps=0.25, steps=4, restarts=restarts, loss="margin")
            leads.append(lead(model, built(model, x, y), y))
    flipped = [found > 0 for found in leads]
    for fewer, more in ((0, 1), (1, 2)):
        assert (leads[more] >= leads[fewer] - 1e-6).all()
        assert torch.equal(leads[more][flipped[fewer]], leads[fewer][flipped[fewer]])
    assert 0 < flipped[0].sum() < flipped[2].sum() < 200


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.batches = Bumpy(), list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.inner(x)  # type: ignore[no-any-return]


def test_images_that_flipped_are_not_attacked_again() -> None:
    x, y = images(60)
    model = Counting()
    y = model.inner(x).argmax(1)
    attack(norm="l2", eps=0.25, steps=5, restarts=2)(model, x, y)
    first, second = model.batches[:6], model.batches[6:]
    assert first == [60] * 6
    assert len(set(second)) == 1
    assert len(second) == 6
    assert 0 < second[0] < 60
    model.batches.clear()
    attack(norm="l2", eps=4.0, steps=5, restarts=9)(model, x, y)  # all of them flip
    assert len(model.batches) < 60


def test_checkpoints_are_those_of_the_paper() -> None:
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert max(_checkpoints(7)) <= 7


def test_losses_are_what_they_say() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.5, 2.0, 1.0, 4.0]])
    y = torch.tensor([0, 1])
    assert LOSSES["margin"](logits, y).tolist() == [-2.0, 2.0]
    torch.testing.assert_close(LOSSES["dlr"](logits, y), torch.tensor([-2 / 3, 2 / 3]))
    expected = nn.functional.cross_entropy(logits, y, reduction="none")
    assert torch.equal(LOSSES["cross_entropy"](logits, y), expected)


def test_margin_is_climbed_where_cross_entropy_is_flat() -> None:
    x, _ = images(40)
    model = Bumpy(scale=1e5)
    y = model(x).argmax(1)
    robust = {}
    for loss in ("margin", "cross_entropy"):
        options = {"name": "pgd_l2", "eps": 0.3, "steps": 20, "loss": loss}
        robust[loss] = attack_model(model, [(x, y)], options).robust
    assert robust["margin"] < robust["cross_entropy"] / 2


def test_a_gradient_of_nan_spoils_no_other_image() -> None:
    class FirstIsNan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            zero = (x[:1] - x[:1].detach()).flatten(1)[:, :4].sqrt()  # its derivative is infinite
            return x.flatten(1)[:, :4] + nn.functional.pad(zero, (0, 0, 0, len(x) - 1))

    x, _ = images()
    y = FirstIsNan()(x).argmax(1)
    for norm in EPS:
        with pytest.warns(RuntimeWarning, match="not finite in 1 of 8 images"):
            found = attack(norm=norm, eps=EPS[norm], steps=5)(FirstIsNan(), x, y)
        assert found.isfinite().all()
        assert (lead(FirstIsNan(), found, y) > lead(FirstIsNan(), x, y))[1:].all()


def test_logits_of_nan_count_as_wrong_and_are_never_preferred_to_a_real_mistake() -> None:
    class Holes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4]
            return logits.where(logits.amax(1, keepdim=True) < 2, torch.nan) + x.new_tensor(
                [0.0, 0.0, 0.0, math.nan if x.mean() > 9 else 0.0]
            )

    x, y = images()
    found = attack(norm="l2", eps=0.5, steps=5)(Holes(), x, y)
    assert Holes()(found).isfinite().all()


def test_seed_governs_everything_and_nothing_global_changes() -> None:
    x, y = images()
    model = Bumpy().train()
    found = []
    for seed in (1, 1, 2):
        with seeded(seed, CPU):
            found.append(attack(norm="linf", eps=0.1, steps=3, restarts=2)(model, x, y))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm='l1' is unknown; it is one of linf, l2"),
        ({"eps": 8}, r"eps=8 must lie in \(0, 1\]"),
        ({"norm": "l2", "eps": 0}, "eps=0 must be a positive finite number"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"restarts": 0}, "restarts=0 must be a whole number"),
        ({"loss": "ce"}, "loss='ce' is unknown; it is one of cross_entropy, margin, dlr"),
    ],
)
def test_bad_options_are_refused_with_a_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        attack(**options)


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        (torch.ones(7), r"radii have shape \(7,\)"),
        (torch.ones(8, dtype=torch.long), "one floating-point radius per image"),
        (torch.linspace(-1, 1, 8), "radii go down to -1"),
        (torch.full((8,), math.nan), "expected numbers, at least 0"),
        (torch.full((8,), 5.0), "exceeds 4, the l2 distance of any two images"),
    ],
)
def test_radii_that_do_not_fit_are_refused(radii: Tensor, message: str) -> None:
    x, y = images()
    with pytest.raises(stabnet.InvalidInputError, match=message):
        attack(norm="l2").within(Bumpy(), x, y, radii)  # type: ignore[attr-defined]


def test_dlr_of_two_classes_is_refused() -> None:
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(stabnet.InvalidInputError, match=r"the model has 2 classes; .* 'dlr' three"):
        attack(loss="dlr")(model, x, y % 2)


def test_model_that_cuts_the_gradient_is_not_called_robust() -> None:
    x, y = images()
    model = nn.Flatten()
    with pytest.raises(AttackError, match="do not depend differentiably"):
        attack()(_Detached(model), x, y)


class _Detached(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())  # type: ignore[no-any-return]


def test_no_extra_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ("torchattacks", "pyautoattack"):
        monkeypatch.setitem(sys.modules, extra, None)
    x, y = images()
    assert not torch.equal(attack(steps=2)(Bumpy(), x, y), x)
