"""Running attacks over batches and counting what they do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..checks import seeded
from ..errors import InvalidInputError
from ..interfaces import Attack, Solution
from ..plugin import CONFIG_ATTRIBUTE, build
from ._batches import checked_batches
from ._checks import check_logits, check_perturbation
from ._isolation import eval_mode
from ._results import AttackResult, CleanResult

__all__ = ["Batches", "attack_model", "evaluate", "name_of"]

Batches = Iterable[Sequence[Tensor]]
"""A data loader, or any iterable of ``(images, labels)``."""


def attack_model(
    model: nn.Module,
    batches: Batches,
    attack: str | Mapping[str, Any] | Attack,
    *,
    max_images: int | None = None,
    seed: int = 0,
) -> AttackResult:
    """Attack a model on every image and count how often it stays right.

    An image counts as robust only if it is classified rightly before *and* after the attack. The
    accuracy found is an upper bound of the true robust accuracy: another attack may find more.

    The model is in eval mode throughout, every module's mode is restored, and the caller's random
    numbers are left alone. The same seed, batches and device give the same result.

    Args:
        model: maps a batch of images to logits, normalizing inside. One that has
            ``run(x) -> (logits, Solution)`` is also asked which solves converged.
        batches: images in [0, 1] and their labels; moved to the model's device.
        attack: a registered name, a dict of name and options, or an attack.
        max_images: stop after so many images; all of them if ``None``.
        seed: seed of the attack's random numbers, and of a shuffling loader that has none itself.

    Returns:
        Counts and settings.

    Raises:
        InvalidInputError: for no images at all, images outside [0, 1], or labels that do not fit.
        AttackError: if the attack cannot run on the model, or leaves its ball.
    """
    (result,) = evaluate(model, batches, (attack,), max_images=max_images, seed=seed)
    return result


def evaluate(
    model: nn.Module,
    batches: Batches,
    attacks: Sequence[str | Mapping[str, Any] | Attack],
    *,
    max_images: int | None,
    seed: int,
) -> tuple[AttackResult, ...]:
    """Run several attacks in one pass over the data, each as :func:`attack_model` would.

    Each attack draws from its own stream, which depends on the seed and the number of the batch.
    """
    built: list[Attack] = [a if isinstance(a, Attack) else build(a, kind="attack") for a in attacks]
    clean, counts, dead = _Count(), [_Count() for _ in built], 0
    device = next((t.device for t in chain(model.parameters(), model.buffers())), None)
    streams = torch.Generator().manual_seed(seed)
    home = seeded(seed, device or torch.device("cpu"))
    with torch.inference_mode(False), eval_mode(model), home:
        for x, y in checked_batches(batches, max_images, device):
            stream = int(torch.randint(2**62, (), generator=streams))
            with seeded(stream, x.device):
                right = clean.add(model, x, y)
                dead += int(_dead_gradients(model, x, y).sum())
            for attack, count in zip(built, counts, strict=True):
                with seeded(stream, x.device):
                    count.add(model, count.attacked(attack, model, x, y), y, right)
    if not clean.images:
        raise InvalidInputError("there are no images to attack; the batches are empty")
    unattacked = CleanResult(clean.images, clean.right, dead, clean.unconverged)
    return tuple(
        count.result(attack, unattacked, seed) for attack, count in zip(built, counts, strict=True)
    )


def name_of(part: object) -> str:
    """Return the registered name of a part, or its class where it has none."""
    config: Mapping[str, Any] = getattr(part, CONFIG_ATTRIBUTE, {})
    return str(config.get("name", type(part).__name__))


@dataclass
class _Count:
    """Running totals over batches."""

    images: int = 0
    right: int = 0
    unconverged: int | None = None
    largest: float = 0.0
    seconds: float = 0.0

    def attacked(self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the attacked images of a batch, checked; the attack is not trusted."""
        start = time.perf_counter()
        with eval_mode(model):
            x_adv = attack(model, x.clone(), y.clone())
        size = check_perturbation(x_adv, x, eps=attack.eps, norm=attack.norm)
        self.largest = max(self.largest, float(size.max()))
        self.seconds += time.perf_counter() - start
        return x_adv

    def add(
        self, model: nn.Module, x: Tensor, y: Tensor, among: Bool[Tensor, " batch"] | None = None
    ) -> Bool[Tensor, " batch"]:
        """Classify a batch, count it, and return which images (``among`` some) came out right."""
        with torch.no_grad():
            logits, converged = _predict(model, x)
        check_logits(logits, y)
        # argmax would take the first NaN for an answer.
        right = (logits.argmax(1) == y) & ~logits.isnan().any(1)
        if among is not None:
            right = right & among
        self.images += len(x)
        self.right += int(right.sum())
        if converged is not None:
            self.unconverged = (self.unconverged or 0) + int((~converged).sum())
        return right

    def result(self, attack: Attack, clean: CleanResult, seed: int) -> AttackResult:
        """Return what was counted under an attack, with its settings."""
        return AttackResult(
            attack=name_of(attack),
            norm=attack.norm,
            eps=attack.eps,
            steps=attack.steps,
            step_size=getattr(attack, "step_size", None),
            seed=seed,
            clean=clean,
            robust=self.right,
            max_perturbation=self.largest,
            unconverged=self.unconverged,
            seconds=self.seconds,
        )


def _predict(
    model: nn.Module, x: Float[Tensor, "batch ..."]
) -> tuple[Float[Tensor, "batch classes"], Bool[Tensor, " batch"] | None]:
    """Return the logits, and which solves converged where the model says so."""
    run = getattr(model, "run", None)
    if not callable(run):
        return model(x), None
    found = run(x)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Solution)):
        raise InvalidInputError(
            f"{type(model).__name__}.run returned {type(found).__name__}; a model's run(x) is "
            "expected to return (logits, Solution). Rename it, or wrap the model"
        )
    logits, solution = found
    return logits, solution.converged


def _dead_gradients(
    model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Return which images have an input gradient that is exactly zero or not finite."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(model(x), y, reduction="sum")
        if not loss.requires_grad:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
    rows = gradient.flatten(1)
    return (rows == 0).all(1) | ~rows.isfinite().all(1)
