"""What `certified_images.py` trains on each data set: architecture, objective, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EPS", "RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained.

    Attributes:
        net: options of ``nonexpansive_net``; those of ``resnet_twin`` where ``constrained`` is
            false, so that one set of options gives both.
        objective: what it is trained on.
        epochs: passes over the training images.
        constrained: whether its blocks are non-expansive.
        batch_size: images per step.
        learning_rate: the highest one; it falls along a cosine.
    """

    net: dict
    objective: str | dict
    epochs: int
    constrained: bool = True
    batch_size: int = 128
    learning_rate: float = 3e-3


def margin(radius: float, temperature: float) -> dict:
    """Return the objective that asks for a certified radius."""
    return {"name": "margin_cross_entropy", "margin": radius, "temperature": temperature}


def twin(net: dict, hidden: int) -> dict:
    """Return the options of the twin: free residual blocks, of the same shapes where it has any.

    The layer that changes the width first stays what it is; what follows is not constrained.
    """
    free = {"name": "free_residual", "hidden": hidden}
    return net | {"block": "free_residual", "dense_block": free, "resize_block": "cayley"}


DIGITS = {
    "channels": (),
    "blocks": (),
    "dense_block": {"name": "gradient_flow", "hidden": 128},
    "features": (64,) * 3,
}
MNIST = {
    "channels": (),
    "blocks": (),
    "dense_block": "cayley",
    "features": (256,) * 3,
}
CIFAR = {
    "channels": (3, 12, 64),
    "blocks": (0, 0, 2),
    "block": "cayley",
    "dense_block": "cayley",
    "features": (256,) * 2,
}

RECIPES: dict[str, dict[str, Recipe]] = {
    "digits": {
        "margin 0.25": Recipe(DIGITS, margin(0.25, 0.1), 40, batch_size=32),
        "margin 0.5": Recipe(DIGITS, margin(0.5, 0.1), 40, batch_size=32),
        "margin 1": Recipe(DIGITS, margin(1.0, 0.1), 40, batch_size=32),
        "unconstrained": Recipe(twin(DIGITS, 64), "cross_entropy", 40, constrained=False),
    },
    "mnist": {
        "margin 0.4": Recipe(MNIST, margin(0.4, 0.1), 10, learning_rate=1e-2),
        "eps 0.5": Recipe(MNIST, margin(0.9, 0.15), 15, learning_rate=1e-2),
        "eps 1.58": Recipe(MNIST, margin(2.0, 0.2), 15, learning_rate=1e-2),
        "unconstrained": Recipe(twin(MNIST, 128), "cross_entropy", 5, False, learning_rate=1e-3),
    },
    "cifar10_jpeg": {
        "margin 0.2": Recipe(CIFAR, margin(0.2, 0.1), 10, learning_rate=1e-2),
        "margin 0.4": Recipe(CIFAR, margin(0.4, 0.15), 10, learning_rate=1e-2),
        "margin 0.8": Recipe(CIFAR, margin(0.8, 0.2), 10, learning_rate=1e-2),
        "unconstrained": Recipe(twin(CIFAR, 128), "cross_entropy", 10, False, learning_rate=1e-3),
    },
}
"""The models of every data set, by their labels.

On MNIST, `eps 0.5` and `eps 1.58` are meant for the accuracy that is certified at these radii.
"""

EPS: dict[str, tuple[float, ...]] = {
    "digits": (0.1, 0.25, 0.5, 0.75, 1.0),
    "mnist": (0.25, 0.5, 1.0, 1.58, 2.0),
    "cifar10_jpeg": (18 / 255, 36 / 255, 72 / 255, 108 / 255, 0.5),
}
"""The radii at which each data set's models are attacked."""
