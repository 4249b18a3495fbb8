"""The benchmark that a file of tests is about."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Return the script as a module, imported from its file as nothing else may import it.

    It is that of the name of the tests: ``test_benchmarks_depth.py`` is about ``depth.py``.
    """
    name = request.path.stem.removeprefix("test_benchmarks_")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(FOLDER))  # a script finds what lies beside it
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the scripts do
    yield module
    torch.set_num_threads(threads)
    sys.path.remove(str(FOLDER))
    for other in set(sys.modules) - before:
        if Path(getattr(sys.modules[other], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[other]
