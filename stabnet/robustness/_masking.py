"""Signs of gradient masking, and of attacks too short to find anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

from ._results import AttackResult

__all__ = ["masking_warnings", "pixels"]

MARGIN = 0.05
"""A difference of accuracies below this is never called one."""

FLAT = 0.1
"""A curve is flat that falls by less than this share of what its first radius led to expect."""

SHARE = 0.01
"""Dead gradients and unconverged solves above this share are reported."""


def masking_warnings(
    results: Sequence[AttackResult],
    *,
    random_start: Sequence[AttackResult] = (),
    single_step: Sequence[AttackResult] = (),
) -> tuple[str, ...]:
    """Return what looks like gradient masking or a void attack, in words; empty if nothing does.

    A warning is a reason to distrust the numbers, no proof; silence proves nothing either.

    Args:
        results: what iterative attacks that start at the image did, at one radius or several.
        random_start: what iterative attacks with a random start did, on the same images.
        single_step: what one full step ``eps · sign(∇ loss)`` did, on the same images.

    Returns:
        One sentence per finding:

        - accuracy falls at the smallest radius and then hardly moves up to the largest;
        - images have an input gradient that is exactly zero or not finite;
        - a random start finds clearly more than a start at the image, at the same radius;
        - a single step finds clearly more than many, at the same radius;
        - solves do not converge, so that implicit gradients are not the model's;
        - the steps are together shorter than the radius, so that the attack hardly leaves its
          start.

    References:
        Athalye, Carlini and Wagner 2018, "Obfuscated gradients give a false sense of security",
        section 3.1.
    """
    iterative = (*results, *random_start)
    return (
        *_flat_curves(iterative),
        *_dead_gradients(iterative),
        *_blind_at_the_image(results, random_start),
        *_worse_by_iterating(results, single_step),
        *_unconverged(iterative),
        *_short(iterative),
    )


def pixels(eps: float) -> str:
    """Return a radius in 255ths, as papers write it."""
    return f"{round(255 * eps, 6):g}/255"


def _exceeds(high: float, low: float, images: int) -> bool:
    """Return whether one accuracy is above another by the margin and by three standard errors."""
    error = sqrt((high * (1 - high) + low * (1 - low)) / images)
    return high - low > max(MARGIN, 3 * error)


def _flat_curves(results: Sequence[AttackResult]) -> Iterator[str]:
    for name, norm in dict.fromkeys((r.attack, r.norm) for r in results):
        same = (r for r in results if (r.attack, r.norm) == (name, norm))
        curve = sorted(same, key=lambda r: r.eps)
        first, last = curve[0], curve[-1]
        clean, low = first.clean_accuracy, last.robust_accuracy
        # What is lost grows about linearly with the radius, until nothing is left to lose.
        lost = clean - first.robust_accuracy
        expected = min(lost * (last.eps / first.eps - 1), first.robust_accuracy)
        fallen = first.robust_accuracy - low
        if (
            _exceeds(clean, first.robust_accuracy, first.images)
            and low > FLAT
            and fallen < FLAT * expected
        ):
            yield (
                f"{name}: accuracy is {clean:.1%} clean and {first.robust_accuracy:.1%} at "
                f"{pixels(first.eps)}, but still {low:.1%} at {pixels(last.eps)}. A curve that "
                "falls and then hardly moves is a textbook sign of gradient masking"
            )


def _dead_gradients(results: Sequence[AttackResult]) -> Iterator[str]:
    share = max((r.clean.dead_gradient_share for r in results), default=0.0)
    if share > SHARE:
        yield (
            f"{share:.1%} of the images have an input gradient that is exactly zero or not finite; "
            "gradient attacks are blind there, and robust accuracy says nothing about these images"
        )


def _same_radius(
    some: Sequence[AttackResult], others: Sequence[AttackResult]
) -> Iterator[tuple[AttackResult, AttackResult]]:
    return ((a, b) for a in some for b in others if (a.norm, a.eps) == (b.norm, b.eps))


def _blind_at_the_image(
    results: Sequence[AttackResult], random_start: Sequence[AttackResult]
) -> Iterator[str]:
    for plain, random in _same_radius(results, random_start):
        if _exceeds(plain.robust_accuracy, random.robust_accuracy, plain.images):
            yield (
                f"at {pixels(plain.eps)} {plain.attack}, which starts at the image, leaves "
                f"{plain.robust_accuracy:.1%}, and {random.attack} with its random start "
                f"{random.robust_accuracy:.1%}: the gradient at the images misleads"
            )


def _worse_by_iterating(
    results: Sequence[AttackResult], single_step: Sequence[AttackResult]
) -> Iterator[str]:
    for many, one in _same_radius(results, single_step):
        if _exceeds(many.robust_accuracy, one.robust_accuracy, many.images):
            yield (
                f"at {pixels(one.eps)} a single step leaves {one.robust_accuracy:.1%}, and "
                f"{many.attack} with {many.steps} steps {many.robust_accuracy:.1%}: iterating "
                "should find more, never less"
            )


def _unconverged(results: Sequence[AttackResult]) -> Iterator[str]:
    worst = max(results, key=lambda r: (r.unconverged or 0) / r.images, default=None)
    if worst is None or worst.unconverged is None:
        return
    share, before = worst.unconverged / worst.images, (worst.clean.unconverged or 0) / worst.images
    if share > SHARE:
        yield (
            f"{share:.1%} of the solves do not converge under {worst.attack} at "
            f"{pixels(worst.eps)} ({before:.1%} on the clean images); implicit gradients are "
            "inexact there. Attack with a tighter solver too"
        )


def _short(results: Sequence[AttackResult]) -> Iterator[str]:
    for r in results:
        reach = r.steps * (r.eps if r.step_size is None else r.step_size)
        if reach < r.eps * (1 - 1e-6):  # 2/255 in two steps of 1/255 is no shorter
            yield (
                f"the {r.steps} steps of {r.attack} travel {pixels(reach)} in {r.norm}, less than "
                f"the radius {pixels(r.eps)}: most of the ball is never searched"
            )
