"""Data sets: images in [0, 1], their metadata, seeded splits, and loaders that batch tensors.

Nothing here normalizes: a model does that itself, so that attacks and certificates act on pixels.
"""

from .augmentation import AUGMENTATIONS, Augmentation, augmentation, random_crop, random_flip
from .batches import loader
from .dataset import Dataset, Samples
from .roots import data_root, load
from .samples import TensorSamples, channel_statistics
from .splits import Splits, split
from .tensors import from_tensors

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Dataset",
    "Samples",
    "Splits",
    "TensorSamples",
    "augmentation",
    "channel_statistics",
    "data_root",
    "from_tensors",
    "load",
    "loader",
    "random_crop",
    "random_flip",
    "split",
]
