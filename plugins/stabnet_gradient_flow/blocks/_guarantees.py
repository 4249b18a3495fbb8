"""What the blocks with weights claim, and the check that there is something to claim."""

from __future__ import annotations

from torch import Tensor, nn

from stabnet import InvalidInputError, StabnetError
from stabnet.interfaces import BoundsLipschitz, Guarantee, Status

__all__ = ["as_it_stands", "check_finite", "non_expansive"]


def check_finite(block: nn.Module, *derived: Tensor) -> None:
    """Raise :class:`stabnet.InvalidInputError` for parameters that are not finite.

    Args:
        block: whose parameters are checked.
        derived: numbers computed from them, which must be finite as well.
    """
    name = type(block).__name__
    for parameter, values in block.named_parameters():
        if not bool(values.isfinite().all()):
            raise InvalidInputError(
                f"{parameter} of {name} holds NaN or infinite values: it has no Lipschitz bound. "
                "Go back to the weights from before training diverged"
            )
    if not all(bool(values.isfinite().all()) for values in derived):
        raise InvalidInputError(
            f"the weights of {name} are so large that it overflows: it has no Lipschitz bound"
        )


def as_it_stands(block: BoundsLipschitz, formula: str, source: str) -> Guarantee:
    """Return by how much a block, as it stands, may increase distances between states.

    Args:
        block: the block.
        formula: the inequality that its bound follows from.
        source: who says so.
    """
    status: Status = "verified"
    try:
        detail = f"L = {block.lipschitz_bound()!r} for the weights as they stand (float64)"
    except StabnetError as error:
        status, detail = "falsified", str(error)
    return Guarantee(
        claim="in eval mode the block increases no distance between states z beyond the factor L",
        formula=formula,
        source=source,
        status=status,
        assumptions=(
            "the block is evaluated without rounding, with the numbers that it computes from its "
            "weights alone as they are",
        ),
        detail=detail,
    )


def non_expansive(
    block: BoundsLipschitz, formula: str, source: str, without_rounding: str
) -> list[Guarantee]:
    """Return what is guaranteed of a block that is non-expansive in exact arithmetic.

    Args:
        block: the block.
        formula: why it is.
        source: who says so.
        without_rounding: what must be evaluated exactly for that.
    """
    return [
        Guarantee(
            claim="the block increases no distance between states z, for all finite weights",
            formula=formula,
            source=source,
            status="by construction",
            assumptions=(f"{without_rounding} and the block are evaluated without rounding",),
        ),
        as_it_stands(block, "‖Φ(z) − Φ(w)‖₂ ≤ L ‖z − w‖₂", source),
    ]
