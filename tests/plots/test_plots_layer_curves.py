from __future__ import annotations

import math

import numpy as np
import pytest

import stabnet
from stabnet.plots import layer_curves, save_figure


def records(*values, name="norms"):
    return [{"step": 10 * i, name: v} for i, v in enumerate(values)]


def test_there_is_a_line_for_each_layer_over_the_steps():
    figure = layer_curves(records([1.0, 2.0, 3.0], [2.0, 4.0, 8.0]), "norms", label="‖J‖")
    panel, bar = figure.axes
    lines = panel.get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[0, 10]] * 3
    assert [list(line.get_ydata()) for line in lines] == [[1, 2], [2, 4], [3, 8]]
    assert (panel.get_xlabel(), panel.get_ylabel(), bar.get_ylabel()) == ("step", "‖J‖", "layer")
    assert bar.get_ylim() == (-0.5, 2.5)
    colors = [line.get_color() for line in lines]
    brightness = [float(np.sum(color[:3])) for color in colors]
    assert brightness == sorted(brightness)
    assert len(set(brightness)) == 3


def test_lists_of_values_are_lines_in_the_color_of_their_layer():
    figure = layer_curves(records([[2.0, 0.5], [3.0]], [[4.0, 0.25], [1.0]]), "norms")
    lines = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[2, 4], [0.5, 0.25], [3, 1]]
    first, second, third = (tuple(line.get_color()) for line in lines)
    assert first == second != third
    assert figure.axes[0].get_ylabel() == "norms"


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 2.0], "log"), ([0.0, 2.0], "linear"), ([-1.0, 2.0], "linear"), ([None, 2.0], "log"),
     ([math.inf, 2.0], "log"), ([None, None], "linear")],
)  # fmt: skip
def test_the_scale_is_logarithmic_where_all_values_are_positive(values, scale, tmp_path):
    figure = layer_curves(records(values, [1.0, 3.0] if values[1] else values), "norms")
    assert figure.axes[0].get_yscale() == scale
    save_figure(figure, tmp_path / "curves.png")


def test_missing_values_are_gaps():
    figure = layer_curves(records([1.0], [None], [math.nan], [math.inf], [2.0]), "norms")
    (line,) = figure.axes[0].get_lines()
    assert np.isfinite(line.get_ydata()).tolist() == [True, False, False, False, True]


def test_a_value_between_two_gaps_is_visible():
    (line,) = layer_curves(records([1.0], [None], [3.0]), "norms").axes[0].get_lines()
    assert line.get_marker() == "."
    (line,) = layer_curves(records([1.0], [2.0], [3.0]), "norms").axes[0].get_lines()
    assert line.get_marker() == ""


def test_a_single_record_is_visible_and_records_without_the_name_are_left_out():
    monitored = [{"step": 0, "other": 1.0}, {"step": 5, "norms": [1.0, 2.0]}]
    figure = layer_curves(monitored, "norms")
    lines = figure.axes[0].get_lines()
    assert [line.get_marker() for line in lines] == [".", "."]
    assert list(lines[0].get_xdata()) == [5]


def test_a_thousand_layers_have_a_color_each():
    figure = layer_curves(records(list(range(1, 1001)), list(range(1, 1001))), "norms")
    assert len(figure.axes[0].get_lines()) == 1000
    assert figure.axes[1].get_ylim() == (-0.5, 999.5)


@pytest.mark.parametrize(
    ("monitored", "message"),
    [
        ([], "none at all"),
        ([{"step": 0, "energy": [1.0]}], "no record has 'norms'; there are 'energy'"),
        (records([1.0], [1.0, 2.0]), "other numbers of values at step 10 than at step 0"),
        (records([[1.0], [2.0]], [[1.0, 2.0], [3.0]]), "other numbers of values"),
        (records(1.0), "should be a list"),
        (records([]), "there is no layer"),
        (records([[[1.0]]]), "nested more deeply"),
        (records(["a"]), "should be a list"),
        ([{"norms": [1.0]}], "it has no step"),
    ],
)
def test_records_that_cannot_be_plotted_are_refused(monitored, message):
    with pytest.raises(stabnet.InvalidInputError, match=message):
        layer_curves(monitored, "norms")
