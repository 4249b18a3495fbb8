r"""Chains of invertible blocks whose activations are recomputed by inverting, not stored.

The backward pass walks the chain from its end. Each block :math:`\Phi_i` is inverted,
:math:`z_i = \Phi_i^{-1}(z_{i+1})`, and its vector–Jacobian product is taken there. What is kept of
the forward pass is the first state, the last one and, where it matters, one every few blocks.

*Rounding.* Each inversion rounds, and those after it amplify that by at most
:math:`\|(J\Phi_i)^{-1}\|` each, which for a symplectic block is :math:`\|J\Phi_i\|`: its singular
values come in pairs :math:`(s, 1/s)`. So the first state is found up to
:math:`c\,\varepsilon \prod_i \|J\Phi_i\|`, with the machine precision ε. The product is far above
what happens, since the directions of these norms seldom line up, so nothing is decided by it;
:func:`stabnet_hamiltonian.reconstruction_error` gives the error, and an estimate of this bound.
Instead every state that was kept is compared with its reconstruction. For symplectic blocks that
one is the least exact since the last that was kept, for generic errors: what one direction loses on
the way, the paired one gains. No gradient is returned where they differ by more than a tolerance:
more states are kept, or the backward pass is refused.

References:
    Gomez, Ren, Urtasun, Grosse: "The reversible residual network", 2017. [SNN] section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Block, Features, Invertible, check_block_state
from stabnet.values import flag, number, whole

from .reversal import Reversal
from .walk import Chain, distinct

__all__ = ["Part", "Reversible", "reversible"]

Part: TypeAlias = str | Mapping[str, Any]
"""A block to build many times: its name, or a dict of its name and options."""


def reversible(
    state_shape: Sequence[int],
    *,
    block: Part = "hamiltonian",
    depth: int = 10,
    stored: bool = False,
    checkpoint_every: int | None = None,
    tolerance: float | None = None,
) -> Reversible:
    """Build a chain of blocks of one kind; see :class:`Reversible`.

    Args:
        state_shape: shape of one state.
        block: every block, a name or a dict of name and options; invertible. A module among the
            options is shared by all blocks.
        depth: how many blocks.
        stored: whether activations are stored after all.
        checkpoint_every: number of blocks between states that are kept, as few as it takes if
            ``None``.
        tolerance: relative error of a reconstruction that is accepted.

    Raises:
        InvalidOptionError: for an option out of range, a block that was built already, or one that
            has no inverse.
    """
    if not isinstance(block, (str, Mapping)):
        raise InvalidOptionError(
            f"block is built {depth} times, so that one module cannot be it; got "
            f"{type(block).__name__}. Give a name, or a dict of a name and options"
        )
    blocks: list[Block] = []
    shape: Sequence[int] = tuple(state_shape)
    for _ in range(whole("depth", depth, 1)):
        blocks.append(stabnet.build(block, kind="block", state_shape=shape))
        shape = _out_shape(blocks[-1])
    return Reversible(blocks, stored=stored, checkpoint_every=checkpoint_every, tolerance=tolerance)


@final
class Reversible(Block):
    """A chain of invertible blocks whose memory in training does not grow with its length.

    Gradients are those of stored activations, up to the reconstruction's rounding. Blocks with
    ``inverse_with_vjp`` are inverted and differentiated by one evaluation, others by two.
    Activations are stored after all for derivatives of gradients (``create_graph=True``), under
    transforms of ``torch.func``, in compiled and exported programs, within
    ``torch.nn.utils.parametrize.cached()``, and in the replicas of ``torch.nn.DataParallel``.

    Gradients reach the states, the features and the parameters, and nothing else that blocks may
    refer to, such as a buffer that requires one.

    Blocks must map the same state to the same state in both passes: those that draw random numbers
    are refused, and so are parameters that were changed in between. Batch statistics are recorded
    once. Backward hooks of the blocks do not run, those of parameters do.

    Args:
        blocks: at least one, each taking the states that the one before it returns.
        stored: whether activations are stored after all, as in a :class:`stabnet.Stack`. The
            attribute may be changed at any time.
        checkpoint_every: number of blocks between states that are kept: the more are, the shorter
            are the reconstructions. ``None`` to keep the first and the last state only, until a
            backward pass misses the tolerance: it warns, is repeated from the first state with as
            many as it takes, and ``spacing`` of later passes is that.
        tolerance: largest accepted difference of a reconstruction to the state that was kept,
            relative to the size of the states there; ``None`` for ``ε^(2/3)``, or the precision of
            autocast. Gradients are more sensitive than states: a hundred times as large an error
            is common.

    Attributes:
        blocks: the blocks.
        out_shape: shape of one outgoing state.
        spacing: number of blocks between states that are kept where ``checkpoint_every`` is
            ``None``; ``None`` for all of them. Not in the state dict: a resumed training finds it
            anew, and is the same only up to rounding. ``checkpoint_every`` settles it.

    Raises:
        InvalidOptionError: if there is no block, one has no inverse or does not take the states of
            the one before it, or an option is out of range.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        *,
        stored: bool = False,
        checkpoint_every: int | None = None,
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        chain = _checked(blocks)
        self.blocks = nn.ModuleList(chain)
        self.state_shape, self.out_shape = tuple(chain[0].state_shape), _out_shape(chain[-1])
        self.stored = flag("stored", stored)
        self.checkpoint_every = (
            None if checkpoint_every is None else whole("checkpoint_every", checkpoint_every, 1)
        )
        self.tolerance = None if tolerance is None else number("tolerance", tolerance, above=0)
        self.spacing: int | None = None

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the states behind the last block.

        Raises:
            InvalidInputError: for states of another shape, or features that are no tensors.
        """
        check_block_state(z, self.state_shape)
        if torch.is_grad_enabled() and not self._stores():
            chain = self._chain()
            named = chain.parameters()
            features = () if u is None else u if isinstance(u, tuple) else (u,)
            if not all(isinstance(f, Tensor) for f in features):
                raise InvalidInputError(
                    f"features are a tensor or a tuple of tensors; got {type(u).__name__}"
                )
            arguments = (z, *features, *distinct(named))
            if any(a.requires_grad for a in arguments):
                several = isinstance(u, tuple)
                return cast("Tensor", Reversal.apply(chain, named, several, *arguments))
        for block in self.blocks:
            z = block(z, u)
        return z

    def inverse(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the states that the chain maps to ``z``, up to the rounding of all inversions."""
        for block in reversed(self.blocks):
            z = cast("Invertible", block).inverse(z, u)
        return z

    def _stores(self) -> bool:
        """Return whether activations are stored, by choice or because nothing else would do."""
        return (
            self.stored
            or torch.compiler.is_compiling()
            or torch._C._are_functorch_transforms_active()
            # Else the cache would get weights that were computed without a gradient.
            or parametrize._cache_enabled > 0
            # Replicas of DataParallel have no parameters, but tensors computed from them.
            or getattr(self, "_is_replica", False)
        )

    def _chain(self) -> Chain:
        """Return what the backward pass needs to know, with options as they are now."""
        if self.checkpoint_every is not None:
            return Chain(self.blocks, self.checkpoint_every, self.tolerance, None)
        every = self.spacing or len(self.blocks)
        return Chain(self.blocks, every, self.tolerance, self._lower)

    def _lower(self, spacing: int) -> None:
        # Of several graphs, each lowers what it started with: the lowest is enough for all.
        self.spacing = min(spacing, self.spacing or spacing)

    def extra_repr(self) -> str:
        """Return the options that matter."""
        return f"stored={self.stored}, checkpoint_every={self.checkpoint_every}"


def _checked(given: Iterable[Block]) -> list[Block]:
    """Return a chain of invertible blocks, or raise :class:`stabnet.InvalidOptionError`."""
    if not isinstance(given, Iterable):
        raise InvalidOptionError(
            f"a chain is made of a list of blocks; got {type(given).__name__}. Put one into a list"
        )
    blocks = list(given)
    if not blocks:
        raise InvalidOptionError("a chain needs at least one block; got none")
    for index, block in enumerate(blocks):
        if not isinstance(block, Invertible):
            raise InvalidOptionError(
                f"block {index} of a reversible chain, {type(block).__name__}, has no inverse; use "
                "blocks such as 'hamiltonian', and a stabnet.Stack for those without an inverse"
            )
        if index and tuple(block.state_shape) != _out_shape(blocks[index - 1]):
            raise InvalidOptionError(
                f"block {index} takes states of shape {tuple(block.state_shape)}; the one before "
                f"it returns {_out_shape(blocks[index - 1])}"
            )
    return blocks


def _out_shape(block: Block) -> tuple[int, ...]:
    return tuple(getattr(block, "out_shape", block.state_shape))
