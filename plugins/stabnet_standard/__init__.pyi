import stabnet

from .backbones import StandardBackbone as StandardBackbone
from .integrators import AdaptiveRungeKutta as AdaptiveRungeKutta
from .integrators import ButcherTableau as ButcherTableau
from .integrators import RungeKutta as RungeKutta
from .objectives import CrossEntropy as CrossEntropy
from .objectives import MeanSquaredError as MeanSquaredError
from .vector_fields import ConvField as ConvField
from .vector_fields import MLPField as MLPField

__all__ = [
    "AdaptiveRungeKutta",
    "ButcherTableau",
    "ConvField",
    "CrossEntropy",
    "MLPField",
    "MeanSquaredError",
    "RungeKutta",
    "StandardBackbone",
    "stabnet_register",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
