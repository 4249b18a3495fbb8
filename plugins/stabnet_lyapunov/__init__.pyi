import stabnet

from .blocks import AveragePool as AveragePool
from .blocks import Residual as Residual
from .blocks import Stitch as Stitch
from .certificate import LyapunovCertificate as LyapunovCertificate
from .certificate import lyapunov_certificate as lyapunov_certificate
from .fields.data_controlled import DataControlledField as DataControlledField
from .fields.data_controlled import least_gain as least_gain
from .fields.piecewise_conv import PiecewiseConvField as PiecewiseConvField
from .models.continuous_net import continuous_net as continuous_net
from .models.lyanet import lyanet as lyanet
from .models.lyanet import neural_ode as neural_ode
from .models.resnet18 import resnet18 as resnet18
from .monitors import DecayReport as DecayReport
from .monitors import EarlyTermination as EarlyTermination
from .monitors import decay_share as decay_share
from .monitors import early_termination as early_termination
from .nero import Nero as Nero
from .objectives.monte_carlo import LyapunovMonteCarlo as LyapunovMonteCarlo
from .objectives.path_integral import LyapunovPathIntegral as LyapunovPathIntegral
from .objectives.schedules import GainSchedule as GainSchedule
from .objectives.schedules import RateSchedule as RateSchedule
from .potential import SupervisedPotential as SupervisedPotential
from .samplers import Ball as Ball
from .samplers import Hypercube as Hypercube
from .samplers import Sampler as Sampler
from .samplers import Trajectory as Trajectory
from .samplers import ball_radius as ball_radius
from .samplers import hypercube_size as hypercube_size

__all__ = [
    "AveragePool",
    "Ball",
    "DataControlledField",
    "DecayReport",
    "EarlyTermination",
    "GainSchedule",
    "Hypercube",
    "LyapunovCertificate",
    "LyapunovMonteCarlo",
    "LyapunovPathIntegral",
    "Nero",
    "PiecewiseConvField",
    "RateSchedule",
    "Residual",
    "Sampler",
    "Stitch",
    "SupervisedPotential",
    "Trajectory",
    "ball_radius",
    "continuous_net",
    "decay_share",
    "early_termination",
    "hypercube_size",
    "least_gain",
    "lyanet",
    "lyapunov_certificate",
    "neural_ode",
    "resnet18",
    "stabnet_register",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
