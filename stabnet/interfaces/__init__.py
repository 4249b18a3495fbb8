"""The ground floor: what every part of a stability-constrained network looks like.

Imports torch and nothing else of stabnet.
"""

from .attack import Attack
from .backbone import Backbone
from .block import Block
from .capabilities import (
    BoundsEquilibria,
    BoundsGrowth,
    BoundsIntervals,
    BoundsLipschitz,
    BoundsSmoothness,
    ComposedOfBlocks,
    Descends,
    Descent,
    FixedStep,
    FusedInvertible,
    Guaranteed,
    HasEnergy,
    Invertible,
    Renormalizable,
    Separable,
    is_composed_of_blocks,
    is_descending,
)
from .cell import Cell
from .dynamics import Dynamics
from .guarantee import Guarantee, Status
from .inputs import check_block_state, check_field_state, driving_features
from .integrator import Integrator, RightHandSide, Trajectory
from .objective import Objective
from .potential import Context, Potential
from .solution import BackwardRecord, Features, Solution, SolverResult, State
from .solver import FixedPointMap, Solver
from .splitting import SplitCell, SplitMap, Splitting
from .vector_field import VectorField, lift_features

__all__ = [
    "Attack",
    "Backbone",
    "BackwardRecord",
    "Block",
    "BoundsEquilibria",
    "BoundsGrowth",
    "BoundsIntervals",
    "BoundsLipschitz",
    "BoundsSmoothness",
    "Cell",
    "ComposedOfBlocks",
    "Context",
    "Descends",
    "Descent",
    "Dynamics",
    "Features",
    "FixedPointMap",
    "FixedStep",
    "FusedInvertible",
    "Guarantee",
    "Guaranteed",
    "HasEnergy",
    "Integrator",
    "Invertible",
    "Objective",
    "Potential",
    "Renormalizable",
    "RightHandSide",
    "Separable",
    "Solution",
    "Solver",
    "SolverResult",
    "SplitCell",
    "SplitMap",
    "Splitting",
    "State",
    "Status",
    "Trajectory",
    "VectorField",
    "check_block_state",
    "check_field_state",
    "driving_features",
    "is_composed_of_blocks",
    "is_descending",
    "lift_features",
]
