from __future__ import annotations

import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from stabnet import InvalidInputError, InvalidOptionError, MissingDataError
from stabnet.data import Dataset, channel_statistics, load, loader, split

RNG = np.random.default_rng(0)


def stacked(samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ((x, y),) = loader(samples, batch_size=len(samples))
    return x, y


@pytest.fixture(autouse=True)
def _elsewhere(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keep the real data out of the tests that make their own."""
    if "data" not in request.keywords:
        monkeypatch.delenv("STABNET_DATA", raising=False)
        monkeypatch.chdir(tmp_path)


# Digits


def test_digits_are_the_real_ones_in_the_unit_interval() -> None:
    data = load("digits")
    assert (data.name, data.task, data.augmentation) == ("digits", "classification", "none")
    assert (data.in_shape, data.num_outputs) == ((1, 8, 8), 10)
    assert data.classes == tuple("0123456789")
    (x_train, y_train), (x_test, y_test) = stacked(data.train), stacked(data.test)
    assert (len(x_train), len(x_test)) == (1438, 359)
    assert x_train.dtype == torch.float32
    assert x_train.min() == 0
    assert x_train.max() == 1

    def rows(x: Any, y: Any) -> list[tuple[float, ...]]:
        pairs = zip(x, y, strict=True)
        return sorted((*image.flatten().tolist(), int(label)) for image, label in pairs)

    bunch = load_digits()
    both = torch.cat([x_train, x_test]) * 16, torch.cat([y_train, y_test])
    assert rows(*both) == rows(bunch.images, bunch.target)


def test_digits_statistics_are_those_of_the_training_images() -> None:
    data = load("digits")
    x = stacked(data.train)[0].double()
    assert data.mean == pytest.approx((x.mean().item(),), rel=1e-12)
    assert data.std == pytest.approx((x.std(correction=0).item(),), rel=1e-12)


def test_digits_test_set_is_always_the_same_and_has_every_class() -> None:
    torch.manual_seed(1)
    first = stacked(load("digits").test)
    torch.manual_seed(2)
    second = stacked(load("digits").test)
    assert torch.equal(first[0], second[0])
    assert first[1].bincount(minlength=10).min() > 20


def test_registering_data_sets_does_not_import_torch() -> None:
    code = "import sys, stabnet_standard.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The formats that torchvision reads, in tiny


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, folder: str) -> dict[str, np.ndarray]:
    arrays = {}
    for part, n in (("train", 20), ("t10k", 6)):
        arrays[f"{part}-images-idx3-ubyte"] = RNG.integers(0, 256, (n, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(n) % 10
    for name, array in arrays.items():
        write_idx(root / folder / "raw" / name, array)
    return arrays


def write_cifar(
    root: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """Write batches of 4 images, and make their checksums those that torchvision expects."""
    classes = 10 if source is torchvision.datasets.CIFAR10 else 100
    key = "labels" if classes == 10 else "fine_labels"
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    batches = {}

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for attribute in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(source, attribute):
            pixels = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
            labels = RNG.integers(0, classes, 4).tolist()
            batches[name] = {"data": pixels, key: labels}
            listed.append(write(name, batches[name]))
        monkeypatch.setattr(source, attribute, listed)
    meta = dict(source.meta)
    names = [f"class {i}" for i in range(classes)]
    meta["md5"] = write(meta["filename"], {meta["key"]: names})[1]
    monkeypatch.setattr(source, "meta", meta)
    return batches


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, np.ndarray]]:
    source = torchvision.datasets.SVHN
    listed = dict(source.split_list)
    arrays = {}
    for part, n in (("train", 11), ("test", 10)):
        path = root / f"{part}_32x32.mat"
        pixels = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = (np.arange(n) % 10 + 1).reshape(n, 1).astype(np.uint8)
        arrays[part] = {"X": pixels, "y": labels}
        scipy.io.savemat(path, arrays[part])
        url, name, _ = listed[part]
        listed[part] = [url, name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(source, "split_list", listed)
    return arrays


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist_files_are_read_as_they_are(name: str, folder: str, tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path, folder)
    data = load(name, root=tmp_path)
    assert (data.name, data.in_shape, data.num_outputs) == (name, (1, 28, 28), 10)
    assert data.augmentation == "none"
    for samples, part in ((data.train, "train"), (data.test, "t10k")):
        x, y = stacked(samples)
        expected = arrays[f"{part}-images-idx3-ubyte"]
        np.testing.assert_array_equal(x[:, 0].mul(255).round().numpy(), expected)
        np.testing.assert_array_equal(y.numpy(), arrays[f"{part}-labels-idx1-ubyte"])


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_files_are_read_as_they_are(
    name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = getattr(torchvision.datasets, name.upper())
    batches = write_cifar(tmp_path, source, monkeypatch)
    data = load(name, root=tmp_path)
    assert (data.in_shape, data.num_outputs) == ((3, 32, 32), classes)
    assert data.augmentation == "crop_flip"
    assert data.classes is not None
    assert data.classes[-1] == f"class {classes - 1}"
    for samples, listed in ((data.train, source.train_list), (data.test, source.test_list)):
        x, y = stacked(samples)
        contents = [batches[file] for file, _ in listed]
        pixels = np.concatenate([c["data"] for c in contents]).reshape(-1, 3, 32, 32)
        labels = [label for c in contents for label in c.get("labels", c.get("fine_labels"))]
        np.testing.assert_array_equal(x.mul(255).round().numpy(), pixels)
        assert y.tolist() == labels


def test_svhn_files_are_read_with_ten_as_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_svhn(tmp_path, monkeypatch)
    data = load("svhn", root=tmp_path)
    assert (data.in_shape, data.num_outputs) == ((3, 32, 32), 10)
    assert data.augmentation == "crop_flip"
    for samples, part in ((data.train, "train"), (data.test, "test")):
        x, y = stacked(samples)
        expected = arrays[part]["X"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(x.mul(255).round().numpy(), expected)
        assert y.tolist() == (arrays[part]["y"][:, 0] % 10).tolist()


NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn")


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_an_error_that_says_where_and_what_to_do(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(MissingDataError) as caught:
        load(name, root=tmp_path / "nowhere")
    message = str(caught.value)
    for word in (name, str(tmp_path / "nowhere"), "download=True", "STABNET_DATA", "root="):
        assert word in message
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not (tmp_path / "nowhere").exists()


def test_the_default_folder_is_the_one_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "shared", "MNIST")
    monkeypatch.setenv("STABNET_DATA", str(tmp_path / "shared"))
    assert len(load("mnist").train) == 20


@pytest.mark.parametrize("keep", [0, 3, 10, 900])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_mnist_file_is_an_error(tmp_path: Path, file: str, keep: int) -> None:
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / file
    whole = path.read_bytes()
    path.write_bytes(whole[: min(keep, len(whole) - 1)])
    with pytest.raises(MissingDataError, match="cannot be read from"):
        load("mnist", root=tmp_path)


def test_images_without_their_labels_are_an_error(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(19))
    with pytest.raises(MissingDataError, match="20 inputs but 19 targets"):
        load("mnist", root=tmp_path)


def test_a_label_beyond_the_classes_is_an_error(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.full(6, 10))
    with pytest.raises(MissingDataError, match="a label 10, but there are 10 classes"):
        load("mnist", root=tmp_path)


def test_a_damaged_cifar_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, torchvision.datasets.CIFAR10, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MissingDataError, match="corrupted"):
        load("cifar10", root=tmp_path)


def test_foreign_cifar_files_are_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        write_cifar(tmp_path, torchvision.datasets.CIFAR10, patched)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a foreign file was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    with pytest.raises(MissingDataError, match="corrupted"):
        load("cifar10", root=tmp_path)


def test_a_truncated_svhn_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose checksum is the expected one, as after an update of the list."""
    write_svhn(tmp_path, monkeypatch)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MissingDataError, match="corrupted"):
        load("svhn", root=tmp_path)
    listed = dict(torchvision.datasets.SVHN.split_list)
    listed["test"] = [*listed["test"][:2], hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    with pytest.raises(MissingDataError, match="'svhn' cannot be read"):
        load("svhn", root=tmp_path)


def test_nothing_is_downloaded_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(self: Any) -> None:
        asked.append(str(self.root))
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(MissingDataError):
        load("cifar10", root=tmp_path)
    assert asked == []
    with pytest.raises(MissingDataError, match=r"no network.*check the network"):
        load("cifar10", root=tmp_path, download=True)
    assert asked == [str(tmp_path)]


# Folders of images


def write_folder(root: Path, test: str = "test", size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """Write 3 + 2 lossless images of each of two classes; return the training images."""
    images = RNG.integers(0, 256, (6, *size, 3), dtype=np.uint8)
    for part, n in (("train", 3), (test, 2)):
        for k, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(images[3 * k + i]).save(root / part / name / f"{i}.png")
    return images


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder_reads_the_pixels(tmp_path: Path, test: str, in_memory: bool) -> None:
    images = write_folder(tmp_path, test)
    data = load("image_folder", root=tmp_path, in_memory=in_memory, augmentation="crop_flip")
    assert (data.in_shape, data.num_outputs, data.classes) == ((3, 6, 5), 2, ("cat", "dog"))
    assert data.augmentation == "crop_flip"
    x, y = stacked(data.train)
    assert x.dtype == torch.float32
    pixels = images.transpose(0, 3, 1, 2)
    order = [int((pixels == one).all((1, 2, 3)).argmax()) for one in x.mul(255).round().numpy()]
    np.testing.assert_array_equal(x.mul(255).round().numpy(), pixels[order])
    assert y.tolist() == [index // 3 for index in order]
    assert sorted(order) == list(range(6))
    assert len(data.test) == 4
    values = images.astype(np.float64) / 255
    assert data.mean == pytest.approx(values.mean((0, 1, 2)), rel=1e-12)
    assert data.std == pytest.approx(values.std((0, 1, 2)), rel=1e-12)


def test_the_first_images_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog", "emu"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (2, 2)).save(tmp_path / part / name / f"{i}.png")
    data = load("image_folder", root=tmp_path)
    again = load("image_folder", root=tmp_path)
    labels = [int(data.test[i][1]) for i in range(60)]
    assert set(labels[:20]) == {0, 1, 2}
    assert sorted(labels) == sorted([0, 1, 2] * 20)
    assert labels == [int(again.test[i][1]) for i in range(60)]


def test_image_folder_in_memory_and_lazy_agree_bit_for_bit(tmp_path: Path) -> None:
    write_folder(tmp_path, size=(19, 13))
    lazy, kept = (
        load("image_folder", root=tmp_path, image_size=8, in_memory=m) for m in (False, True)
    )
    assert lazy.in_shape == kept.in_shape == (3, 8, 8)
    assert (lazy.mean, lazy.std) == (kept.mean, kept.std)
    for one, other in ((lazy.train, kept.train), (lazy.test, kept.test)):
        for a, b in zip(stacked(one), stacked(other), strict=True):
            assert torch.equal(a, b)


def test_image_folder_resizes_the_short_edge_and_keeps_the_center(tmp_path: Path) -> None:
    write_folder(tmp_path)
    image = np.zeros((8, 24, 3), dtype=np.uint8)
    image[:, 8:16] = 255  # the middle third is white
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(image).save(path)
    data = load("image_folder", root=tmp_path, image_size=4)
    x, _ = data.train[0]
    assert x.shape == (3, 4, 4)
    assert x[:, :, 1:3].min() > 0.99


def test_image_folder_splits_and_loads_lazily(tmp_path: Path) -> None:
    write_folder(tmp_path)
    parts = split(load("image_folder", root=tmp_path), validation=0.5)
    ((x, y),) = loader(parts.train, batch_size=8, augment="crop_flip", shuffle=True)
    assert x.shape == (3, 3, 6, 5)
    assert y.shape == (3,)


def test_image_folder_reads_gray_images_in_color(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    x, _ = load("image_folder", root=tmp_path).train[0]
    assert x.shape == (3, 6, 5)
    assert torch.equal(x[0], x[2])


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_image_folder_names_the_folder_it_lacks(tmp_path: Path, lacking: str) -> None:
    write_folder(tmp_path)
    (tmp_path / lacking).rename(tmp_path / "elsewhere")
    with pytest.raises(MissingDataError, match=rf"there is no {lacking}.*STABNET_DATA"):
        load("image_folder", root=tmp_path)


def test_image_folder_without_class_folders_or_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(MissingDataError, match="one folder per class"):
        load("image_folder", root=tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(MissingDataError, match="cat"):
        load("image_folder", root=tmp_path)


def test_image_folder_wants_the_same_classes_in_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "dogs")
    with pytest.raises(InvalidInputError, match="dog, dogs"):
        load("image_folder", root=tmp_path)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("keep", [0, 60])
def test_image_folder_names_a_truncated_image(tmp_path: Path, in_memory: bool, keep: int) -> None:
    write_folder(tmp_path)
    path = tmp_path / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MissingDataError, match=r"dog/1.png cannot be decoded"):
        stacked(load("image_folder", root=tmp_path, in_memory=in_memory).test)


@pytest.mark.parametrize("in_memory", [False, True])
def test_image_folder_names_an_image_of_another_size(tmp_path: Path, in_memory: bool) -> None:
    write_folder(tmp_path)
    path = tmp_path / "test" / "dog" / "1.png"
    Image.fromarray(np.zeros((7, 5, 3), dtype=np.uint8)).save(path)
    with pytest.raises(InvalidInputError, match=r"dog/1.png has shape \(3, 7, 5\).*image_size="):
        stacked(load("image_folder", root=tmp_path, in_memory=in_memory).test)


@pytest.mark.parametrize("size", [0, 2.5, [8, 8]])
def test_image_folder_refuses_a_size_that_is_none(tmp_path: Path, size: Any) -> None:
    write_folder(tmp_path)
    with pytest.raises(InvalidOptionError, match="image_size="):
        load("image_folder", root=tmp_path, image_size=size)


def test_image_folder_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="cannot download"):
        load("image_folder", root=tmp_path, download=True)


# The real data


@pytest.fixture
def real() -> Path:
    folder = os.environ.get("STABNET_DATA")
    if not folder:
        pytest.skip("STABNET_DATA is not set; it names the folder of the real data sets")
    return Path(folder)


def first_labels(data: Dataset) -> tuple[list[int], list[int]]:
    train, test = ([int(samples[i][1]) for i in range(5)] for samples in (data.train, data.test))
    return train, test


@pytest.mark.data
def test_real_mnist_is_whole_and_has_the_quoted_statistics(real: Path) -> None:
    if not (real / "MNIST").is_dir():
        pytest.skip(f"there is no MNIST in {real}")
    data = load("mnist")
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert first_labels(data) == ([5, 0, 4, 1, 9], [7, 2, 1, 0, 4])
    x, _ = stacked(data.train)
    assert data.mean == pytest.approx((x.mean().item(),), abs=5e-5)
    assert data.std == pytest.approx((x.std().item(),), abs=5e-5)


@pytest.mark.data
def test_real_jpegs_of_cifar10_are_read_from_a_folder(real: Path, tmp_path: Path) -> None:
    archive = real / "cifar10_jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"there is no {archive}")
    with tarfile.open(archive) as tar:
        chosen = [
            m for m in tar if m.isfile() and Path(m.name).suffix == ".jpg" and m.name[-7:-5] == "00"
        ]
        tar.extractall(tmp_path, chosen, filter="data")
    data = load("image_folder", root=tmp_path, in_memory=True, augmentation="crop_flip")
    assert (data.in_shape, data.num_outputs) == ((3, 32, 32), 10)
    assert data.classes is not None
    assert data.classes[0] == "airplane"
    assert len(data.train) == len(chosen) - len(data.test) > 0
    # Of few and lossy images, so near the constants of the originals, not at them.
    quoted = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    for ours, theirs in zip((data.mean, data.std), quoted, strict=True):
        assert ours == pytest.approx(theirs, abs=0.08)
    assert channel_statistics(data.train.x) == (data.mean, data.std)  # type: ignore[attr-defined]
