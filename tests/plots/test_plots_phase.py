from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

import stabnet
from stabnet.plots import (
    ConvergenceCurve,
    convergence_curves,
    decision_boundaries,
    phase_portrait,
    save_figure,
    violation_map,
)

WHOLE = (-1.0, 1.0, -2.0, 2.0)


def rotation(z):
    return torch.stack([-z[:, 1], z[:, 0]], 1)


def right(z):
    return (z[:, 0] > 0).long()


def spiral(times=5, n=3):
    t = torch.linspace(0, 1, times)[:, None]
    phase = torch.arange(n)[None]
    return torch.stack([(t + phase).cos(), (t + phase).sin()], -1)


def artists(panel, kind):
    return [c for c in panel.get_children() if isinstance(c, kind)]


def pixels(panel):
    """The data of the panel's image, and the values shown at the pixels, as colors."""
    (image,) = panel.get_images()
    return np.asarray(image.get_array())


# The phase portrait.


def test_a_phase_portrait_has_streamlines_and_one_line_per_trajectory():
    trajectories = spiral()
    (panel,) = phase_portrait(rotation, WHOLE, trajectories=trajectories).axes
    lines = panel.get_lines()
    assert len(lines) == 3
    for k, line in enumerate(lines):
        assert np.allclose(line.get_xydata(), trajectories[:, k].numpy())
    starts, ends = artists(panel, PathCollection)
    assert np.allclose(starts.get_offsets(), trajectories[0])
    assert np.allclose(ends.get_offsets(), trajectories[-1])
    assert len(panel.texts) == 3  # the arrows
    assert (panel.get_xlim(), panel.get_ylim()) == ((-1, 1), (-2, 2))
    assert panel.get_aspect() == 1
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("$z_1$", "$z_2$")
    assert panel.get_images() == []


def test_streamlines_follow_the_field():
    (panel,) = phase_portrait(rotation, (-2, 2, -2, 2)).axes
    (streams,) = artists(panel, LineCollection)
    paths = streams.get_segments()
    middle = np.concatenate([(p[1:] + p[:-1]) / 2 for p in paths])
    step = np.concatenate([np.diff(p, axis=0) for p in paths])
    lengths = np.linalg.norm(step, axis=1) * np.linalg.norm(middle, axis=1)
    radial = np.abs((middle * step).sum(-1))  # of which a rotation has none
    assert len(step) > 100
    assert radial.sum() < 0.02 * lengths.sum()


@pytest.mark.parametrize(
    "classes",
    [
        right,
        lambda z: z[:, 0],
        lambda z: z[:, :1],
        lambda z: torch.stack([-z[:, 0], z[:, 0]], 1),
        lambda z: z[:, 0] > 0,
    ],
    ids=["labels", "score", "column", "scores", "booleans"],
)
def test_classes_color_the_plane_however_they_are_given(classes):
    figure = phase_portrait(rotation, WHOLE, classes=classes, class_names=["a", "b"], resolution=10)
    (panel,) = figure.axes
    assert pixels(panel).tolist() == [[0] * 5 + [1] * 5] * 10
    (boundary,) = artists(panel, ContourSet)
    (line,) = boundary.get_paths()
    assert np.abs(line.vertices[:, 0]).max() < 1e-6
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["a", "b"]


def test_pixels_are_centered_on_the_points_of_the_grid():
    (panel,) = phase_portrait(rotation, (0, 9, 0, 9), classes=right, resolution=10).axes
    assert panel.get_images()[0].get_extent() == [-0.5, 9.5, -0.5, 9.5]


def test_three_classes_each_have_an_outline_and_a_single_one_has_none():
    def thirds(z):
        return torch.stack([z[:, 0], z[:, 1], -z.sum(1)], 1)

    (panel,) = phase_portrait(rotation, WHOLE, classes=thirds).axes
    assert len(artists(panel, ContourSet)) == 3
    (panel,) = phase_portrait(rotation, WHOLE, classes=lambda z: torch.zeros(len(z))).axes
    assert artists(panel, ContourSet) == []


def test_a_field_at_rest_is_drawn_without_warnings():
    still = torch.zeros(3, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (panel,) = phase_portrait(torch.zeros_like, WHOLE, trajectories=still).axes
    assert len(panel.texts) == 0  # no arrow where nothing moves


def test_a_module_is_evaluated_in_eval_mode_its_dtype_and_without_gradients():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2).double()
            self.seen = set()

        def forward(self, z):
            self.seen.add((self.training, z.dtype, torch.is_grad_enabled()))
            return self.linear(z)

    field = Field()
    phase_portrait(field, WHOLE)
    assert field.seen == {(False, torch.float64, False)}
    assert field.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"velocity": lambda z: z[:, 0]}, r"velocity at points .* \(1600, 2\); got \(1600,\)"),
        ({"velocity": lambda z: z.log()}, "velocity is NaN or infinite at"),
        ({"velocity": lambda z: None}, "velocity .* got NoneType"),
        ({"classes": lambda z: z[None]}, "classes at points"),
        ({"classes": lambda z: -torch.ones(len(z)).long()}, "class -1"),
        ({"classes": lambda z: z.long()}, "integer scores"),
        ({"trajectories": torch.zeros(3, 2)}, r"trajectories .* \(times, N, 2\); got \(3, 2\)"),
        ({"trajectories": torch.zeros(3, 4, 3)}, "trajectories should"),
        ({"trajectories": torch.full((3, 4, 2), math.nan)}, "trajectories hold NaN"),
        ({"trajectories": torch.zeros(1, 4, 2)}, "single time"),
        ({"trajectories": torch.zeros(3, 0, 2)}, "at least one point"),
        ({"trajectories": "spiral"}, "got str"),
        ({"extent": (0, 1, 2)}, "four finite numbers"),
        ({"extent": (1, 0, 0, 1)}, "left < right"),
        ({"extent": (0, math.inf, 0, 1)}, "four finite numbers"),
        ({"resolution": 1}, "resolution=1"),
        ({"potential": lambda z: z}, r"potential at points .* got \(8192, 2\)"),
        ({"potential": lambda z: z[:, 0].log()}, "potential is NaN or infinite at"),
        ({"potential": lambda z: z[:, 0], "levels": 0}, "levels=0 is too few"),
        ({"potential": lambda z: z[:, 0], "levels": [1, 0]}, r"levels=\[1, 0\] must"),
        ({"potential": lambda z: z[:, 0], "levels": [math.nan]}, "must be finite"),
        ({"equilibria": torch.zeros(2)}, r"equilibria .* \(N, 2\); got \(2,\)"),
        ({"class_names": ["a"]}, "without classes"),
        ({"class_names": ["a"], "classes": right}, "1 class_names for 2 classes"),
    ],
)
def test_a_phase_portrait_refuses_what_it_cannot_draw(options, message):
    options = {"velocity": rotation, "extent": WHOLE, **options}
    with pytest.raises(stabnet.InvalidInputError, match=message):
        phase_portrait(**options)


def bowl(z):
    return z.square().sum(1)


def contours(panel):
    """The filled level sets of a panel, and the lines."""
    sets = artists(panel, ContourSet)
    return [s for s in sets if s.filled], [s for s in sets if not s.filled]


def test_level_sets_of_a_potential_lie_under_the_streamlines():
    (panel,) = phase_portrait(rotation, (-2, 2, -2, 2), potential=bowl, levels=3).axes
    ((filled,), (lines,)) = contours(panel)
    # Evenly spaced in the root: circles of the radii 1/4, 2/4 and 3/4 of the way to the corner.
    radii = math.sqrt(8) * np.array([0.25, 0.5, 0.75])
    assert np.sqrt(lines.levels) == pytest.approx(radii, abs=0.01)
    for radius, path in zip(radii, lines.get_paths(), strict=True):
        assert np.linalg.norm(path.vertices, axis=1) == pytest.approx(radius, abs=0.01)
    assert list(filled.levels[1:-1]) == list(lines.levels)
    shades = filled.get_facecolor()[:, :3].sum(1)
    assert (np.diff(shades) > 0).all()  # darker where it is lower
    (streams,) = artists(panel, LineCollection)
    assert filled.get_zorder() < lines.get_zorder() < streams.get_zorder()


def test_level_sets_are_drawn_at_the_heights_given_and_not_filled_over_classes():
    options = {"potential": bowl, "levels": [1, 2.5, 99], "classes": right, "resolution": 20}
    (panel,) = phase_portrait(rotation, WHOLE, **options).axes
    filled, lines = contours(panel)
    assert filled == []
    assert [list(s.levels) for s in lines] == [[0.0], [1.0, 2.5]]  # the boundary, the potential


def test_a_flat_potential_has_no_level_sets():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (panel,) = phase_portrait(rotation, WHOLE, potential=lambda z: torch.ones(len(z))).axes
    assert contours(panel) == ([], [])


def test_equilibria_are_marked():
    points = torch.tensor([[0.0, 0.0], [0.5, 1.0]])
    (panel,) = phase_portrait(rotation, WHOLE, equilibria=points).axes
    (marks,) = artists(panel, PathCollection)
    assert np.allclose(marks.get_offsets(), points)


def test_portraits_can_share_a_figure():
    figure = Figure(layout="constrained")
    panels = figure.subplots(1, 2)
    for panel in panels:
        assert phase_portrait(rotation, WHOLE, panel=panel) is figure
        assert (panel.get_xlim(), panel.get_ylim()) == ((-1, 1), (-2, 2))
    assert figure.axes == list(panels)


# The map of violations.


def test_a_violation_map_shows_the_positive_part_over_level_sets():
    figure = violation_map(lambda z: 3 * z[:, 0], bowl, WHOLE, resolution=11)
    panel = figure.axes[0]
    shown = pixels(panel)
    expected = np.broadcast_to(np.clip(3 * np.linspace(-1, 1, 11), 0, None), (11, 11))
    assert np.allclose(np.ma.filled(np.ma.asarray(panel.get_images()[0].get_array()), 0), expected)
    assert shown.max() == pytest.approx(3)
    (sets,) = artists(panel, ContourSet)
    for level, path in zip(sets.levels, sets.get_paths(), strict=True):
        assert np.allclose((path.vertices**2).sum(1), level, rtol=0.1, atol=0.1)
    assert all(0 < level < 5 for level in sets.levels)
    assert panel.get_title() == "violated at 45.5 % of the points, by at most 3"


def test_a_map_without_violation_is_white_and_says_so():
    figure = violation_map(lambda z: -bowl(z) - 1, bowl, WHOLE, resolution=5)
    panel = figure.axes[0]
    assert panel.get_images()[0].get_array().mask.all()
    assert panel.get_title() == "not violated at any of the points"


def test_a_constant_potential_has_no_level_sets():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = violation_map(bowl, lambda z: torch.ones(len(z)), WHOLE, resolution=5)
    assert artists(figure.axes[0], ContourSet) == []


def test_the_violation_may_differentiate_with_torch_func():
    def rate(z):
        gradient = torch.func.grad(lambda z: bowl(z).sum())(z)
        return (gradient * -z).sum(1) + bowl(z)  # −2V + V

    figure = violation_map(rate, bowl, WHOLE, resolution=6)
    assert figure.axes[0].get_title() == "not violated at any of the points"


def test_a_violation_map_has_a_color_bar_from_zero():
    figure = violation_map(bowl, bowl, WHOLE, resolution=5)
    (bar,) = figure.axes[0].child_axes
    assert bar.get_ylim() == pytest.approx((0, 5))
    assert "kappa" in bar.get_ylabel()


@pytest.mark.parametrize("which", ["violation", "potential"])
@pytest.mark.parametrize("wrong", [lambda z: z, lambda z: z[:, 0] * math.nan])
def test_a_violation_map_refuses_other_shapes_and_nan(which, wrong):
    functions = {"violation": bowl, "potential": bowl, which: wrong}
    with pytest.raises(stabnet.InvalidInputError, match=which):
        violation_map(**functions, extent=WHOLE)


# Decision boundaries.


def circles(n=20):
    angle = torch.arange(2 * n) * 2 * math.pi / n
    labels = torch.arange(2 * n) // n
    radius = 0.5 + 0.5 * labels
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def test_decision_boundaries_have_a_column_per_model_and_a_row_per_extent():
    points, labels = circles()
    models = {"circle": lambda x: x.norm(dim=1) - 0.75, "half": right, "net": nn.Linear(2, 2)}
    figure = decision_boundaries(models, points, labels, resolution=20)
    assert len(figure.axes) == 6
    assert [a.get_title() for a in figure.axes] == ["circle", "half", "net", "", "", ""]
    near, far = figure.axes[0], figure.axes[3]
    assert near.get_xlim() == pytest.approx((-1.2, 1.2))
    assert far.get_xlim() == pytest.approx((-4.8, 4.8))
    for panel in (near, far):
        inner, outer = artists(panel, PathCollection)
        assert np.allclose(inner.get_offsets(), points[labels == 0])
        assert np.allclose(outer.get_offsets(), points[labels == 1])
        (boundary,) = artists(panel, ContourSet)
        radii = np.linalg.norm(boundary.get_paths()[0].vertices, axis=1)
        assert np.allclose(radii, 0.75, atol=0.1)
    frames = [
        [r for r in artists(a, Rectangle) if r is not a.patch and r.get_linestyle() == "--"]
        for a in figure.axes
    ]
    assert [len(f) for f in frames] == [0, 0, 0, 1, 1, 1]
    assert frames[3][0].get_bbox().bounds == pytest.approx((-1.2, -1.2, 2.4, 2.4))


def test_regions_have_a_paler_shade_of_the_color_of_their_points():
    points, labels = circles()
    (panel,) = decision_boundaries({"half": right}, points, labels, extents=[WHOLE]).axes
    (image,) = panel.get_images()
    for k, dots in enumerate(artists(panel, PathCollection)):
        color, fill = np.array(to_rgb(dots.get_facecolor()[0])), image.cmap(image.norm(k))[:3]
        assert np.allclose(fill, 0.34 * color + 0.66, atol=1 / 255)


def test_a_classifier_may_know_more_classes_than_the_points():
    points, labels = circles()
    many = {"many": lambda x: torch.eye(12)[(x[:, 0] * 0).long() + 11]}
    (panel,) = decision_boundaries(many, points, labels, extents=[WHOLE], resolution=3).axes
    assert (pixels(panel) == 11).all()
    (image,), dots = panel.get_images(), artists(panel, PathCollection)
    color = np.array(to_rgb(dots[1].get_facecolor()[0]))
    assert np.allclose(image.to_rgba([1])[0][:3], 0.34 * color + 0.66, atol=1 / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifiers": {}}, "no classifier"),
        ({"points": torch.zeros(4, 3)}, r"\(N, 2\)"),
        ({"points": torch.full((40, 2), math.nan)}, "points hold NaN"),
        ({"labels": torch.zeros(40)}, r"labels .* got torch.float32"),
        ({"labels": torch.zeros(3).long()}, r"labels should be integers of shape \(40,\)"),
        ({"labels": -torch.ones(40).long()}, "labels"),
        ({"extents": []}, "no extent"),
        ({"extents": [(0, 0, 1, 1)]}, "left < right"),
        ({"classifiers": {"bad": lambda x: x * math.nan}}, "bad is NaN"),
    ],
)
def test_decision_boundaries_refuse_what_they_cannot_draw(options, message):
    points, labels = circles()
    options = {"classifiers": {"half": right}, "points": points, "labels": labels, **options}
    with pytest.raises(stabnet.InvalidInputError, match=message):
        decision_boundaries(**options)


# Convergence.


def test_convergence_curves_show_loss_accuracy_and_the_bound():
    times = [0.0, 0.5, 1.0]
    curves = [
        ConvergenceCurve("lyanet", times, [2.0, 0.1, 0.0], [0.1, 0.9, 1.0], kappa=4.0),
        ConvergenceCurve("ode", times, [2.0, 1.5, 0.5]),
    ]
    loss, accuracy = convergence_curves(curves).axes
    first, bound, second = loss.get_lines()
    assert list(first.get_ydata()) == [2.0, 0.1, 0.0]
    assert list(second.get_ydata()) == [2.0, 1.5, 0.5]
    t = np.asarray(bound.get_xdata())
    assert np.allclose(bound.get_ydata(), 2 * np.exp(-4 * t))
    assert (t[0], t[-1]) == (0, 1)
    assert bound.get_color() == first.get_color() != second.get_color()
    assert loss.get_yscale() == "log"
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels[:2] == ["lyanet", "ode"]
    assert "kappa" in labels[2]
    (line,) = accuracy.get_lines()
    assert list(line.get_ydata()) == pytest.approx([10, 90, 100])
    assert line.get_color() == first.get_color()


def test_the_bound_starts_at_the_first_time():
    (panel,) = convergence_curves([ConvergenceCurve("a", [1.0, 2.0], [3.0, 1.0], kappa=1.0)]).axes
    _, bound = panel.get_lines()
    assert bound.get_ydata()[0] == 3
    assert bound.get_ydata()[-1] == pytest.approx(3 / math.e)


def test_losses_are_linear_on_request_or_where_all_are_zero():
    curve = ConvergenceCurve("a", [0.0, 1.0], [1.0, 0.5])
    (panel,) = convergence_curves([curve], log_scale=False).axes
    assert panel.get_yscale() == "linear"
    assert panel.get_ylim()[0] == 0
    (panel,) = convergence_curves([ConvergenceCurve("a", [0.0, 1.0], [0.0, 0.0])]).axes
    assert panel.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": []}, "times"),
        ({"times": [0.0, 0.0]}, "increasing"),
        ({"times": [0.0, math.nan]}, "finite"),
        ({"loss": [1.0]}, "2 times and 1 losses"),
        ({"loss": [1.0, -1.0]}, "losses"),
        ({"loss": [1.0, math.nan]}, "losses"),
        ({"loss": [1.0, math.inf]}, "losses"),
        ({"accuracy": [0.5, 1.5]}, "accuracies .* at most 1"),
        ({"kappa": 0.0}, "kappa=0.0; it must be positive"),
    ],
)
def test_impossible_convergence_curves_are_refused(options, message):
    with pytest.raises(stabnet.InvalidInputError, match=message):
        ConvergenceCurve(**{"model": "a", "times": [0.0, 1.0], "loss": [1.0, 0.5], **options})


def test_no_convergence_curve_is_refused():
    with pytest.raises(stabnet.InvalidInputError, match="no curve"):
        convergence_curves([])


def test_all_of_them_can_be_saved_without_warnings(tmp_path):
    points, labels = circles()
    figures = [
        phase_portrait(rotation, WHOLE, trajectories=spiral(), classes=right, class_names="ab"),
        phase_portrait(rotation, WHOLE, potential=bowl, equilibria=torch.zeros(1, 2)),
        violation_map(bowl, bowl, WHOLE),
        decision_boundaries({"half": right}, points, labels, resolution=20),
        convergence_curves([ConvergenceCurve("a", [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], 1.0)]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, figure in enumerate(figures):
            assert save_figure(figure, tmp_path / f"{i}.png", dpi=40).stat().st_size > 1000
