"""How the models of this plugin are put together: resolutions of an image, then a dense tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

import stabnet
from stabnet import InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Block
from stabnet.values import shape, whole

from ..blocks.downsample import Basis, downsample
from ..blocks.flatten import Flatten
from ..blocks.lift import Lift, Project

__all__ = ["Part", "assembled", "check_part"]

Part = str | Mapping[str, Any]
"""A block to build many times: its name, or a dict of its name and options."""

_WIDTH = "features"
"""The option of a block that can change the number of channels (or of entries): how many."""


def assembled(
    in_shape: Sequence[int],
    num_outputs: int,
    *,
    block: Part,
    channels: Sequence[int],
    blocks: Sequence[int],
    dense_block: Part,
    features: Sequence[int],
    resize_block: Part | None,
    basis: Basis,
    head: str | Mapping[str, Any] | nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> StabilityModel:
    """Put a model together; see :func:`stabnet_gradient_flow.nonexpansive_net` for the options.

    Raises:
        InvalidOptionError: for options out of range, or that do not fit the image.
    """
    if resize_block is not None and not _sets_width("resize_block", resize_block):
        raise InvalidOptionError(
            f"resize_block={_name(resize_block)!r} keeps the number of features; give a block with "
            f"the option {_WIDTH!r}, such as 'cayley', or None for zeros and omissions"
        )
    chain = _Chain(shape("in_shape", in_shape), resize_block)
    widths, counts = _resolutions(chain.shape, channels, blocks)
    for index, (width, count) in enumerate(zip(widths, counts, strict=True)):
        if index:
            # Channels to be dropped are left to a block that can choose among them.
            chosen = resize_block is not None or (count > 0 and _sets_width("block", block))
            kept = None if chosen else min(width, 4 * chain.width)
            chain.add(downsample(state_shape=chain.shape, basis=basis, channels=kept))
        if not count:
            chain.resize(width)
        for _ in range(count):
            chain.add_part("block", block, width)
    chain.add(Flatten(chain.shape))
    for size in _numbers("features", features, 1):
        chain.add_part("dense_block", dense_block, size)
    backbone = stabnet.build("identity", kind="backbone", in_shape=tuple(in_shape))
    readout = stabnet.build(head, kind="head", in_features=chain.width, num_outputs=num_outputs)
    return StabilityModel(in_shape, num_outputs, backbone, Stack(chain.stages), readout, mean, std)


@final
class _Chain:
    """Blocks one after another, and the shape of the state behind them.

    Args:
        shape: shape of the first state.
        resizing: the block that changes the number of channels where others keep it, if any.
    """

    def __init__(self, shape: tuple[int, ...], resizing: Part | None) -> None:
        self.shape = shape
        self.resizing = resizing
        self.stages: list[Block] = []

    @property
    def width(self) -> int:
        """Number of channels, or of entries of a vector."""
        return self.shape[0]

    def add(self, block: Block) -> None:
        """Append a block."""
        self.stages.append(block)
        self.shape = tuple(getattr(block, "out_shape", block.state_shape))

    def resize(self, width: int) -> None:
        """Change the number of channels; by zeros and omissions if no block was given for it."""
        if self.resizing is not None and width != self.width:
            self.add_part("resize_block", self.resizing, width)
        elif width > self.width:
            self.add(Lift(self.shape, width))
        elif width < self.width:
            self.add(Project(self.shape, width))

    def add_part(self, option: str, part: Part, width: int) -> None:
        """Append a block that leaves so many channels; it changes their number itself if it can."""
        options: dict[str, Any] = {}
        if _sets_width(option, part):
            options[_WIDTH] = width
            if isinstance(part, Mapping) and part.get(_WIDTH) is None:  # left open, not given twice
                part = {key: value for key, value in part.items() if key != _WIDTH}
        else:
            self.resize(width)
        self.add(stabnet.build(part, kind="block", state_shape=self.shape, **options))


def check_part(option: str, part: Part) -> None:
    """Raise :class:`stabnet.InvalidOptionError` for a module, which cannot be built many times."""
    if not isinstance(part, (str, Mapping)):
        raise InvalidOptionError(
            f"{option} is built many times, so that one module cannot be it; got "
            f"{type(part).__name__}. Give a name, or a dict of a name and options"
        )


def _sets_width(option: str, part: Part) -> bool:
    """Return whether a block can change the number of channels by itself.

    Raises:
        InvalidOptionError: for a module.
    """
    check_part(option, part)
    options = stabnet.info(_name(part), kind="block").signature.parameters
    return _WIDTH in options


def _name(part: Part) -> str:
    return part if isinstance(part, str) else str(part.get("name"))


def _resolutions(
    in_shape: tuple[int, ...], channels: Sequence[int], blocks: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return channels and number of blocks of every resolution.

    Raises:
        InvalidOptionError: if they don't match, or the image cannot be halved so often.
    """
    widths, counts = _numbers("channels", channels, 1), _numbers("blocks", blocks, 0)
    if len(widths) != len(counts):
        raise InvalidOptionError(
            f"channels={widths} and blocks={counts} must have one number each per resolution"
        )
    if widths and len(in_shape) != 3:
        raise InvalidOptionError(
            f"channels={widths} are those of images (channels, height, width); inputs have shape "
            f"{in_shape}. Use channels=() and blocks=(), and features for the dense blocks"
        )
    for halvings in range(1, len(widths)):
        if any(size % 2**halvings for size in in_shape[1:]):
            raise InvalidOptionError(
                f"channels={widths} asks for {len(widths)} resolutions, but images of "
                f"{in_shape[1]} × {in_shape[2]} can be halved {halvings - 1} times; give at most "
                f"{halvings} numbers, or pad the images"
            )
    return widths, counts


def _numbers(option: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    """Return whole numbers of at least ``least``, of which there may be none.

    Raises:
        InvalidOptionError: for anything else.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidOptionError(
            f"{option} is a sequence of whole numbers, such as (16, 32); got {values!r}"
        )
    return tuple(whole(f"each entry of {option}", value, least) for value in values)
