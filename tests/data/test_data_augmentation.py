from __future__ import annotations

import pytest
import torch

from stabnet import InvalidOptionError
from stabnet.data import AUGMENTATIONS, augmentation, random_crop, random_flip


def images(n: int = 16, c: int = 3, h: int = 8, w: int = 6) -> torch.Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_shape_dtype_and_range(name: str) -> None:
    x = images()
    y = augmentation(name)(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_does_not_change_its_argument(name: str) -> None:
    x = images()
    before = x.clone()
    augmentation(name)(x)
    assert torch.equal(x, before)


def test_augmentation_is_determined_by_the_global_generator() -> None:
    x = images()
    torch.manual_seed(3)
    first, state = augmentation("crop_flip")(x), torch.get_rng_state()
    second = augmentation("crop_flip")(x)
    torch.manual_seed(3)
    assert torch.equal(augmentation("crop_flip")(x), first)
    assert not torch.equal(second, first)
    torch.set_rng_state(state)
    assert torch.equal(augmentation("crop_flip")(x), second)


def test_crop_flip_is_a_crop_by_four_pixels_and_then_a_flip() -> None:
    x = images()
    torch.manual_seed(4)
    expected = random_flip(random_crop(x, padding=4))
    torch.manual_seed(4)
    assert torch.equal(augmentation("crop_flip")(x), expected)


def test_none_draws_nothing() -> None:
    x = images()
    state = torch.get_rng_state()
    assert torch.equal(augmentation("none")(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_augmentation_names_the_known_ones() -> None:
    with pytest.raises(InvalidOptionError, match=r"'autoaugment'; available: none, crop_flip"):
        augmentation("autoaugment")


def test_crop_without_padding_is_the_identity() -> None:
    x = images()
    assert torch.equal(random_crop(x, padding=0), x)


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    """Against a loop over samples and places, which finds the shift of each image."""
    x = images(n=64, h=5, w=7)
    torch.manual_seed(0)
    crops = random_crop(x, padding=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    shifts = set()
    for image, crop in zip(padded, crops, strict=True):
        found = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(image[:, i : i + 5, j : j + 7], crop)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 15  # of 25: samples are shifted independently, rows and columns too


def test_crop_of_a_constant_image_is_a_rectangle_with_black_outside() -> None:
    torch.manual_seed(0)
    for crop in random_crop(torch.ones(50, 1, 8, 8))[:, 0]:
        rows, columns = crop.amax(1), crop.amax(0)
        assert torch.equal(crop, rows[:, None] * columns)
        assert rows.sum() >= 4
        assert columns.sum() >= 4
        assert (rows.diff() != 0).sum() <= 1  # the black is on one side only


def test_crop_places_are_uniform() -> None:
    torch.manual_seed(0)
    x = torch.zeros(20000, 1, 9, 9)
    x[:, :, 4, 4] = 1
    counts = random_crop(x).sum((0, 1))
    expected = 20000 / 81
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 125  # the 0.999 quantile for 80 degrees of freedom is 124.8


def test_flip_mirrors_about_half_of_the_images_left_to_right() -> None:
    torch.manual_seed(0)
    x = images(n=1000)
    y = random_flip(x)
    same = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 420 < mirrored.sum() < 580


def test_flip_with_the_same_draws_is_an_involution() -> None:
    x = images(n=50)
    torch.manual_seed(1)
    once = random_flip(x)
    torch.manual_seed(1)
    assert torch.equal(random_flip(once), x)
    assert not torch.equal(once, x)
