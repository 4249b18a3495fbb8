from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import stabnet
from stabnet.plots import feature_embedding, save_figure


def clusters(count=60, width=5, classes=3):
    """Return features of well-separated classes, and the classes."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    middle = 20 * torch.randn(classes, width, generator=g)
    return middle[labels] + torch.randn(count, width, generator=g), labels


def drawn(panel):
    """Return the points of a panel."""
    return np.concatenate([np.asarray(c.get_offsets()) for c in panel.collections])


def shown(figure):
    return [panel for panel in figure.axes if panel.get_visible()]


def test_every_set_gets_a_panel_of_the_same_size_with_all_its_points():
    x, y = clusters()
    figure = feature_embedding({"clean": x, "attacked": -x, "narrow": x[:, :1]}, y, perplexity=5)
    panels = shown(figure)
    assert [panel.get_title() for panel in panels] == ["clean", "attacked", "narrow"]
    for panel in panels:
        points = drawn(panel)
        assert points.shape == (60, 2)
        assert np.abs(points).max() == pytest.approx(1)
        assert panel.get_xlim() == panel.get_ylim() == (-1.05, 1.05)
        assert not panel.get_xticks().size


def test_equal_features_are_drawn_equally_and_every_figure_says_what_it_is_not():
    x, y = clusters()
    figure = feature_embedding({"a": x, "b": x.clone()}, y, perplexity=5, seed=3)
    first, second = map(drawn, shown(figure))
    np.testing.assert_array_equal(first, second)
    again = feature_embedding({"a": x}, y, perplexity=5, seed=3)
    np.testing.assert_array_equal(first, drawn(shown(again)[0]))
    assert "distorts distances" in figure.get_supxlabel()
    assert "no evidence of robustness" in figure.get_supxlabel()


def test_neighbors_stay_together_and_are_colored_by_class():
    x, y = clusters()
    figure = feature_embedding({"a": x}, y, perplexity=5)
    (panel,) = shown(figure)
    (scatter,) = (c for c in panel.collections if len(c.get_offsets()))
    points, colors = np.asarray(scatter.get_offsets()), scatter.get_facecolors()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(1)
    assert (y[nearest] == y).all()
    assert (colors[nearest] == colors).all()
    assert len(np.unique(colors, axis=0)) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2"]


def test_classes_beyond_the_eighth_color_have_a_marker_of_their_own():
    x, y = clusters(classes=10)
    (panel,) = shown(feature_embedding({"a": x}, y, perplexity=5))
    round_, other = (c for c in panel.collections if len(c.get_offsets()))
    assert len(round_.get_offsets()) == int((y < 8).sum())
    assert len(other.get_offsets()) == int((y >= 8).sum())
    assert len(round_.get_paths()[0].vertices) != len(other.get_paths()[0].vertices)


def test_panels_wrap_and_what_is_left_over_is_hidden(tmp_path):
    x, y = clusters(20)
    figure = feature_embedding({n: x for n in "abc"}, y, columns=2, perplexity=4)
    assert len(figure.axes) == 4
    assert len(shown(figure)) == 3
    assert save_figure(figure, tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "features",
    [
        torch.ones(20, 3),  # of which scikit-learn crashes
        torch.zeros(20, 1),
        1e6 + 1e-9 * torch.randn(20, 3, dtype=torch.float64),
        1e300 * torch.randn(20, 3, dtype=torch.float64),
        torch.eye(2).repeat(10, 1),
        torch.eye(20)[:, :1],
    ],
    ids=["constant", "zero", "nearly constant", "huge", "two points", "one outlier"],
)
def test_degenerate_features_are_drawn_at_finite_places(features):
    _, y = clusters(20)
    points = drawn(shown(feature_embedding({"a": features}, y, perplexity=4))[0])
    assert points.shape == (20, 2)
    assert np.abs(points).max() <= 1


def test_global_random_numbers_are_left_alone():
    x, y = clusters(20)
    torch.manual_seed(0)
    np.random.seed(0)
    feature_embedding({"a": x}, y, perplexity=4)
    after = torch.rand(()).item(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert after == (torch.rand(()).item(), np.random.rand())


X, Y = clusters(20)


@pytest.mark.parametrize(
    ("features", "labels", "options", "words"),
    [
        ({}, Y, {}, "no features"),
        ({"a": X[:19]}, Y, {}, r"'a' should be a tensor of shape \(20, width\)"),
        ({"a": X.view(20, 1, 5)}, Y, {}, "flatten"),
        ({"a": X.numpy()}, Y, {}, "got ndarray"),
        ({"a": X[:, :0]}, Y, {}, "shape"),
        ({"a": X * torch.nan}, Y, {}, "'a' hold NaN"),
        ({"a": X}, Y.float(), {}, "labels should be integers"),
        ({"a": X}, -Y, {}, "labels"),
        ({"a": X}, list(Y), {}, "got list"),
        ({"a": X}, Y, {}, "perplexity=30.0 must be positive and below the number of inputs, 20"),
        ({"a": X}, Y, {"perplexity": 0}, "perplexity=0"),
        ({"a": X}, Y, {"perplexity": 4, "columns": 0}, "columns=0"),
    ],
)
def test_what_cannot_be_embedded_is_refused(features, labels, options, words):
    with pytest.raises(stabnet.InvalidInputError, match=f"(?i){words}"):
        feature_embedding(features, labels, **options)


def test_plots_are_imported_without_scikit_learn():
    code = "import sys, stabnet.plots; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
