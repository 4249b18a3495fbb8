import stabnet

from .arnoldi import spectral_radius as spectral_radius
from .cell import DEQCell as DEQCell
from .conv import ConvCell as ConvCell
from .diagnostics import Diagnosis as Diagnosis
from .diagnostics import Distance as Distance
from .diagnostics import Spread as Spread
from .diagnostics import diagnose as diagnose
from .diagnostics import distance_travelled as distance_travelled
from .ibp.backbone import StridedConv as StridedConv
from .ibp.cell import IBPMonotoneCell as IBPMonotoneCell
from .ibp.objective import IntervalCrossEntropy as IntervalCrossEntropy
from .models.deq import deq as deq
from .models.ibp_mondeq import ibp_mondeq as ibp_mondeq
from .models.mondeq import mondeq as mondeq
from .monotone import MonotoneCell as MonotoneCell
from .monotone import ProximalActivation as ProximalActivation
from .multiscale import MultiscaleCell as MultiscaleCell
from .regularization import JacobianRegularized as JacobianRegularized
from .solvers.anderson import Anderson as Anderson
from .solvers.broyden import Broyden as Broyden
from .solvers.forward_backward import ForwardBackward as ForwardBackward
from .solvers.peaceman_rachford import PeacemanRachford as PeacemanRachford
from .solvers.picard import Picard as Picard

__all__ = [
    "Anderson",
    "Broyden",
    "ConvCell",
    "DEQCell",
    "Diagnosis",
    "Distance",
    "ForwardBackward",
    "IBPMonotoneCell",
    "IntervalCrossEntropy",
    "JacobianRegularized",
    "MonotoneCell",
    "MultiscaleCell",
    "PeacemanRachford",
    "Picard",
    "ProximalActivation",
    "Spread",
    "StridedConv",
    "deq",
    "diagnose",
    "distance_travelled",
    "ibp_mondeq",
    "mondeq",
    "spectral_radius",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
