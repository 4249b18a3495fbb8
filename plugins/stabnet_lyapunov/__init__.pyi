import stabnet

__all__ = ["stabnet_register"]

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
