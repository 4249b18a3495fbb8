"""Who may import whom: read off the source, so that no room needs to be importable for it.

==============  ==============================================================================
room            may import, besides itself and other people's packages
==============  ==============================================================================
errors          nothing
interfaces      errors
bounds          errors
plugin          errors, interfaces
files           errors
the assembly    errors, interfaces, bounds, plugin, files, the assembly
a service       all of these, the package itself, and the public names of other services
commands        errors, plugin, services and the package itself
cli             these, and commands
a plugin        the public names of stabnet, of its errors, interfaces, bounds and services
==============  ==============================================================================

Whoever imports from another room imports its public names (those in its ``__all__``).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "stabnet"
PLUGINS = ROOT / "plugins"

GROUND = {"errors", "values", "interfaces", "bounds"}
ASSEMBLY = {
    "checks",
    "files",
    "states",
    "flow",
    "equilibrium",
    "stack",
    "implicit",
    "truncated",
    "model",
    "checkpoint",
    "times",
    "renormalization",
}
SERVICES = {"data", "training", "monitors", "robustness", "certify", "plots", "testing"}
PACKAGE = "stabnet"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "values": {"errors"},
    "interfaces": {"errors"},
    "bounds": {"errors"},
    "plugin": {"errors", "interfaces"},
    "files": {"errors"},
    **dict.fromkeys(ASSEMBLY, GROUND | {"plugin", "files"} | ASSEMBLY),
    **dict.fromkeys(SERVICES, GROUND | {"plugin", "files", PACKAGE} | ASSEMBLY | SERVICES),
    "commands": {"errors", "plugin", PACKAGE} | SERVICES,
    "cli": {"errors", "plugin", "commands", PACKAGE} | SERVICES,
    "__init__": GROUND | {"plugin"} | ASSEMBLY | SERVICES,
}
"""The rooms of the core, and the rooms that each may import from."""

OPEN_TO_PLUGINS = GROUND | SERVICES | {PACKAGE}


class Import(NamedTuple):
    """One imported module, and the name taken from it (empty for the module itself)."""

    line: int
    module: str
    name: str


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Yield the absolute imports of a module, also those made by ``import_module("…")``."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, node.module or ""]).strip(".") if node.level else node.module
            yield from (Import(node.lineno, base or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield Import(node.lineno, str(node.args[0].value), "")
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(f"{PACKAGE}."):
            # `import stabnet` and then `stabnet.plugin.options`: an import by another road.
            base, _, name = ast.unparse(node).rpartition(".")
            if base in (PACKAGE, *(f"{PACKAGE}.{room}" for room in MAY_IMPORT)):
                yield Import(node.lineno, base, name)


@cache
def public(room: str) -> frozenset[str]:
    """Return the names in the ``__all__`` of a room, or of the package itself."""
    path = CORE if room == PACKAGE else CORE / room
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    raise AssertionError(f"{source.relative_to(ROOT)} has no __all__")


def where(found: Import) -> tuple[str, str, str]:
    """Return the room of stabnet that an import reaches, the path within it, and the name.

    ``from stabnet import data`` reaches the room ``data``.
    """
    parts = found.module.split(".")
    if len(parts) > 1:
        return parts[1], ".".join(parts[2:]), found.name
    if found.name in MAY_IMPORT:
        return found.name, "", ""
    return PACKAGE, "", found.name


def foreign(found: Import, allowed: set[str]) -> str | None:
    """Return what is wrong with an import from stabnet, given the rooms that are allowed."""
    room, inside, name = where(found)
    if room not in allowed:
        return f"may not import {room}"
    if inside:
        return f"reaches inside {room}: {found.module}"
    if name and (name == "*" or name not in public(room)):
        return f"imports {name}, which is not a public name of {room}"
    return None


def faults_of_core(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return the broken rules in one module of the core."""
    room = module.split(".")[1] if "." in module else "__init__"
    if room not in MAY_IMPORT:
        return [f"{room} is a new room; say in this test's table what it may import"]
    own = PACKAGE if room == "__init__" else room
    faults = []
    for found in imports(ast.parse(source), module, is_package):
        top = found.module.split(".")[0]
        fault = None
        if top.startswith("stabnet_") or top in ("plugins", "tests"):
            fault = f"the core imports {found.module}"
        elif top == PACKAGE and where(found)[0] != own:
            fault = foreign(found, MAY_IMPORT[room])
        if fault:
            faults.append(f"{module}:{found.line}: {room} {fault}")
    return faults


def faults_of_plugin(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return the broken rules in one module of a plugin."""
    plugin = module.split(".")[0]
    faults = []
    for found in imports(ast.parse(source), module, is_package):
        top = found.module.split(".")[0]
        fault = None
        if (top.startswith("stabnet_") and top != plugin) or top in ("plugins", "tests"):
            fault = f"imports {found.module}"
        elif top == PACKAGE:
            fault = foreign(found, OPEN_TO_PLUGINS)
        if fault:
            faults.append(f"{module}:{found.line}: {plugin} {fault}")
    return faults


def modules(folder: Path, base: Path) -> Iterator[tuple[Path, str, bool]]:
    """Yield every source file and stub under a folder, its module name, and if it is a package."""
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")]):
        parts = path.relative_to(base).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield path, ".".join(parts[:-1] if is_package else parts), is_package


CORE_MODULES = list(modules(CORE, ROOT))
PLUGIN_MODULES = list(modules(PLUGINS, PLUGINS))


@pytest.mark.parametrize(
    ("path", "module", "is_package"),
    CORE_MODULES,
    ids=[str(p.relative_to(ROOT)) for p, *_ in CORE_MODULES],
)
def test_core_imports_only_what_its_room_may(path, module, is_package):
    assert faults_of_core(path.read_text(), module, is_package) == []


@pytest.mark.parametrize(
    ("path", "module", "is_package"),
    PLUGIN_MODULES,
    ids=[str(p.relative_to(ROOT)) for p, *_ in PLUGIN_MODULES],
)
def test_plugin_imports_only_public_names(path, module, is_package):
    assert faults_of_plugin(path.read_text(), module, is_package) == []


def test_every_room_is_in_the_table():
    rooms = {p.stem for p in CORE.iterdir() if p.suffix in (".py", ".pyi")}
    rooms |= {p.name for p in CORE.iterdir() if p.is_dir() and list(p.rglob("*.py"))}
    assert rooms <= set(MAY_IMPORT)


def test_every_plugin_is_a_package_and_plugins_is_none():
    packages = [p for p in PLUGINS.iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert [p.name for p in packages if not p.name.startswith("stabnet_")] == []
    assert [p.name for p in packages if not (p / "__init__.py").exists()] == []
    assert not (PLUGINS / "__init__.py").exists()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("stabnet.interfaces.cell", "from ..plugin import build", "may not import plugin"),
        ("stabnet.errors", "from .interfaces import Cell", "may not import interfaces"),
        ("stabnet.plugin.build", "from ..model import StabilityModel", "may not import model"),
        ("stabnet.plugin.build", "import stabnet", "may not import stabnet"),
        ("stabnet.model", "from .data import split", "may not import data"),
        ("stabnet.model", "import stabnet_standard", "core imports stabnet_standard"),
        ("stabnet.model", "import plugins.stabnet_deq.cell", "core imports plugins.stabnet_deq"),
        ("stabnet.model", "def f():\n    from .plugin.options import resolve", "reaches inside"),
        ("stabnet.training.loop", "from ..data.splits import split", "reaches inside data"),
        ("stabnet.training.loop", "from ..interfaces import *", "not a public name"),
        ("stabnet.training.loop", "from ..interfaces import cell", "not a public name"),
        ("stabnet.training.loop", "import stabnet.data.splits", "reaches inside data"),
        ("stabnet.training.loop", "import_module('stabnet.data.splits')", "reaches inside data"),
        ("stabnet.training.loop", "from .. import cli", "may not import cli"),
        ("stabnet.training", "from ..cli import main", "may not import cli"),
        ("stabnet.cli", "from .model import StabilityModel", "may not import model"),
        ("stabnet.cli", "from .plugin.loader import discover", "reaches inside plugin"),
        ("stabnet", "from .cli import main", "may not import cli"),
        ("stabnet.attic.old", "", "attic is a new room"),
    ],
)
def test_rules_of_the_core_catch(module, source, fault):
    is_package = module in ("stabnet", "stabnet.training")
    (found,) = faults_of_core(source, module, is_package)
    assert fault in found


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from stabnet_deq import cell", "imports stabnet_deq"),
        ("import plugins.stabnet_deq", "imports plugins"),
        ("from stabnet.model import StabilityModel", "may not import model"),
        ("from stabnet.plugin import build", "may not import plugin"),
        ("from stabnet.interfaces.cell import Cell", "reaches inside interfaces"),
        ("from stabnet import _LAZY", "not a public name"),
        ("import stabnet\nstabnet.plugin.build", "may not import plugin"),
        ("import stabnet\nstabnet.interfaces._private", "not a public name"),
    ],
)
def test_rules_of_the_plugins_catch(source, fault):
    found = faults_of_plugin(source, "stabnet_mine.part")
    assert any(fault in f for f in found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("stabnet.model", "from .errors import StabnetError\nfrom .interfaces import Cell"),
        ("stabnet.model", "import torch\nfrom .flow import Flow"),
        ("stabnet.interfaces.cell", "from .solution import State"),
        ("stabnet.training.loop", "from .. import build, data\nfrom ..errors import PluginError"),
    ],
)
def test_rules_of_the_core_allow(module, source):
    assert faults_of_core(source, module) == []


def test_rules_of_the_plugins_allow_public_names_and_their_own():
    source = (
        "import stabnet\nfrom stabnet import build\nfrom stabnet.interfaces import Cell\n"
        "from .other import thing\nfrom stabnet_mine.more import x\nstabnet.interfaces.Cell"
    )
    assert faults_of_plugin(source, "stabnet_mine.part") == []


# What is imported when nothing needs torch yet.


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SLOW = ("torch", "torchvision", "sklearn", "matplotlib", "scipy", "jaxtyping", "accelerate")
IMPORTED = f"import sys; print('slow:', *[m for m in {SLOW} if m in sys.modules])"


@pytest.mark.parametrize(
    "code",
    [
        "import stabnet",
        "import stabnet; stabnet.entries()",
        "import stabnet; dir(stabnet); stabnet.plugins()",
        "import stabnet.cli",
        *(f"import {p.name}; dir({p.name})" for p in sorted(PLUGINS.glob("stabnet_*"))),
    ],
)
def test_nothing_slow_is_imported_by(code):
    assert python(f"{code}\n{IMPORTED}").splitlines()[-1] == "slow:"


def test_listing_on_the_command_line_imports_nothing_slow():
    command = "from stabnet.cli import main\nmain(['list'])"
    code = f"import atexit\n@atexit.register\ndef report():\n    {IMPORTED}\n{command}"
    assert python(code).splitlines()[-1] == "slow:"
