"""A report on attacks of the caller's choice, in any norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import InvalidOptionError
from ..interfaces import Attack
from ._evaluate import Batches, evaluate, name_of
from ._masking import masking_warnings
from ._report import RobustnessReport

__all__ = ["attack_report"]


def attack_report(
    model: nn.Module,
    batches: Batches,
    attacks: Sequence[str | Mapping[str, Any] | Attack],
    *,
    max_images: int | None = None,
    seed: int = 0,
) -> RobustnessReport:
    """Attack a model with every one of some attacks, and report what it withstands.

    All attacks see the same images, in one pass over the batches. Norms may differ; every row of
    the report names its own. Seeds, modes, devices and what counts as robust are as in
    :func:`attack_model`.

    Args:
        model: maps a batch of images to logits, normalizing inside.
        batches: images in [0, 1] and their labels; consumed once.
        attacks: registered names, dicts of name and options, or attacks.
        max_images: stop after so many images; all of them if ``None``.
        seed: seed of the random starts.

    Returns:
        The report.

    Raises:
        InvalidOptionError: for no attack at all.
        InvalidInputError: for images or labels that cannot be attacked.
        AttackError: if an attack cannot run on the model, or leaves its ball.
    """
    if isinstance(attacks, (str, Mapping, Attack)) or not attacks:
        raise InvalidOptionError(
            f"attacks are a sequence of at least one attack, such as ['pgd_l2']; got {attacks!r}"
        )
    found = evaluate(model, batches, attacks, max_images=max_images, seed=seed)
    return RobustnessReport(
        model=name_of(model),
        clean=found[0].clean,
        seed=seed,
        results=found,
        warnings=masking_warnings(found),
    )
