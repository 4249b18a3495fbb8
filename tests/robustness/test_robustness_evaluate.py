from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stabnet
from stabnet.interfaces import Attack, Solution
from stabnet.robustness import AttackError, attack_model, eval_mode, perturbation, seeded

EPS = 8 / 255


def data(count: int = 200, n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, n, generator=generator), torch.randint(
        2, (count,), generator=generator
    )


def linear(n: int = 8) -> nn.Linear:
    """Two classes, told apart by the side of a plane through the center of the cube."""
    model = nn.Linear(n, 2)
    weight = torch.randn(2, n, generator=torch.Generator().manual_seed(1))
    model.weight.data = weight
    model.bias.data = -weight.sum(1) / 2
    return model


def labelled(count: int = 200) -> tuple[Tensor, Tensor]:
    """Images with the linear model's own answers, one in ten of them turned around."""
    x, _ = data(count)
    y = linear()(x).argmax(1)
    y[::10] = 1 - y[::10]
    return x, y


def closed_form(model: nn.Linear, x: Tensor, y: Tensor, eps: float) -> tuple[int, int]:
    """Count right answers before, and before and after the strongest attack on a linear model."""
    towards = model.weight[1 - y] - model.weight[y]
    worst = (x + eps * towards.sign()).clamp(0, 1)
    right = model(x).argmax(1) == y
    return int(right.sum()), int((right & (model(worst).argmax(1) == y)).sum())


class Fixed(Attack):
    """Shifts every pixel to a given value; nothing is searched for."""

    eps = 1.0
    norm = "linf"
    steps = 0

    def __init__(self, value: float, eps: float = 1.0) -> None:
        self.value = value
        self.eps = eps

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255, 20 / 255])
@pytest.mark.parametrize("name", ["ifgsm", "pgd"])
def test_linear_model_reaches_its_closed_form_robust_accuracy(name: str, eps: float) -> None:
    x, y = labelled()
    result = attack_model(
        linear(), [(x[:70], y[:70]), (x[70:], y[70:])],
        {"name": name, "eps": eps, "step_size": eps / 4, "steps": 9},
    )  # fmt: skip
    clean, robust = closed_form(linear(), x, y, eps)
    assert 0 < robust < clean < len(x)
    assert (result.clean.correct, result.robust) == (clean, robust)
    assert result.images == len(x)
    assert result.max_perturbation == pytest.approx(eps, abs=2e-7)
    assert result.clean.dead_gradients == 0


def test_image_that_was_wrong_before_never_counts_as_robust() -> None:
    x, _ = data()
    model = linear()
    gray = torch.full((1, 8), 0.7)
    y = model(gray).argmax(1).expand(len(x))  # after the attack every answer is right
    result = attack_model(model, [(x, y)], Fixed(0.7))
    assert result.clean.correct < len(x)
    assert result.robust == result.clean.correct


class AnswersNaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), torch.nan) + 0 * x[:, :1]


def test_nan_logits_are_never_a_right_answer() -> None:
    x, _ = data(5)
    result = attack_model(AnswersNaN(), [(x, torch.zeros(5, dtype=torch.long))], Fixed(0.5))
    assert (result.clean.correct, result.robust, result.clean.dead_gradients) == (0, 0, 5)


def test_same_seed_gives_the_same_result_and_leaves_random_numbers_alone() -> None:
    x, y = labelled()
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    attack = {"name": "pgd", "eps": EPS, "steps": 1}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = attack_model(linear(), loader, attack, max_images=50, seed=3)
    torch.rand(3)
    assert attack_model(linear(), loader, attack, max_images=50, seed=3) == first
    others = [attack_model(linear(), loader, attack, max_images=50, seed=s) for s in (4, 5, 6)]
    assert any(other.robust != first.robust for other in others)
    torch.manual_seed(5)
    model = linear()
    torch.set_rng_state(before)
    attack_model(model, loader, attack, max_images=50)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_modes_statistics_and_gradients_are_restored() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    attack_model(model, [labelled()], "pgd")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_modes_are_restored_when_the_attack_raises() -> None:
    model = nn.Sequential(nn.Dropout(), linear()).train()
    model[0].eval()
    with pytest.raises(AttackError, match="left the linf ball"):
        attack_model(model, [labelled()], Fixed(0.5, eps=0.01))
    assert [m.training for m in model.modules()] == [True, False, True]


class Careless(Attack):
    """Leaves the model in training mode and spoils the images it was given."""

    eps = 0.1
    norm = "linf"
    steps = 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found = x.clone()
        model.train()
        x.zero_()
        y.zero_()
        return found


def test_careless_attack_spoils_neither_model_nor_images() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8, affine=False), linear())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    result = attack_model(model, [labelled()], Careless())
    assert result.clean.correct == result.robust > 0
    assert result.max_perturbation == 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_max_images_cuts_the_last_batch() -> None:
    x, y = labelled()
    batches = [(x[:64], y[:64]), (x[64:], y[64:])]
    result = attack_model(linear(), batches, "ifgsm", max_images=100)
    assert result.images == 100
    assert (result.clean.correct, result.robust) == closed_form(linear(), x[:100], y[:100], EPS)


class Solving(nn.Module):
    """A model that says which of its solves converged: those of images that start dark."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits

    def run(self, x: Tensor) -> tuple[Tensor, Solution]:
        return self(x), Solution(x, converged=x[:, 0] < 0.5)


def test_share_of_converged_solves_is_reported_before_and_after() -> None:
    x, y = labelled()
    result = attack_model(Solving(), [(x, y)], Fixed(0.9))
    assert result.clean.converged_share == pytest.approx(float((x[:, 0] < 0.5).float().mean()))
    assert result.converged_share == 0
    assert attack_model(linear(), [(x, y)], Fixed(0.9)).converged_share is None


class OtherRun(nn.Module):
    def run(self, x: Tensor) -> str:
        return "done"


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (linear(), [], "no images to attack"),
        (linear(), labelled(), r"give \[\(images, labels\)\]"),
        (linear(), [{"x": 1}], "got dict"),
        (linear(), [(labelled()[0] * 3, labelled()[1])], r"expected \[0, 1\]"),
        (linear(), [(labelled()[0], labelled()[1] + 1)], "the model has 2 classes"),
        (nn.Flatten(0), [labelled()], r"expected logits \(batch, classes\)"),
        (OtherRun(), [labelled()], r"expected to return \(logits, Solution\)"),
    ],
)
def test_bad_input_is_refused_with_a_reason(model: nn.Module, batches: Any, message: str) -> None:
    with pytest.raises(stabnet.InvalidInputError, match=message):
        attack_model(model, batches, "ifgsm")


def test_unknown_attack_and_senseless_limit_are_refused() -> None:
    with pytest.raises(stabnet.UnknownNameError, match="pgd"):
        attack_model(linear(), [labelled()], "pgdd")
    with pytest.raises(stabnet.InvalidOptionError, match="max_images=0"):
        attack_model(linear(), [labelled()], "pgd", max_images=0)


def test_perturbation_is_measured_in_the_norm_asked_for() -> None:
    x = torch.zeros(2, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0] = torch.tensor([0.3, 0.4])
    assert perturbation(x_adv, x, "linf").tolist() == pytest.approx([0.4, 0.0])
    assert perturbation(x_adv, x, "l2").tolist() == pytest.approx([0.5, 0.0])
    with pytest.raises(stabnet.InvalidInputError, match="unknown norm 'l1'"):
        perturbation(x_adv, x, "l1")  # type: ignore[arg-type]


def test_seeded_block_repeats_itself_and_gives_the_state_back() -> None:
    cpu = torch.device("cpu")
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        with seeded(seed, cpu):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(KeyError), seeded(1, cpu):
        dict[float, int]()[float(torch.rand(()))]
    assert torch.equal(torch.get_rng_state(), before)


def test_eval_mode_keeps_a_frozen_part_frozen() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[0].eval()
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, False, True]
