"""Images of one's own, in a folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch
import torchvision
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from stabnet import InvalidInputError, InvalidOptionError, MissingDataError
from stabnet.data import Dataset, TensorSamples, channel_statistics, data_root

__all__ = ["image_folder"]

_STATISTICS_SAMPLES = 1000
_TEST_FOLDERS = ("test", "val")


def image_folder(
    root: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    in_memory: bool = False,
    augmentation: str = "none",
) -> Dataset:
    """Load images from ``root/train/CLASS/`` and ``root/test/CLASS/`` (or ``root/val/CLASS/``).

    Images are read in color, in an order that is random but always the same, so that the first of
    them are a sample of all classes. Mean and standard deviation are computed from the training
    images: from all of them when they are in memory, else from at most 1,000.

    Args:
        root: the folder that holds ``train`` and ``test``; see :func:`stabnet.data.data_root`.
        download: must be ``False``: there is nothing to download.
        image_size: edge, at least 1: each image is resized until its shorter edge has this
            length, and its center is cut out. ``None`` for images that are all of one size.
        in_memory: decode all images once, into bytes in memory, instead of at every pass. For
            tens of thousands of small images much faster.
        augmentation: name of the augmentation to train with, in
            :data:`stabnet.data.AUGMENTATIONS`.

    Returns:
        Samples of shape (3, height, width); the classes are the folders in alphabetical order.

    Raises:
        MissingDataError: if a folder or its images are missing or damaged.
        InvalidInputError: if images differ in size, or the classes of train and test differ.
        InvalidOptionError: for ``download=True``, or an ``image_size`` out of range.
    """
    if download:
        raise InvalidOptionError(
            "image_folder reads your own images and cannot download any; leave download out"
        )
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise InvalidOptionError(
            f"image_size={image_size!r}; it is one edge in whole pixels, at least 1"
        )
    train_folder, test_folder = _folders(data_root(root))
    train = _Files(train_folder, image_size)
    test = _Files(test_folder, image_size, shape=train.shape)
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise InvalidInputError(
            f"{train_folder} and {test_folder} must hold the same classes, one folder each; "
            f"only one of them holds {', '.join(different[:5])}"
        )
    step = 1 if in_memory else -(-len(train) // _STATISTICS_SAMPLES)
    images = train.stacked(range(0, len(train), step))
    mean, std = channel_statistics(images)
    return Dataset(
        name="image_folder",
        train=TensorSamples(images, train.labels) if in_memory else train,
        test=TensorSamples(test.stacked(range(len(test))), test.labels) if in_memory else test,
        in_shape=train.shape,
        num_outputs=len(train.classes),
        mean=mean,
        std=std,
        classes=tuple(train.classes),
        augmentation=augmentation,
    )


def _folders(root: Path) -> tuple[Path, Path]:
    """Return the folders to train and to test on."""
    train = root / "train"
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test is None or not train.is_dir():
        lacking = "train/" if not train.is_dir() else "test/ or val/"
        raise MissingDataError(
            f"there is no {lacking} in {root}; image_folder reads root/train/CLASS/*.png and "
            "root/test/CLASS/*.png (or val, and other image formats). Set root=, or the "
            "environment variable STABNET_DATA, to the folder that holds them"
        )
    return train, test


@final
class _Files(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Image files with their labels, decoded when fetched, all of the first one's shape."""

    def __init__(
        self, folder: Path, image_size: int | None, shape: tuple[int, ...] | None = None
    ) -> None:
        try:
            found: Any = torchvision.datasets.ImageFolder(str(folder))
        except OSError as error:
            raise MissingDataError(
                f"{folder} has no images that can be used: {error}. Put them into one folder per "
                f"class, {folder}/CLASS/"
            ) from error
        # Found class by class: the first thousand would be of one class.
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        self.paths = [found.samples[index][0] for index in order]
        self.labels = torch.tensor(found.targets)[order]
        self.classes: list[str] = found.classes
        self.image_size = image_size
        self.shape = shape or tuple(self._pixels(0).shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 h w"], Tensor]:
        return self.decoded(index).to(torch.float32).div_(255), self.labels[index]

    def decoded(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Return the pixels of one image, and make sure of their shape."""
        pixels = self._pixels(index)
        if pixels.shape != self.shape:
            raise InvalidInputError(
                f"the image {self.paths[index]} has shape {tuple(pixels.shape)}, but the first one "
                f"of the training set has {self.shape}; set image_size= to bring all to one size"
            )
        return pixels

    def stacked(self, indices: range) -> UInt8[Tensor, "n 3 h w"]:
        """Return the pixels of several images."""
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        for place, index in enumerate(indices):
            images[place] = self.decoded(index)
        return images

    def _pixels(self, index: int) -> UInt8[Tensor, "3 h w"]:
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: PIL on a broken PNG
            raise MissingDataError(
                f"the image {path} cannot be decoded: {error}. Replace or remove it"
            ) from error
        if self.image_size is not None:
            resized = transforms.resize(image, [self.image_size])
            image = transforms.center_crop(resized, [self.image_size])
        pixels: Tensor = transforms.pil_to_tensor(image)
        return pixels
