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
from .mondeq import mondeq as mondeq
from .monotone import MonotoneCell as MonotoneCell
from .monotone import ProximalActivation as ProximalActivation
from .multiscale import MultiscaleCell as MultiscaleCell
from .regularization import JacobianRegularized as JacobianRegularized
from .solvers.anderson import Anderson as Anderson
from .solvers.forward_backward import ForwardBackward as ForwardBackward
from .solvers.peaceman_rachford import PeacemanRachford as PeacemanRachford
from .solvers.picard import Picard as Picard

__all__ = [
    "Anderson",
    "ConvCell",
    "DEQCell",
    "Diagnosis",
    "Distance",
    "ForwardBackward",
    "JacobianRegularized",
    "MonotoneCell",
    "MultiscaleCell",
    "PeacemanRachford",
    "Picard",
    "ProximalActivation",
    "Spread",
    "deq",
    "diagnose",
    "distance_travelled",
    "mondeq",
    "spectral_radius",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
