"""What the blocks with weights share: the check that these are numbers."""

from __future__ import annotations

from torch import Tensor, nn

from stabnet import InvalidInputError

__all__ = ["check_finite"]


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
                f"{parameter} of {name} holds NaN or infinite values: it has no Lipschitz bound"
            )
    if not all(bool(values.isfinite().all()) for values in derived):
        raise InvalidInputError(
            f"the weights of {name} are so large that it overflows: it has no Lipschitz bound"
        )
