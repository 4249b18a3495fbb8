"""The models of the benchmark of non-expansive blocks, and their unconstrained twins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import stabnet

LEARNING_RATE = 1e-2
WIDTH, DEPTH = 256, 3
CHANNELS = (16, 32)
SLOPE = {"slope": 0.1}


@dataclass(frozen=True)
class Row:
    """A model of one type of block.

    Attributes:
        states: "vectors" or "images".
        block: name of the block.
        hidden: the block's hidden features or channels, relative to those of the state; 0 for a
            block that has none, and changes the width itself.
        free: hidden features of the twin's blocks, relative to those of the state.
        learning_rate: the highest one.
        more: further options of the block.
    """

    states: str
    block: str
    hidden: int
    free: float
    learning_rate: float = LEARNING_RATE
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What ``--only`` calls it."""
        return f"{self.states}/{self.block}"

    def options(self) -> dict[str, Any]:
        """Return the options of ``nonexpansive_net``."""
        changes = 0 if self.hidden else 1  # blocks that take the place of `resize_block`
        resizing = {"resize_block": "cayley"} if self.hidden else {}
        if self.states == "images":
            # Hidden channels are by default as many as those of the state.
            counts = (0, *[1 + changes] * len(CHANNELS))
            block = {"name": self.block, **self.more}
            return {"channels": (1, *CHANNELS), "blocks": counts, "block": block, **resizing}
        hidden = {"hidden": self.hidden * WIDTH} if self.hidden else {}
        return {
            "channels": (),
            "blocks": (),
            "dense_block": {"name": self.block, **hidden, **self.more},
            "features": (WIDTH,) * (DEPTH + changes),
            **resizing,
        }

    def architecture(self, pixels: int) -> str:
        """Return the layers in words."""
        first = "`cayley`" if self.hidden else "the block"
        more = "".join(f", {name} {value:g}" for name, value in self.more.items())
        if self.states == "vectors":
            hidden = f", {self.hidden * WIDTH} hidden" if self.hidden else ""
            return f"{first} {pixels} → {WIDTH}, {DEPTH} blocks{hidden}{more}"
        sizes = zip((1, *CHANNELS), CHANNELS, strict=False)
        return "; ".join(f"{first} {4 * n} → {m}, 1 block{more}" for n, m in sizes)


ROWS = (
    Row("vectors", "gradient_flow", 4, 4),
    Row("vectors", "gradient_flow_pair", 1, 2, more=SLOPE),
    Row("vectors", "sll", 1, 1),
    Row("vectors", "sandwich", 0, 1),
    Row("vectors", "aol", 0, 0.5, learning_rate=1e-3),
    Row("vectors", "cayley", 0, 0.5),
    Row("images", "gradient_flow_conv", 1, 1),
    Row("images", "gradient_flow_pair", 1, 1, more=SLOPE),
    Row("images", "sll", 1, 1),
    Row("images", "sandwich", 0, 1),
    Row("images", "aol", 0, 0.5),
    Row("images", "cayley", 0, 0.5),
)
"""What is measured.

In runs of about ten seconds a learning rate and a slope of their own certified more than the common
rate, at which `aol` had a clean accuracy of 77 % on vectors, and the default slope, which makes a
pair contract. The twin's share counts products of states with matrices or 3×3 kernels; that of the
pair's orthogonal matrix at every pixel is left out.
"""


def build(row: Row, data: stabnet.data.Dataset) -> stabnet.StabilityModel:
    """Return the model of a row, without normalization, which would count in every bound."""
    model: stabnet.StabilityModel = stabnet.build(
        "nonexpansive_net", in_shape=data.in_shape, num_outputs=data.num_outputs, **row.options()
    )
    return model


def twin(row: Row, data: stabnet.data.Dataset) -> nn.Module:
    """Return the unconstrained model with the same states."""

    def free(*state_shape: int) -> nn.Module:
        hidden = math.ceil(row.free * state_shape[0])
        block: nn.Module = stabnet.build(
            "free_residual", kind="block", state_shape=state_shape, hidden=hidden
        )
        return block

    channels, height, width = data.in_shape
    size = math.prod(data.in_shape)
    layers: list[nn.Module] = []
    if row.states == "vectors":
        layers += [nn.Flatten(), nn.Linear(size, WIDTH), nn.ReLU()]
        layers += [free(WIDTH) for _ in range(DEPTH)]
        size = WIDTH
    else:
        for more in CHANNELS:
            height, width = height // 2, width // 2
            layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, more, 3, padding=1)]
            layers += [nn.ReLU(), free(more, height, width)]
            channels = more
        size = channels * height * width
        layers.append(nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(size, data.num_outputs))
