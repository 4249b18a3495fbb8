import stabnet

from .activations import Activation as Activation
from .activations import feed_forward_activation as feed_forward_activation
from .activations import max_min as max_min
from .activations import monotone_activation as monotone_activation
from .blocks.aol import AOL as AOL
from .blocks.aol import aol as aol
from .blocks.cayley import Cayley as Cayley
from .blocks.downsample import Downsample as Downsample
from .blocks.downsample import ProjectedDownsample as ProjectedDownsample
from .blocks.downsample import downsample as downsample
from .blocks.flatten import Flatten as Flatten
from .blocks.free_residual import FreeResidual as FreeResidual
from .blocks.gradient_flow import GradientFlow as GradientFlow
from .blocks.gradient_flow import gradient_flow as gradient_flow
from .blocks.gradient_flow import gradient_flow_conv as gradient_flow_conv
from .blocks.gradient_flow_pair import GradientFlowPair as GradientFlowPair
from .blocks.lift import Lift as Lift
from .blocks.lift import Project as Project
from .blocks.sandwich import Sandwich as Sandwich
from .blocks.scale import Scale as Scale
from .blocks.sll import SLL as SLL
from .blocks.sll import sll as sll
from .cayley_map import cayley as cayley
from .models.invnet import invnet as invnet
from .models.nonexpansive_net import nonexpansive_net as nonexpansive_net
from .models.resnet_twin import resnet_twin as resnet_twin
from .norms import NormEstimate as NormEstimate
from .objectives.margin_cross_entropy import MarginCrossEntropy as MarginCrossEntropy
from .objectives.margin_hinge import MarginHinge as MarginHinge
from .operators import Operator as Operator
from .operators import operator as operator
from .rescaling import rescaled_rows as rescaled_rows
from .semi_orthogonal import SemiOrthogonal as SemiOrthogonal

__all__ = [
    "AOL",
    "SLL",
    "Activation",
    "Cayley",
    "Downsample",
    "Flatten",
    "FreeResidual",
    "GradientFlow",
    "GradientFlowPair",
    "Lift",
    "MarginCrossEntropy",
    "MarginHinge",
    "NormEstimate",
    "Operator",
    "Project",
    "ProjectedDownsample",
    "Sandwich",
    "Scale",
    "SemiOrthogonal",
    "aol",
    "cayley",
    "downsample",
    "feed_forward_activation",
    "gradient_flow",
    "gradient_flow_conv",
    "invnet",
    "max_min",
    "monotone_activation",
    "nonexpansive_net",
    "operator",
    "rescaled_rows",
    "resnet_twin",
    "sll",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
