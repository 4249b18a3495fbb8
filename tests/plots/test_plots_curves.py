from __future__ import annotations

import subprocess
import sys

import pytest

import stabnet
from stabnet.plots import AccuracyCurve, accuracy_curves, save_figure, training_curves

HISTORY = [
    {"epoch": 1, "train_loss": 1.0, "validation_loss": 1.2, "validation_accuracy": 0.5},
    {"epoch": 2, "train_loss": 0.5, "validation_loss": 0.8, "validation_accuracy": 0.7},
]


def test_training_curves_have_a_panel_for_each_metric_and_a_line_for_each_split():
    figure = training_curves(HISTORY)
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert labels == ["loss", "accuracy"]
    train, validation = figure.axes[0].get_lines()
    assert list(train.get_ydata()) == [1.0, 0.5]
    assert list(validation.get_ydata()) == [1.2, 0.8]
    assert len(figure.axes[1].get_lines()) == 1


def test_an_empty_history_is_refused():
    with pytest.raises(stabnet.InvalidInputError, match="no epoch"):
        training_curves([])


def test_accuracy_curves_color_models_and_dash_attacks():
    eps = [0, 2 / 255, 8 / 255]
    curves = [
        AccuracyCurve(model, attack, eps, [0.9, 0.5, 0.1])
        for model in ("deq", "lyadeq")
        for attack in ("ifgsm", "pgd")
    ]
    (panel,) = accuracy_curves(curves, chance=0.1).axes
    lines = panel.get_lines()
    assert [line.get_color() for line in lines[:4]] == ["C0", "C0", "C1", "C1"]
    assert [line.get_linestyle() for line in lines[:4]] == ["-", "--", "-", "--"]
    assert list(lines[0].get_xdata()) == pytest.approx([0, 2, 8])
    assert list(lines[0].get_ydata()) == pytest.approx([90, 50, 10])
    assert lines[4].get_label() == "chance"


def test_certified_curves_are_filled_below_and_take_no_line_style_from_attacks():
    eps = [0, 0.5, 1]
    curves = [
        AccuracyCurve("sll", None, eps, [0.9, 0.6, 0.2]),
        AccuracyCurve("sll", "pgd_l2", eps, [0.9, 0.7, 0.4]),
    ]
    (panel,) = accuracy_curves(curves, norm="l2").axes
    certified, attacked = panel.get_lines()
    assert (certified.get_label(), attacked.get_label()) == ("sll, certified", "sll, pgd_l2")
    assert (certified.get_marker(), attacked.get_marker()) == ("None", ".")
    assert certified.get_color() == attacked.get_color()
    assert (certified.get_linestyle(), attacked.get_linestyle()) == ("-", "-")
    assert list(certified.get_ydata()) == pytest.approx([90, 60, 20])
    (filled,) = panel.collections
    (area,) = filled.get_paths()
    inside = [area.contains_point(p) for p in [(0.25, 59), (0.25, 61), (0.75, 19), (0.75, 21)]]
    assert inside == [True, False, True, False]  # as low as at the next radius


@pytest.mark.parametrize(
    ("eps", "accuracy"),
    [([], []), ([0.1], [0.5, 0.4]), ([0.2, 0.1], [0.5, 0.4]), ([-0.1], [0.5]), ([0.1], [90.0])],
)
def test_impossible_curves_are_refused(eps, accuracy):
    with pytest.raises(stabnet.InvalidInputError, match="the curve of 'deq, pgd'"):
        AccuracyCurve("deq", "pgd", eps, accuracy)


def test_no_curve_and_an_unknown_norm_are_refused():
    with pytest.raises(stabnet.InvalidInputError, match="no curve"):
        accuracy_curves([])
    with pytest.raises(stabnet.InvalidInputError, match="norm"):
        accuracy_curves([AccuracyCurve("a", "b", [0], [1])], norm="l1")


def test_a_figure_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = training_curves(HISTORY)
    path = save_figure(figure, tmp_path / "plots" / "training.png")
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def broken(target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(stabnet.CheckpointError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["training.png"]


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(stabnet.InvalidInputError, match=r"one of .*\.png"):
        save_figure(training_curves(HISTORY), tmp_path / "training.xyz")


def test_plotting_leaves_pyplot_alone():
    code = (
        "import sys, stabnet.plots as p;"
        "p.training_curves([{'epoch': 1, 'train_loss': 1.0}]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
