import stabnet

from .head import OrthogonalHead as OrthogonalHead

__all__ = ["OrthogonalHead"]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
