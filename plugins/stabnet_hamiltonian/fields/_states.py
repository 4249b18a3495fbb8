"""What the Hamiltonian fields share: the shapes of their states, and checks of their inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Features
from stabnet.values import shape

__all__ = ["check_state", "driving_features", "feature_sizes", "phase_shape"]


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


def check_state(z: Tensor, state_shape: tuple[int, ...]) -> None:
    """Check that ``z`` is one state, a batch of them, or a batch with samples.

    Raises:
        InvalidInputError: otherwise.
    """
    extra = z.ndim - len(state_shape)
    if extra not in (0, 1, 2) or z.shape[extra:] != state_shape:
        wanted = ", ".join(map(str, state_shape))
        raise InvalidInputError(
            f"expected states (batch, {wanted}) or (batch, samples, {wanted}); got {tuple(z.shape)}"
        )


def driving_features(u: Features, feature_shape: tuple[int, ...]) -> Tensor | None:
    """Return the features of a field, ``None`` for one that is autonomous.

    Raises:
        InvalidInputError: unless they are one tensor of the shape that the field was built for.
    """
    if not feature_shape:
        return None
    wanted = f"features (batch, {', '.join(map(str, feature_shape))})"
    if not isinstance(u, Tensor):
        raise InvalidInputError(f"the field takes {wanted}; got {type(u).__name__}. Pass u")
    extra = u.ndim - len(feature_shape)
    if extra not in (0, 1) or u.shape[extra:] != feature_shape:
        raise InvalidInputError(f"the field takes {wanted}; got {tuple(u.shape)}")
    return u
