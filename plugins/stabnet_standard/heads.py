"""Heads: maps from the final state to the outputs."""

from __future__ import annotations

from torch import nn

import stabnet

from ._checks import positive_int

__all__ = ["identity", "linear"]


def linear(in_features: int, num_outputs: int, bias: bool = True) -> nn.Linear:
    """Return an unconstrained linear head, ``W z + b``.

    Args:
        in_features: size of one raveled state.
        num_outputs: number of classes or of values.
        bias: whether there is a ``b``.
    """
    return nn.Linear(
        positive_int("in_features", in_features), positive_int("num_outputs", num_outputs), bias
    )


def identity(in_features: int, num_outputs: int) -> nn.Identity:
    """Return the head whose outputs are the state itself.

    Args:
        in_features: size of one raveled state.
        num_outputs: number of classes or of values, equal to ``in_features``.

    Raises:
        InvalidOptionError: if the two differ.
    """
    if in_features != num_outputs:
        raise stabnet.InvalidOptionError(
            f"head 'identity' needs a state of as many entries as outputs; got a state of "
            f"{in_features} and {num_outputs} outputs. Choose a state of {num_outputs}, or the "
            "head 'linear'"
        )
    return nn.Identity()
