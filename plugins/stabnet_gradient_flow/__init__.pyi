import stabnet

from .activations import Activation as Activation
from .activations import feed_forward_activation as feed_forward_activation
from .activations import max_min as max_min
from .activations import monotone_activation as monotone_activation
from .blocks.aol import AOL as AOL
from .blocks.aol import aol as aol
from .blocks.gradient_flow import GradientFlow as GradientFlow
from .blocks.gradient_flow import gradient_flow as gradient_flow
from .blocks.gradient_flow import gradient_flow_conv as gradient_flow_conv
from .blocks.gradient_flow_pair import GradientFlowPair as GradientFlowPair
from .blocks.sll import SLL as SLL
from .blocks.sll import sll as sll
from .norms import NormEstimate as NormEstimate
from .operators import Operator as Operator
from .operators import operator as operator
from .rescaling import rescaled_rows as rescaled_rows

__all__ = [
    "AOL",
    "SLL",
    "Activation",
    "GradientFlow",
    "GradientFlowPair",
    "NormEstimate",
    "Operator",
    "aol",
    "feed_forward_activation",
    "gradient_flow",
    "gradient_flow_conv",
    "max_min",
    "monotone_activation",
    "operator",
    "rescaled_rows",
    "sll",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
