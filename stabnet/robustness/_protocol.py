"""The attack protocol of the LyaDEQ paper."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import InvalidOptionError
from ._evaluate import Batches, evaluate, name_of
from ._masking import masking_warnings
from ._report import RobustnessReport

__all__ = ["PAPER_EPS", "paper_protocol"]

PAPER_EPS = (2 / 255, 4 / 255, 6 / 255, 8 / 255)
"""The four radii of the paper's tables."""


def paper_protocol(
    model: nn.Module,
    batches: Batches,
    *,
    eps: Sequence[float] = PAPER_EPS,
    step_size: float = 1 / 255,
    max_images: int | None = None,
    seed: int = 0,
) -> RobustnessReport:
    r"""Attack a model as [LyaDEQ] does: I-FGSM and PGD in the :math:`\ell_\infty` ball.

    Both take ``floor(min(255 eps + 4, 1.25 · 255 eps))`` steps: 2, 5, 7 and 10 at the four radii.
    That is weak, and accuracy under it is an upper bound of the true robust accuracy; the report
    says so. Beside the protocol a single step (FGSM) is taken at the largest radius, to check
    the order of the attacks; the report warns of what looks like gradient masking.

    All attacks see the same images, in one pass over the batches. Seeds, modes, devices and what
    counts as robust are as in :func:`attack_model`.

    Args:
        model: maps a batch of images to logits, normalizing inside.
        batches: images in [0, 1] and their labels; consumed once.
        eps: radii, each in (0, 1], in pixel units.
        step_size: length of one step, in (0, 1].
        max_images: stop after so many images; all of them if ``None``.
        seed: seed of the random starts.

    Returns:
        The report.

    Raises:
        MissingExtraError: if the library that runs the attacks is not installed.
        InvalidOptionError: for no radius, or one out of range.
        InvalidInputError: for images or labels that cannot be attacked.
        AttackError: if an attack cannot run on the model.

    References:
        [LyaDEQ] (13), (14) and tables 1 to 3.
    """
    radii = tuple(dict.fromkeys(float(e) for e in eps))
    if not radii:
        raise InvalidOptionError("eps is empty; give at least one radius, such as 8/255")
    largest = max(radii)
    attacks = [
        {"name": name, "eps": e, "step_size": step_size} for name in ("ifgsm", "pgd") for e in radii
    ]
    fgsm = {"name": "ifgsm", "eps": largest, "step_size": largest, "steps": 1}
    found = evaluate(model, batches, (*attacks, fgsm), max_images=max_images, seed=seed)
    plain, random, single = found[: len(radii)], found[len(radii) : -1], found[-1:]
    return RobustnessReport(
        model=name_of(model),
        clean=single[0].clean,
        seed=seed,
        results=(*plain, *random),
        single_step=single,
        warnings=masking_warnings(plain, random_start=random, single_step=single),
    )
