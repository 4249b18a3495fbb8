import stabnet

from .cell import DEQCell as DEQCell
from .deq import deq as deq
from .solvers.anderson import Anderson as Anderson
from .solvers.picard import Picard as Picard

__all__ = ["Anderson", "DEQCell", "Picard", "deq"]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
