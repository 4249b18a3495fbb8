import stabnet

from .activations import Activation as Activation
from .activations import feed_forward_activation as feed_forward_activation
from .activations import max_min as max_min
from .activations import monotone_activation as monotone_activation
from .norms import NormEstimate as NormEstimate
from .operators import Operator as Operator
from .operators import operator as operator

__all__ = [
    "Activation",
    "NormEstimate",
    "Operator",
    "feed_forward_activation",
    "max_min",
    "monotone_activation",
    "operator",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
