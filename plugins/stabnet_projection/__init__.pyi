import stabnet

from .block import PointProjection as PointProjection
from .block import projection as projection
from .flow import ProjectionFlow as ProjectionFlow
from .icnn import ICNN as ICNN
from .icnn import smooth_relu as smooth_relu
from .models.lyadeq import lyadeq as lyadeq
from .projected import ProjectedField as ProjectedField
from .projected import project as project

__all__ = [
    "ICNN",
    "PointProjection",
    "ProjectedField",
    "ProjectionFlow",
    "lyadeq",
    "project",
    "projection",
    "smooth_relu",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
