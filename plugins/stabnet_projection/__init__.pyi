import stabnet

from .block import PointProjection as PointProjection
from .block import projection as projection
from .fields.projected import ProjectedField as ProjectedField
from .fields.projected import project as project
from .flow import ProjectionFlow as ProjectionFlow
from .models.lyadeq import lyadeq as lyadeq
from .potentials.icnn import ICNN as ICNN
from .potentials.icnn import smooth_relu as smooth_relu
from .stable_step import StableStep as StableStep

__all__ = [
    "ICNN",
    "PointProjection",
    "ProjectedField",
    "ProjectionFlow",
    "StableStep",
    "lyadeq",
    "project",
    "projection",
    "smooth_relu",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
