"""Backbones: networks that compute the features of an input, once."""

from __future__ import annotations

from .cifar_resnet import resnet20, resnet56
from .convnet import convnet
from .dense import identity, linear, mlp
from .resnet18 import resnet18
from .standard_backbone import StandardBackbone
from .stem import stem

__all__ = [
    "StandardBackbone",
    "convnet",
    "identity",
    "linear",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet56",
    "stem",
]
