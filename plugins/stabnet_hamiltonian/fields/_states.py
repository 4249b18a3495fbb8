"""What the Hamiltonian fields share: the shapes of their states and features."""

from __future__ import annotations

from collections.abc import Sequence

from stabnet import InvalidOptionError
from stabnet.values import shape

__all__ = ["feature_sizes", "phase_shape"]


def phase_shape(state_shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of a state ``(q, p)``, and that of each half.

    Raises:
        InvalidOptionError: if its first dimension has no two equal halves.
    """
    sizes = shape("state_shape", state_shape)
    if sizes[0] % 2:
        raise InvalidOptionError(
            f"state_shape={sizes}: a Hamiltonian state is (q, p), two equal halves along the first "
            f"dimension, whose size is even; take {(sizes[0] + 1, *sizes[1:])}, or lift by zeros"
        )
    return sizes, (sizes[0] // 2, *sizes[1:])


def feature_sizes(feature_shape: Sequence[int] | None, takes_features: bool) -> tuple[int, ...]:
    """Return the shape of features; ``()``, like ``None``, means an autonomous field.

    Raises:
        InvalidOptionError: for features where no energy of the field can take them.
    """
    sizes = shape("feature_shape", feature_shape) if feature_shape else ()
    if sizes and not takes_features:
        raise InvalidOptionError(
            f"feature_shape={sizes}: the energies of one layer do not depend on features. Start "
            "the flow at the features (initial='features') and leave feature_shape out, or choose "
            "a potential that takes features"
        )
    return sizes
