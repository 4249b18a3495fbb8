"""The standard data sets. Registering them imports neither torch nor torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import references

if TYPE_CHECKING:
    import stabnet

__all__ = ["register_datasets"]


def register_datasets(registrar: stabnet.Registrar) -> None:
    """Register the standard data sets.

    Only ``digits`` has an example: the others need files that no package can bring along.
    """
    registrar.dataset(
        "digits",
        "stabnet_standard.datasets.digits:digits",
        summary="1,797 handwritten digits, 8 x 8, bundled with scikit-learn",
        reference=references.DIGITS,
        example={"root": None, "download": False},
    )
    registrar.dataset(
        "image_folder",
        "stabnet_standard.datasets.folder:image_folder",
        summary="images of one's own in train/CLASS/ and test/CLASS/",
    )
    for name, summary, reference in (
        ("mnist", "70,000 handwritten digits, 28 x 28", references.MNIST),
        ("fashion_mnist", "70,000 articles of clothing, 28 x 28", references.FASHION_MNIST),
        ("cifar10", "60,000 color images of 10 classes, 32 x 32", references.CIFAR),
        ("cifar100", "60,000 color images of 100 classes, 32 x 32", references.CIFAR),
        ("svhn", "99,289 street view house numbers in color, 32 x 32", references.SVHN),
    ):
        registrar.dataset(
            name,
            f"stabnet_standard.datasets.vision:{name}",
            summary=summary,
            reference=reference,
        )
