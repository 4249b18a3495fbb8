"""Blocks of discrete stages: stitches between grids, residual blocks, and the final average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Block, Features

__all__ = ["AveragePool", "Residual", "Stitch"]


@final
class Stitch(Block):
    r"""Joins the states of two flows, whose channels and grids may differ.

    .. math:: z \mapsto \sigma\bigl(N_2 W_2 * \sigma(N_1 W_1 * z) + N_3 W_3 * z\bigr)

    with ReLU :math:`\sigma`, 3 × 3 convolutions :math:`W_1, W_2` and a 1 × 1 convolution
    :math:`W_3`, all without bias, and batch normalization :math:`N_i`. :math:`W_1` and
    :math:`W_3` have the stride. Where the ReLUs are is that of a residual block; the paper does
    not say.

    Args:
        state_shape: ``(channels, height, width)`` of one incoming state.
        channels: channels of the next; those of ``state_shape`` if ``None``.
        stride: how many points of the grid become one, in each direction.

    Attributes:
        out_shape: shape of one outgoing state.

    Raises:
        InvalidOptionError: for a state that is no grid, or a number that is not positive.

    References:
        Queiruga, Erichson, Taylor, Mahoney: "Continuous-in-depth neural networks", 2020.
    """

    def __init__(
        self, state_shape: Sequence[int], channels: int | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        self.state_shape, self.out_shape = _shapes("stitch", state_shape, channels, stride)
        before, after = self.state_shape[0], self.out_shape[0]
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )

    def forward(
        self, z: Float[Tensor, "batch c h w"], u: Features = None
    ) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the next state; ``u`` is not looked at."""
        _check_state(z, self.state_shape)
        out: Tensor = (self.main(z) + self.skip(z)).relu()
        return out


@final
class Residual(Block):
    r"""The residual block of ResNet-18.

    .. math:: z \mapsto \sigma\bigl(N_2 W_2 * \sigma(N_1 W_1 * z) + S z\bigr)

    with the identity :math:`S` where the state keeps its shape, else a 1 × 1 convolution with
    batch normalization; otherwise as :class:`Stitch`. It is torchvision's ``BasicBlock``.

    Args:
        state_shape: ``(channels, height, width)`` of one incoming state.
        channels: channels of the next; those of ``state_shape`` if ``None``.
        stride: how many points of the grid become one, in each direction.

    Attributes:
        out_shape: shape of one outgoing state.

    Raises:
        InvalidOptionError: for a state that is no grid, or a number that is not positive.

    References:
        He, Zhang, Ren, Sun: "Deep residual learning for image recognition", 2016, figure 2.
    """

    def __init__(
        self, state_shape: Sequence[int], channels: int | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        self.state_shape, self.out_shape = _shapes("residual", state_shape, channels, stride)
        before, after = self.state_shape[0], self.out_shape[0]
        skip = None
        if stride != 1 or before != after:
            skip = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )
        self.body = BasicBlock(before, after, stride, skip)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision initializes a whole network
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, z: Float[Tensor, "batch c h w"], u: Features = None
    ) -> Float[Tensor, "batch c2 h2 w2"]:
        """Return the next state; ``u`` is not looked at."""
        _check_state(z, self.state_shape)
        out: Tensor = self.body(z)
        return out


@final
class AveragePool(Block):
    """The average over the grid, one number per channel.

    Args:
        state_shape: ``(channels, height, width)`` of one incoming state.

    Attributes:
        out_shape: ``(channels,)``.

    Raises:
        InvalidOptionError: for a state that is no grid.
    """

    def __init__(self, state_shape: Sequence[int]) -> None:
        super().__init__()
        self.state_shape, _ = _shapes("average_pool", state_shape, None, 1)
        self.out_shape = self.state_shape[:1]

    def forward(
        self, z: Float[Tensor, "batch c h w"], u: Features = None
    ) -> Float[Tensor, "batch c"]:
        """Return the averages; ``u`` is not looked at."""
        _check_state(z, self.state_shape)
        return z.mean((-2, -1))


def _shapes(
    block: str, state_shape: Sequence[int], channels: int | None, stride: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes before and after, of whole positive numbers.

    A grid of ``n`` points leaves ``⌈n/stride⌉`` behind 3 × 3 convolutions padded by one, and
    behind 1 × 1 convolutions.
    """
    shape = tuple(state_shape)
    after = shape[0] if channels is None and shape else channels
    numbers = (*shape, after, stride)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if len(shape) != 3 or not whole:
        raise InvalidOptionError(
            f"block {block!r} takes state_shape=(channels, height, width) and positive whole "
            f"numbers; got state_shape={shape}, channels={channels!r}, stride={stride!r}"
        )
    assert after is not None
    return shape, (after, *(-(-n // stride) for n in shape[1:]))


def _check_state(z: Tensor, state_shape: tuple[int, ...]) -> None:
    if z.shape[1:] != state_shape:
        raise InvalidInputError(
            f"the block takes states (batch, {', '.join(map(str, state_shape))}); "
            f"got {tuple(z.shape)}"
        )
