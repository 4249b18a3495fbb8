import stabnet

__all__: list[str] = []

def stabnet_register(registrar: stabnet.Registrar) -> None: ...
