from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Attack
from stabnet.robustness import AttackError, check_perturbation, seeded

NAMES = ("ifgsm", "pgd")
CPU = torch.device("cpu")


def images(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 4, 4, generator=generator, dtype=dtype)
    return x.round(decimals=1), torch.arange(count) % 3


def network() -> nn.Sequential:
    with seeded(0, CPU):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip


def attack(name: str, **options: Any) -> Attack:
    return stabnet.build(name, kind="attack", **options)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3, 1.0])
def test_result_stays_in_the_ball_and_in_the_unit_cube(
    name: str, dtype: torch.dtype, eps: float
) -> None:
    x, y = images(dtype=dtype)
    found = attack(name, eps=eps, step_size=eps / 2, steps=5)(network().to(dtype), x, y)
    assert found.dtype == dtype
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - x).abs().max() <= eps + torch.finfo(dtype).eps
    assert (found - x).abs().max() >= eps / 2  # it does go somewhere


@pytest.mark.parametrize("name", NAMES)
def test_attack_raises_the_loss(name: str) -> None:
    x, y = images()
    model = network().eval()
    found = attack(name, eps=0.1, step_size=0.02, steps=8)(model, x, y)
    loss = nn.functional.cross_entropy
    assert loss(model(found), y) > loss(model(x), y)


def test_attack_does_not_change_its_inputs() -> None:
    x, y = images()
    before = x.clone()
    attack("pgd")(network(), x, y)
    assert torch.equal(x, before)
    assert not x.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_steps_default_to_the_formula_of_the_paper(name: str) -> None:
    assert attack(name, eps=6 / 255).steps == 7
    assert attack(name, eps=6 / 255, steps=3).steps == 3


def test_random_start_depends_on_the_seed_alone() -> None:
    x, y = images()
    found = []
    for seed in (1, 1, 2):
        with seeded(seed, CPU):
            found.append(attack("pgd", eps=0.1)(network(), x, y))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_ifgsm_draws_no_random_numbers() -> None:
    x, y = images()
    before = torch.get_rng_state()
    model = network()
    attack("ifgsm")(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_keeps_its_own_mode(name: str) -> None:
    model = network().train()
    model[1].eval()
    before = [m.training for m in model.modules()]
    assert True in before
    assert False in before
    attack(name)(model, *images())
    assert [m.training for m in model.modules()] == before


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(2).eval()

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("name", NAMES)
def test_every_module_keeps_its_own_mode_when_the_attack_raises(name: str) -> None:
    model = Broken()
    assert model.training
    assert not model.frozen.training
    with pytest.raises(RuntimeError, match="out of luck"):
        attack(name)(model, *images())
    assert model.training
    assert not model.frozen.training


@pytest.mark.parametrize("name", NAMES)
def test_model_is_attacked_in_eval_mode(name: str) -> None:
    seen: list[bool] = []
    model = network().train()
    model.register_forward_hook(lambda m, *_: seen.extend(c.training for c in m.modules()))
    attack(name)(model, *images())
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_gradients_and_statistics_are_left_alone(name: str) -> None:
    model = network().train()
    model[0].weight.requires_grad_(False)
    next(model[5].parameters()).grad = torch.ones(3, 16)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    attack(name)(model, *images())
    assert [p.requires_grad for p in model.parameters()] == flags
    for k, v in model.state_dict().items():
        assert torch.equal(v, state[k]), k
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)  # type: ignore[arg-type]


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * 5


@pytest.mark.parametrize("name", NAMES)
def test_model_without_parameters_is_attacked_in_silence(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = images()
    found = attack(name, eps=0.1, step_size=0.05)(NoParameters(), x, y)
    assert not torch.equal(found, x)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attack_works_where_gradients_are_off(context: Any) -> None:
    with context():
        x, y = images()
        found = attack("ifgsm", eps=0.1)(NoParameters(), x, y)
    assert not torch.equal(found, x)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * 2 - 0.5, y), r"range from -0.5 to 1.5; expected \[0, 1\]"),
        (lambda x, y: ((x * 255).byte(), y), r"torch.uint8.*Divide 8-bit images by 255"),
        (lambda x, y: (x.bfloat16(), y), r"bfloat16.*autocast"),
        (lambda x, y: (x.where(x < 0.5, torch.nan), y), "NaN"),
        (lambda x, y: (x, y[:-1]), r"labels have shape \(5,\)"),
        (lambda x, y: (x, nn.functional.one_hot(y)), r"labels have shape \(6, 3\)"),
        (lambda x, y: (x, y.float()), "one integer class"),
        (lambda x, y: (x, y - 1), "down to -1"),
        (lambda x, y: (x, y + 1), "labels go up to 3, but the model has 3 classes"),
        (lambda x, y: (x[:0], y[:0]), "at least one image"),
    ],
)
def test_bad_input_is_refused_with_a_reason(spoil: Any, message: str) -> None:
    with pytest.raises(stabnet.InvalidInputError, match=message):
        attack("ifgsm")(network(), *spoil(*images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, r"eps=8 must lie in \(0, 1\]"),
        ({"step_size": 0.0}, r"step_size=0.0 must lie in \(0, 1\]"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"radius": 0.1}, "has no option 'radius'"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_options_are_refused_with_a_reason(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(stabnet.InvalidOptionError, match=message):
        attack(name, **options)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :3]


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        zero = (x - x.detach()).flatten(1)[:, :3]
        return x.flatten(1)[:, :3] + zero.sqrt() * 0  # finite, with derivative 0 · ∞


def test_model_that_cuts_the_gradient_is_not_called_robust() -> None:
    with pytest.raises(AttackError, match="do not depend differentiably"):
        attack("pgd")(Detached(), *images())


@pytest.mark.parametrize("name", NAMES)
def test_attack_that_meets_a_nan_gradient_is_not_silent(name: str) -> None:
    with pytest.warns(RuntimeWarning, match="gradient is NaN in 6 of 6 images"):
        attack(name)(NotANumber(), *images())


@pytest.mark.parametrize("name", NAMES)
def test_missing_extra_is_named_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(stabnet.MissingExtraError, match=r'pip install "stabnet\[attacks\]"'):
        attack(name)


def test_attacks_can_be_listed_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    assert {"ifgsm", "pgd"} <= {e.name for e in stabnet.entries(kind="attack")}
    assert set(stabnet.info("pgd", kind="attack").signature.parameters) == {
        "eps", "step_size", "steps",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_references_name_method_library_and_protocol(name: str) -> None:
    (entry,) = stabnet.entries(name, kind="attack")
    assert len(entry.reference) == 3
    assert all(r.startswith("@") and r.count("{") == r.count("}") for r in entry.reference)


def test_escape_from_the_ball_is_caught() -> None:
    x, _ = images()
    with pytest.raises(AttackError, match=r"left the linf ball .* in 6 of 6"):
        check_perturbation((x * 0.5 + 0.25).clamp(0, 1), x, eps=0.01, norm="linf")
    with pytest.raises(AttackError, match=r"left \[0, 1\]"):
        check_perturbation(x + 0.005, x, eps=0.01, norm="linf")
    with pytest.raises(AttackError, match="expected the same"):
        check_perturbation(x.double(), x, eps=0.01, norm="linf")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_attack_stays_on_the_device_of_its_images(name: str) -> None:
    x, y = images()
    found = attack(name)(network().cuda(), x.cuda(), y.cuda())
    assert found.is_cuda
