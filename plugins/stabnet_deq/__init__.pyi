import stabnet

from .arnoldi import spectral_radius as spectral_radius
from .cell import DEQCell as DEQCell
from .conv import ConvCell as ConvCell
from .deq import deq as deq
from .diagnostics import Diagnosis as Diagnosis
from .diagnostics import Distance as Distance
from .diagnostics import Spread as Spread
from .diagnostics import diagnose as diagnose
from .diagnostics import distance_travelled as distance_travelled
from .multiscale import MultiscaleCell as MultiscaleCell
from .regularization import JacobianRegularized as JacobianRegularized
from .solvers.anderson import Anderson as Anderson
from .solvers.picard import Picard as Picard

__all__ = [
    "Anderson",
    "ConvCell",
    "DEQCell",
    "Diagnosis",
    "Distance",
    "JacobianRegularized",
    "MultiscaleCell",
    "Picard",
    "Spread",
    "deq",
    "diagnose",
    "distance_travelled",
    "spectral_radius",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
