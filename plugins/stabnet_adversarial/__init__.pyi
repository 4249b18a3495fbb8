import stabnet

from .linf import IFGSM as IFGSM
from .linf import PGD as PGD
from .steps import paper_steps as paper_steps

__all__ = ["IFGSM", "PGD", "paper_steps", "stabnet_register"]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
