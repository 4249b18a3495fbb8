import stabnet

from .fields.data_controlled import DataControlledField as DataControlledField
from .models.lyanet import lyanet as lyanet
from .models.lyanet import neural_ode as neural_ode
from .objectives.monte_carlo import LyapunovMonteCarlo as LyapunovMonteCarlo
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
    "Ball",
    "DataControlledField",
    "GainSchedule",
    "Hypercube",
    "LyapunovMonteCarlo",
    "RateSchedule",
    "Sampler",
    "SupervisedPotential",
    "Trajectory",
    "ball_radius",
    "hypercube_size",
    "lyanet",
    "neural_ode",
    "stabnet_register",
]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
