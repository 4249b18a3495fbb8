"""Monitors: what happens along the layers of a model, and along the trajectory of a flow.

A *layer* is a stage of a model's :class:`stabnet.Stack`, where a block that is a sequence of blocks
(:class:`stabnet.interfaces.ComposedOfBlocks`, such as a reversible chain) counts as its blocks. A
model with another dynamics has one layer. A single block is looked at like a model without backbone
and head. The state that a layer maps is, for a dynamics, what it is driven by.

Models are run layer by layer in eval mode, with features that are computed once and then fixed.
Nothing about them is changed: modes are restored, gradients (``.grad``) and the global random
numbers of torch are left alone. Results are on the model's device and in its precision. They can be
recorded during training, see the ``monitor`` of :func:`stabnet.training.fit`, and plotted by
:func:`stabnet.plots.layer_curves`.
"""

from .energy import energies, energy_changes
from .gradients import gradient_norms
from .jacobians import block_norms, jacobian_norms, singular_values

__all__ = [
    "block_norms",
    "energies",
    "energy_changes",
    "gradient_norms",
    "jacobian_norms",
    "singular_values",
]
