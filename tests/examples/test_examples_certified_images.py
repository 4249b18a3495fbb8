"""The example of certified radii runs, and notices an attack that contradicts a certificate."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import stabnet

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = (
    "--epochs",
    "2",
    "--images",
    "40",
    "--steps",
    "4",
    "--restarts",
    "2",
    "--eps",
    "0.1",
    "0.5",
)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    file = EXAMPLES / "certified_images.py"
    spec = importlib.util.spec_from_file_location("example_certified_images", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def test_it_trains_certifies_and_attacks(script, tmp_path, capsys):
    script.main([*QUICK, "--models", "margin 0.5", "unconstrained", "--out", str(tmp_path)])
    text = (tmp_path / "certified-digits.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert str(tmp_path) not in text
    for said in (
        "--models 'margin 0.5' unconstrained --eps 0.1 0.5 --epochs 2 --images 40",
        "in l2",
        "4 steps, 2 random starts",
        "on 40 test images, evenly spaced",
        "| margin 0.5 | APGD |",
        "No attack contradicts a certificate.",
    ):
        assert said in text
    assert (tmp_path / "certified-digits.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "certified-digits.json").read_text())
    constrained, free = record["rows"]
    assert constrained["certificate"]["bound"]["features"] == pytest.approx(1, abs=1e-5)
    assert free["certificate"]["bound"]["features"] > 2
    for row in record["rows"]:
        assert all(found["succeeded"] == 0 for found in row["inside"].values())
        norms = {(r["norm"], r["steps"], r["images"]) for r in row["robustness"]["results"]}
        assert norms == {("l2", 4, 40)}
        assert row["certified_of_attacked"] == sorted(row["certified_of_attacked"], reverse=True)


def test_saved_models_are_examined_without_training(script, tmp_path):
    torch.manual_seed(0)
    net = stabnet.build(
        "nonexpansive_net", in_shape=(1, 8, 8), **script.RECIPES["digits"]["margin 1"].net
    )
    stabnet.renormalize(net)
    file = tmp_path / "mine.safetensors"
    stabnet.save(net, file)
    script.main([*QUICK, "--load", str(file), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "certified-digits.md").read_text()
    assert "| mine | PGD |" in text
    assert "/mine.safetensors" in text


def test_a_certificate_that_is_wrong_ends_in_an_error(script, tmp_path, monkeypatch):
    torch.manual_seed(0)
    report = stabnet.certify.certified_accuracy

    def boastful(model, batches, eps):
        found = report(model, batches, eps)
        radii = tuple(20 * radius for radius in found.radii)
        return type(found)(**{**vars(found), "radii": radii})

    monkeypatch.setattr(stabnet.certify, "certified_accuracy", boastful)
    options = [*QUICK, "--models", "margin 0.5", "--out", str(tmp_path)]
    with pytest.raises(
        SystemExit, match=r"contradicts a certificate: .* inside of their certified"
    ):
        script.main(options)
    assert "**CONTRADICTION.**" in (tmp_path / "certified-digits.md").read_text()


def test_every_recipe_builds_and_its_twin_has_about_as_many_parameters(script):
    shapes = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10_jpeg": (3, 32, 32)}
    for data, recipes in script.RECIPES.items():
        sizes = []
        for recipe in recipes.values():
            stabnet.build(recipe.objective, kind="objective")
            name = "nonexpansive_net" if recipe.constrained else "resnet_twin"
            net = stabnet.build(name, in_shape=shapes[data], **recipe.net)
            sizes.append(sum(p.numel() for p in net.parameters()))
        assert max(sizes) < 1.2 * min(sizes)
