from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabnet import InvalidInputError, InvalidOptionError, MissingDataError, UnknownNameError
from stabnet.data import (
    Dataset,
    TensorSamples,
    channel_statistics,
    data_root,
    from_tensors,
    load,
    split,
)

X = torch.rand(12, 3, 5, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4


def made(
    x: Any = X, y: Any = Y, x_test: Any = X[:2], y_test: Any = Y[:2], **options: Any
) -> Dataset:
    return from_tensors(x, y, x_test, y_test, **options)


def test_integer_targets_make_a_classification() -> None:
    data = made(classes=["a", "b", "c", "d"], augmentation="crop_flip", name="mine")
    assert (data.name, data.task, data.augmentation) == ("mine", "classification", "crop_flip")
    assert (data.in_shape, data.num_outputs) == ((3, 5, 4), 4)
    assert data.classes == ("a", "b", "c", "d")
    x, y = data.train[7]
    assert torch.equal(x, X[7])
    assert y.dtype == torch.int64
    assert y == Y[7]


@pytest.mark.parametrize(("y", "k"), [(X[:, 0, 0, 0], 1), (X[:, :2, 0, 0], 2)])
def test_floating_point_targets_make_a_regression(y: torch.Tensor, k: int) -> None:
    x = 100 * X.flatten(1).double() - 50
    data = made(x, y, x[:2], y[:2])
    assert (data.task, data.in_shape, data.num_outputs) == ("regression", (60,), k)
    inputs, targets = data.train[3]
    assert inputs.dtype == targets.dtype == torch.float32
    assert targets.shape == (k,)
    assert torch.equal(targets, y.reshape(12, k)[3])


def test_floating_point_targets_at_several_times_are_trajectories() -> None:
    x, y = X.flatten(1), X[:, :, :, 0].transpose(1, 2).double()  # three values at five times
    data = made(x, y, x[:2], y[:2], num_outputs=3)
    assert (data.task, data.num_outputs) == ("regression", 3)
    _, targets = data.train[3]
    assert torch.equal(targets, y[3].float())
    (batch,) = split(data, 0.5).loader("validation", batch_size=6)
    assert batch[1].shape == (6, 5, 3)


def test_number_of_classes_counts_the_test_labels_and_may_be_given() -> None:
    assert made(y_test=torch.tensor([0, 6])).num_outputs == 7
    assert made(num_outputs=9).num_outputs == 9
    assert made(classes=[str(i) for i in range(5)]).num_outputs == 5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integer_images_are_pixels(dtype: torch.dtype) -> None:
    pixels = (X * 255).round().to(dtype)
    data = made(pixels, x_test=pixels[:2])
    assert isinstance(data.train, TensorSamples)
    assert data.train.x.dtype == torch.uint8
    assert torch.equal(data.train[3][0], pixels[3] / 255)


def test_tensors_are_taken_without_their_gradients() -> None:
    assert not made(X.clone().requires_grad_()).train[0][0].requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": X.numpy()}, "x_train is a ndarray; give a torch tensor"),
        ({"x": X.index_fill(0, torch.tensor(5), torch.nan)}, "NaN .* 1 of 12 samples.* index 5"),
        ({"y": torch.full((12,), torch.inf), "y_test": torch.ones(2)}, "y_train has NaN or inf"),
        ({"x": X[:11]}, "12 targets for 11 inputs"),
        ({"x": X[:0], "y": Y[:0]}, "needs at least one sample"),
        ({"x": X[:, 0, 0, 0]}, "need an axis besides the batch"),
        ({"x_test": X[:2, :2]}, r"\(3, 5, 4\) and x_test of shape \(2, 5, 4\)"),
        ({"x": X * 3 - 1}, "from -.* must be in .0, 1., not normalized"),
        ({"x": (X * 300).to(torch.int32)}, "pixels must be in 0…255"),
        ({"x": (X * 9).flatten(1).long()}, "only images .* may be integers"),
        ({"x": X > 0.5}, "bool .* give integers or floating point"),
        ({"y": Y - 1}, "label -1; labels start at 0"),
        ({"y": Y[:, None]}, "class labels are"),
        ({"y": X, "y_test": X[:2]}, r"trajectories \(n, times, k\)"),
        ({"y": X[:, 0], "y_test": X[:2, 0, :4]}, "as many floating-point values"),
        (
            {"y": X[:, 0], "y_test": X[:2, 0], "num_outputs": 5},
            "num_outputs=5, but there are 4 values per sample and time",
        ),
        ({"y": Y.float()}, "give both as integer labels"),
        ({"num_outputs": 3}, "a label 3, but only 3 classes"),
        ({"num_outputs": 5, "classes": list("abcd")}, "names 4 classes but has 5 outputs"),
        ({"y": Y.float(), "y_test": Y[:2].float(), "classes": list("abcd")}, "classes were named"),
        ({"y": Y.float(), "y_test": Y[:2].float(), "num_outputs": 2}, "1 values per sample"),
        ({"x": X.flatten(1), "x_test": X[:2].flatten(1), "augmentation": "crop_flip"}, "is for im"),
    ],
)
def test_bad_tensors_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        made(**given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "ranking"}, "has the task 'ranking'"),
        ({"mean": (0.5,)}, "1 means and 3 standard deviations"),
        ({"std": (1.0, 0.0, 1.0)}, "must be above 0"),
        ({"test": []}, "no test samples"),
        ({"in_shape": ()}, "at least one axis"),
        ({"num_outputs": 0}, "num_outputs=0"),
    ],
)
def test_contradictory_metadata_are_refused(changed: dict[str, Any], message: str) -> None:
    data = made()
    fields = {name: getattr(data, name) for name in Dataset.__dataclass_fields__}
    with pytest.raises(InvalidInputError, match=message):
        Dataset(**{**fields, **changed})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1,), (3, 4, 5), (2, 7)]), st.booleans())
def test_statistics_are_those_of_numpy(seed: int, shape: tuple[int, ...], pixels: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(9, *shape, generator=generator)
    x = (x * 255).to(torch.uint8) if pixels else 1e3 + x
    mean, std = channel_statistics(x)
    values = x.numpy().astype(np.float64) / (255 if pixels else 1)
    axes = tuple(i for i in range(values.ndim) if i != 1)
    np.testing.assert_allclose(mean, values.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(axes), rtol=1e-8)


def test_statistics_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = channel_statistics(X)
    monkeypatch.setattr("stabnet.data.samples._CHUNK", 5)
    np.testing.assert_allclose(channel_statistics(X), whole, rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3e5])
def test_a_constant_channel_has_deviation_one(value: float) -> None:
    x = torch.full((7, 2), value)
    x[:, 1] = torch.arange(7.0)
    mean, std = channel_statistics(x)
    assert mean == (pytest.approx(value), 3.0)
    assert std == (1.0, pytest.approx(2.0))
    assert channel_statistics(torch.full((7, 1, 2, 2), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_root_is_the_argument_then_the_environment_then_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABNET_DATA", str(tmp_path / "shared"))
    assert data_root(tmp_path / "mine") == tmp_path / "mine"
    assert data_root() == tmp_path / "shared"
    monkeypatch.setenv("STABNET_DATA", "")
    assert data_root() == tmp_path / "data"
    monkeypatch.delenv("STABNET_DATA")
    assert data_root() == tmp_path / "data"


def test_load_refuses_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="no dataset named 'imagenet'"):
        load("imagenet")


def test_load_takes_the_folder_from_a_description_unless_told_otherwise(tmp_path: Path) -> None:
    described = {"name": "mnist", "root": str(tmp_path / "a")}
    with pytest.raises(MissingDataError, match="/a: "):
        load(described)
    with pytest.raises(InvalidOptionError, match="given root twice"):
        load(described, root=tmp_path / "b")


def test_load_returns_a_data_set_as_it_is() -> None:
    data = made()
    assert load(data) is data
