from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Solution
from stabnet.robustness import (
    PAPER_EPS,
    AttackResult,
    CleanResult,
    RobustnessReport,
    attack_model,
    attack_report,
    masking_warnings,
    paper_protocol,
)


def data(count: int = 300, n: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the answers of a linear teacher, and the teacher's weight per pixel."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, generator=generator)
    x = torch.randint(17, (count, n), generator=generator) / 16
    return x, ((x - 0.5) @ weight > 0).long(), weight


class Linear(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(data()[2] * scale)

    def forward(self, x: Tensor) -> Tensor:
        margin = (x - 0.5) @ self.weight
        return torch.stack([-margin, margin], 1)


class Quantizing(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 16).round() / 16)


class FlatAtTheImages(Linear):
    """Constant close to the images; a little farther out every answer turns around."""

    def forward(self, x: Tensor) -> Tensor:
        away = (x * 16 - (x * 16).round()).abs()
        return super().forward((x * 16).round() / 16) * (1 - 50 * (away - 0.1).relu().mean(1, True))


class Unsettled(Linear):
    def run(self, x: Tensor) -> tuple[Tensor, Solution]:
        return self(x), Solution(x, converged=(x * 16 == (x * 16).round()).all(1))


def report(model: nn.Module, **options: object) -> RobustnessReport:
    x, y, _ = data()
    return paper_protocol(model, [(x[:200], y[:200]), (x[200:], y[200:])], **options)  # type: ignore[arg-type]


def result(name: str, pixels: float, robust: int, clean: int = 970, steps: int = 5) -> AttackResult:
    before = CleanResult(images=1000, correct=clean, dead_gradients=0)
    eps = pixels / 255
    return AttackResult(name, "linf", eps, steps, 1.2 * eps / steps, 0, before, robust, eps)


def test_protocol_is_that_of_the_paper() -> None:
    found = report(Linear())
    settings = [(r.attack, round(255 * r.eps, 9), r.steps) for r in found.results]
    steps = [(2, 2), (4, 5), (6, 7), (8, 10)]
    assert settings == [(name, e, n) for name in ("ifgsm", "pgd") for e, n in steps]
    assert {r.step_size for r in found.results} == {1 / 255}
    assert {r.images for r in found.results} == {300}
    assert [r["attack"] for r in found.rows()] == ["none", *["ifgsm"] * 4, *["pgd"] * 4]


def test_protocol_counts_what_the_single_attacks_count() -> None:
    x, y, _ = data()
    found = report(Linear(), seed=7, max_images=250)
    for i, name in enumerate(("ifgsm", "pgd")):
        alone = attack_model(
            Linear(), [(x[:200], y[:200]), (x[200:], y[200:])], {"name": name, "eps": PAPER_EPS[1]},
            seed=7, max_images=250,
        )  # fmt: skip
        assert alone == found.results[4 * i + 1]


def test_honest_linear_model_raises_no_warning() -> None:
    found = report(Linear())
    accuracies = [r.robust_accuracy for r in found.results[:4]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] - accuracies[-1] > 0.1
    assert found.warnings == ()
    assert "no proof of its absence" in found.to_markdown()


def test_saturated_softmax_raises_a_warning() -> None:
    found = report(Linear(scale=1e5))
    assert found.clean.dead_gradient_share > 0.9
    assert found.results[3].robust_accuracy > 0.9  # robust only in looks
    assert any("exactly zero" in w for w in found.warnings)


def test_quantized_input_raises_a_warning() -> None:
    found = report(Quantizing())
    assert found.clean.dead_gradient_share == 1
    assert any("exactly zero" in w for w in found.warnings)
    assert "**Warning.**" in found.to_markdown()


def test_gradient_that_misleads_at_the_images_raises_a_warning() -> None:
    found = report(FlatAtTheImages(), eps=(8 / 255,))
    assert found.results[0].robust_accuracy == 1
    assert found.results[1].robust_accuracy < 0.5
    assert any("random start" in w for w in found.warnings)


def test_unconverged_solves_under_attack_raise_a_warning() -> None:
    found = report(Unsettled())
    assert found.clean.converged_share == 1
    assert any("do not converge under" in w and "0.0% on the clean" in w for w in found.warnings)
    assert "Converged solves: 100.00% clean" in found.to_markdown()


def test_flat_curve_of_the_paper_raises_a_warning() -> None:
    curve = [result("ifgsm", e, r) for e, r in ((2, 502), (4, 499), (6, 497), (8, 497))]
    (warning,) = masking_warnings(curve)
    assert "97.0% clean and 50.2% at 2/255, but still 49.7% at 8/255" in warning


@pytest.mark.parametrize(
    "robust",
    [
        (800, 600, 400, 200),  # falls as it should
        (965, 962, 958, 955),  # nothing lost at the first radius either
        (40, 2, 0, 0),  # nothing left to lose
        (929, 820, 700, 582),  # measured on an honest equilibrium model
    ],
)
def test_curve_that_falls_or_has_no_need_to_raises_no_warning(robust: tuple[int, ...]) -> None:
    curve = [result("ifgsm", e, r) for e, r in zip((2, 4, 6, 8), robust, strict=True)]
    assert masking_warnings(curve) == ()


def test_single_step_stronger_than_many_raises_a_warning() -> None:
    many, one = result("ifgsm", 8, 600, steps=10), result("ifgsm", 8, 500, steps=1)
    (warning,) = masking_warnings([many], single_step=[one])
    assert "a single step leaves 50.0%, and ifgsm with 10 steps 60.0%" in warning
    assert masking_warnings([many], single_step=[result("ifgsm", 8, 590, steps=1)]) == ()
    assert masking_warnings([many], single_step=[result("ifgsm", 4, 500, steps=1)]) == ()


def test_random_start_is_compared_at_the_same_radius() -> None:
    plain = [result("ifgsm", e, r) for e, r in ((4, 724), (8, 600))]
    (warning,) = masking_warnings(plain, random_start=[result("pgd", 4, 483)])
    assert "at 4/255" in warning
    assert masking_warnings(plain, random_start=[result("pgd", 8, 590)]) == ()
    assert masking_warnings([]) == ()


def test_report_says_how_it_is_to_be_read() -> None:
    caveat = report(Linear()).caveat
    for words in ("weak: 2 to 10 gradient steps", "upper bound", "before and after the attack"):
        assert words in caveat


def test_attacks_of_choice_are_reported_each_in_its_norm() -> None:
    x, y, _ = data()
    batches = [(x[:200], y[:200]), (x[200:], y[200:])]
    attacks = [{"name": "pgd_l2", "eps": 64 / 255}, "ifgsm"]
    found = attack_report(Linear(), batches, attacks, max_images=250, seed=3)
    alone = [attack_model(Linear(), batches, a, max_images=250, seed=3) for a in attacks]
    assert found.results == tuple(alone)
    assert [r["norm"] for r in found.rows()] == ["l2 or linf", "l2", "linf"]
    assert "robust accuracy in the norm l2 or linf, says nothing about other" in found.caveat
    assert found.warnings == ()
    only = attack_report(Linear(), batches, attacks[:1])
    assert "With 20 gradient steps an image" in only.caveat
    assert "in the norm l2, says nothing" in only.caveat
    lines = only.to_markdown().splitlines()
    assert any(line.startswith("| pgd_l2 | l2 | 64/255 | 20 | 8/255 | 300 |") for line in lines)


@pytest.mark.parametrize("attacks", [[], "pgd_l2", {"name": "pgd_l2"}])
def test_attacks_of_choice_are_a_sequence_of_at_least_one(attacks: object) -> None:
    x, y, _ = data()
    with pytest.raises(stabnet.InvalidOptionError, match="sequence of at least one attack"):
        attack_report(Linear(), [(x, y)], attacks)  # type: ignore[arg-type]


def test_steps_that_cannot_cross_the_ball_raise_a_warning() -> None:
    x, y, _ = data()
    void = {"name": "pgd_l2", "eps": 127 / 255, "step_size": 2 / 255, "steps": 10}
    (warning,) = attack_report(Linear(), [(x, y)], [void]).warnings
    assert "10 steps of pgd_l2 travel 20/255 in l2, less than the radius 127/255" in warning
    just = {**void, "eps": 20 / 255}
    assert attack_report(Linear(), [(x, y)], [just]).warnings == ()


def test_curves_of_two_norms_are_not_taken_for_one() -> None:
    curve = [result("mine", e, r) for e, r in ((4, 500), (127, 495))]
    assert len(masking_warnings(curve)) == 1
    assert masking_warnings([curve[0], replace(curve[1], norm="l2")]) == ()


def test_markdown_has_every_column_and_row() -> None:
    lines = report(Linear(), seed=4).to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| attack | norm | eps | steps | step size | images | seed | accuracy |"
    assert table[2].startswith("| none | linf | 0/255 | 0 | – | 300 | 4 | 100.00% |")
    assert table[-1].startswith("| pgd | linf | 8/255 | 10 | 1/255 | 300 | 4 | ")
    assert len(table) == 2 + 9
    assert {line.count("|") for line in table} == {9}


def test_json_holds_the_whole_report(tmp_path: Path) -> None:
    found = report(Quantizing())
    path = found.write_json(tmp_path / "new" / "report.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.to_dict()))
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    assert found.to_dict()["warnings"]


def test_interrupted_write_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        report(Linear(), eps=(2 / 255,)).write_json(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_radii_must_be_given_and_in_range() -> None:
    with pytest.raises(stabnet.InvalidOptionError, match="eps is empty"):
        report(Linear(), eps=())
    with pytest.raises(stabnet.InvalidOptionError, match="written 8/255"):
        report(Linear(), eps=(8,))
