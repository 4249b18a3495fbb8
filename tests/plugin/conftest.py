"""Fake distributions, and a stabnet without any plugin."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stabnet.plugin import Plugins, Registry


class FakeSite:
    """A folder of fake distributions, each with one plugin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order: list[str] = []

    def add(
        self,
        distribution: str,
        source: str | None,
        *,
        value: str | None = None,
        metadata: bool = True,
        extra: str = "",
    ) -> None:
        """Install a distribution whose plugin module (if any) has this source."""
        module = distribution.replace("-", "_")
        if source is not None:
            (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        folder = self.path / f"{module}-1.0.dist-info"
        folder.mkdir()
        if metadata:
            (folder / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
            )
        points = f"[stabnet]\nmain = {value or module}\n{extra}"
        (folder / "entry_points.txt").write_text(points)
        self.order.append(distribution)

    def points(self) -> list[importlib.metadata.EntryPoint]:
        """Return the entry points in the order of installation."""
        found = {
            d.name or "": list(d.entry_points)
            for d in importlib.metadata.distributions(path=[str(self.path)])
        }
        return [p for name in self.order for p in found[name if name in found else ""]]

    def plugins(self, **environment: str) -> Plugins:
        """Return the plugins of this folder alone."""
        return Plugins(self.points(), environment)

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run code in an interpreter where these distributions are installed beside stabnet."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("STABNET_")}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**inherited, "PYTHONPATH": str(self.path), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """A folder of fake distributions on the import path."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield FakeSite(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The process's own plugins, emptied for one test: names come from ``stabnet.register``."""
    house = importlib.import_module("stabnet.plugin.build")._PLUGINS
    for attribute, value in {
        "_points": (),
        "_environment": {},
        "_registry": Registry(),
        "_reports": [],
        "_loaded": False,
    }.items():
        monkeypatch.setattr(house, attribute, value)
    return house
