"""What was counted: on the clean images, and under one attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["AttackResult", "CleanResult"]


@dataclass(frozen=True)
class CleanResult:
    """What a model does on the images as they are.

    Attributes:
        images: number of images.
        correct: how many are classified rightly.
        dead_gradients: how many have an input gradient of the loss that is exactly zero, or not
            finite: gradient attacks are blind there, and the model looks robust without being it.
        unconverged: how many of the model's solves did not converge; ``None`` for a model that
            does not say.
    """

    images: int
    correct: int
    dead_gradients: int
    unconverged: int | None = None

    @property
    def accuracy(self) -> float:
        """Share of images that are classified rightly."""
        return self.correct / self.images

    @property
    def dead_gradient_share(self) -> float:
        """Share of images whose input gradient is exactly zero or not finite."""
        return self.dead_gradients / self.images

    @property
    def converged_share(self) -> float | None:
        """Share of images whose solve converged."""
        return None if self.unconverged is None else 1 - self.unconverged / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return counts and shares as plain data for JSON."""
        return {
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "dead_gradients": self.dead_gradients,
            "dead_gradient_share": self.dead_gradient_share,
            "converged_share": self.converged_share,
        }


@dataclass(frozen=True)
class AttackResult:
    """What one attack does to a model.

    An image counts as robust only if it is classified rightly before *and* after the attack. Two
    results compare equal whatever time they took.

    Attributes:
        attack: the attack's registered name, or its class where it has none.
        norm: norm of the ball.
        eps: radius of the ball, in pixel units (images in [0, 1]).
        steps: gradient steps per image.
        step_size: length of one step; ``None`` for an attack that has no such thing.
        seed: seed of the run.
        clean: what the model does on the same images unattacked.
        robust: how many images are classified rightly before and after.
        max_perturbation: largest perturbation of an image, in ``norm``.
        unconverged: how many solves at the attacked images did not converge; ``None`` for a model
            that does not say.
        seconds: wall-clock time spent in the attack.
    """

    attack: str
    norm: Literal["linf", "l2"]
    eps: float
    steps: int
    step_size: float | None
    seed: int
    clean: CleanResult
    robust: int
    max_perturbation: float
    unconverged: int | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def images(self) -> int:
        """Number of images."""
        return self.clean.images

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are classified rightly before the attack."""
        return self.clean.accuracy

    @property
    def robust_accuracy(self) -> float:
        """Share of images that are classified rightly before and after the attack."""
        return self.robust / self.images

    @property
    def converged_share(self) -> float | None:
        """Share of attacked images whose solve converged."""
        return None if self.unconverged is None else 1 - self.unconverged / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return settings, counts and shares as plain data for JSON."""
        return {
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps,
            "steps": self.steps,
            "step_size": self.step_size,
            "seed": self.seed,
            "images": self.images,
            "clean_accuracy": self.clean_accuracy,
            "robust": self.robust,
            "accuracy": self.robust_accuracy,
            "max_perturbation": self.max_perturbation,
            "dead_gradient_share": self.clean.dead_gradient_share,
            "converged_share": self.converged_share,
            "seconds": self.seconds,
        }
