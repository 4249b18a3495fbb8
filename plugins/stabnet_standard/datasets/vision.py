"""The data sets that torchvision reads: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN.

The means and standard deviations are those of the whole training sets, as everyone quotes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from stabnet import MissingDataError
from stabnet.data import Dataset, TensorSamples, data_root

__all__ = ["cifar10", "cifar100", "fashion_mnist", "mnist", "svhn"]

_Arrays = tuple[Tensor, Tensor]


def mnist(root: str | None = None, download: bool = False) -> Dataset:
    """Load MNIST: 60,000 + 10,000 handwritten digits, (1, 28, 28), from ``root/MNIST/raw``.

    Args:
        root: where ``MNIST/raw`` is, or is downloaded to; see :func:`stabnet.data.data_root`.
        download: download what is missing.

    Raises:
        MissingDataError: if the files are missing or damaged.

    References:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    return _mnist_like("mnist", torchvision.datasets.MNIST, root, download, mean=0.1307, std=0.3081)


def fashion_mnist(root: str | None = None, download: bool = False) -> Dataset:
    """Load Fashion-MNIST: 60,000 + 10,000 articles of clothing, (1, 28, 28).

    Args:
        root: where ``FashionMNIST/raw`` is, or is downloaded to; see
            :func:`stabnet.data.data_root`.
        download: download what is missing.

    Raises:
        MissingDataError: if the files are missing or damaged.

    References:
        Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017.
    """
    return _mnist_like(
        "fashion_mnist", torchvision.datasets.FashionMNIST, root, download, mean=0.2860, std=0.3530
    )


def cifar10(root: str | None = None, download: bool = False) -> Dataset:
    """Load CIFAR-10: 50,000 + 10,000 color images of 10 classes, (3, 32, 32).

    Args:
        root: where ``cifar-10-batches-py`` is, or is downloaded to; see
            :func:`stabnet.data.data_root`.
        download: download what is missing.

    Raises:
        MissingDataError: if the files are missing, or are not those of the checksums.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return _cifar_like("cifar10", torchvision.datasets.CIFAR10, root, download, mean=mean, std=std)


def cifar100(root: str | None = None, download: bool = False) -> Dataset:
    """Load CIFAR-100: 50,000 + 10,000 color images of 100 classes, (3, 32, 32).

    Args:
        root: where ``cifar-100-python`` is, or is downloaded to; see
            :func:`stabnet.data.data_root`.
        download: download what is missing.

    Raises:
        MissingDataError: if the files are missing, or are not those of the checksums.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _cifar_like(
        "cifar100", torchvision.datasets.CIFAR100, root, download, mean=mean, std=std
    )


def svhn(root: str | None = None, download: bool = False) -> Dataset:
    """Load Street View House Numbers: 73,257 + 26,032 digits in color, (3, 32, 32).

    The label is the digit in the middle. Its augmentation has the horizontal flip with which
    [LyaDEQ] trains on it, although a mirrored digit is seldom a digit.

    Args:
        root: where ``train_32x32.mat`` and ``test_32x32.mat`` are, or are downloaded to; see
            :func:`stabnet.data.data_root`.
        download: download what is missing.

    Raises:
        MissingDataError: if the files are missing, or are not those of the checksums.

    References:
        Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011.
    """

    def read(folder: str, train: bool) -> tuple[_Arrays, Sequence[str]]:
        split = "train" if train else "test"
        source = torchvision.datasets.SVHN(folder, split=split, download=download)
        images = torch.from_numpy(source.data).contiguous()
        return (images, torch.from_numpy(source.labels)), [str(digit) for digit in range(10)]

    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    return _load("svhn", read, root, download, mean=mean, std=std, augmentation="crop_flip")


def _mnist_like(
    name: str, source: Any, root: str | None, download: bool, *, mean: float, std: float
) -> Dataset:
    def read(folder: str, train: bool) -> tuple[_Arrays, Sequence[str]]:
        found = source(folder, train=train, download=download)
        return (found.data.unsqueeze(1), found.targets), found.classes

    return _load(name, read, root, download, mean=(mean,), std=(std,), augmentation="none")


def _cifar_like(
    name: str,
    source: Any,
    root: str | None,
    download: bool,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    def read(folder: str, train: bool) -> tuple[_Arrays, Sequence[str]]:
        found = source(folder, train=train, download=download)
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return (images, torch.tensor(found.targets)), found.classes

    return _load(name, read, root, download, mean=mean, std=std, augmentation="crop_flip")


def _load(
    name: str,
    read: Callable[[str, bool], tuple[_Arrays, Sequence[str]]],
    root: str | None,
    download: bool,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augmentation: str,
) -> Dataset:
    """Read both parts of a data set, or say what is wrong with its files and what to do."""
    folder = data_root(root)
    try:
        (x_train, y_train), classes = read(str(folder), True)
        (x_test, y_test), _ = read(str(folder), False)
        train, test = TensorSamples(x_train, y_train), TensorSamples(x_test, y_test)
        highest = int(max(y_train.max(), y_test.max()))
        if highest >= len(classes):
            raise ValueError(f"there is a label {highest}, but there are {len(classes)} classes")
        in_shape = tuple(x_train.shape[1:])
    # Whatever torchvision, pickle and scipy raise on missing, foreign or truncated files.
    except Exception as error:
        advice = (
            "check the network, and delete damaged files to have them downloaded again"
            if download
            else "pass download=True to download it; or set root=, or the environment variable "
            "STABNET_DATA, to the folder that holds it; delete damaged files first"
        )
        raise MissingDataError(
            f"the data set {name!r} cannot be read from {folder}: {type(error).__name__}: {error}. "
            f"What to do: {advice}"
        ) from error
    return Dataset(
        name=name,
        train=train,
        test=test,
        in_shape=in_shape,
        num_outputs=len(classes),
        mean=mean,
        std=std,
        classes=tuple(classes),
        augmentation=augmentation,
    )
