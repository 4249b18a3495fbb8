import stabnet

from .apgd import APGD as APGD
from .l2 import PGDL2 as PGDL2
from .linf import IFGSM as IFGSM
from .linf import PGD as PGD
from .steps import paper_steps as paper_steps

__all__ = ["APGD", "IFGSM", "PGD", "PGDL2", "paper_steps", "stabnet_register"]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
