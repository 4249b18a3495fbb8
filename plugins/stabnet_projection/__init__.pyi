import stabnet

from .block import PointProjection as PointProjection
from .block import projection as projection
from .fields.hurwitz import HurwitzField as HurwitzField
from .fields.negative_definite import NegativeDefiniteField as NegativeDefiniteField
from .fields.negative_gradient import NegativeGradientField as NegativeGradientField
from .fields.projected import ProjectedField as ProjectedField
from .fields.projected import project as project
from .fields.sine import SineField as SineField
from .flow import ProjectionFlow as ProjectionFlow
from .models.lyadeq import lyadeq as lyadeq
from .models.sodef import sodef as sodef
from .models.stable_dynamics import stable_dynamics as stable_dynamics
from .objectives.derivative_matching import DerivativeMatching as DerivativeMatching
from .objectives.sodef import SODEFLoss as SODEFLoss
from .objectives.trajectory_matching import TrajectoryMatching as TrajectoryMatching
from .potentials.energy import Energy as Energy
from .potentials.icnn import ICNN as ICNN
from .potentials.icnn import smooth_relu as smooth_relu
from .potentials.quadratic import Quadratic as Quadratic
from .simplex import class_vectors as class_vectors
from .stability import SODEFStability as SODEFStability
from .stability import field_jacobian as field_jacobian
from .stability import sodef_stability as sodef_stability
from .stable_step import StableStep as StableStep

__all__ = [
    "ICNN",
    "DerivativeMatching",
    "Energy",
    "HurwitzField",
    "NegativeDefiniteField",
    "NegativeGradientField",
    "PointProjection",
    "ProjectedField",
    "ProjectionFlow",
    "Quadratic",
    "SODEFLoss",
    "SODEFStability",
    "SineField",
    "StableStep",
    "TrajectoryMatching",
    "class_vectors",
    "field_jacobian",
    "lyadeq",
    "project",
    "projection",
    "smooth_relu",
    "sodef",
    "sodef_stability",
    "stable_dynamics",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
