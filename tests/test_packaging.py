"""What is shipped: one complete wheel, the same from a checkout and from an sdist."""

from __future__ import annotations

import configparser
import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import stabnet

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(p.parent.name for p in (ROOT / "plugins").glob("*/__init__.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build(what: str, source: Path, target: Path) -> Path:
    """Build a wheel or a source distribution without network, and return it."""
    pytest.importorskip("build", reason="building needs the package 'build'")
    pytest.importorskip("hatchling", reason="building without network needs hatchling installed")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        f"--{what}",
        "--outdir",
        str(target),
    ]
    done = subprocess.run(
        [*command, str(source)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.iterdir()
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> dict[str, bytes]:
    """The files of the wheel built from the checkout."""
    return contents(build("wheel", ROOT, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    sdist = build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


def test_wheel_from_the_source_distribution_is_the_wheel_from_the_checkout(
    wheel, unpacked, tmp_path
):
    again = contents(build("wheel", unpacked, tmp_path))
    assert sorted(again) == sorted(wheel)
    assert [name for name in wheel if again[name] != wheel[name]] == []


def test_wheel_has_every_source_file_and_nothing_else(wheel):
    sources = {
        path.relative_to(base).as_posix()
        for base, folder in ((ROOT, ROOT / "stabnet"), (ROOT / "plugins", ROOT / "plugins"))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel if ".dist-info/" not in name}
    assert shipped == sources


def test_wheel_has_every_package_typed_and_with_its_stub(wheel):
    assert len(PLUGINS) >= 5
    for package in ("stabnet", *PLUGINS):
        assert f"{package}/__init__.py" in wheel
        assert f"{package}/py.typed" in wheel
    lazy = [p for p in PLUGINS if b"def __getattr__" in wheel[f"{p}/__init__.py"]]
    assert [p for p in lazy if f"{p}/__init__.pyi" not in wheel] == []


def test_wheel_announces_every_plugin_and_the_command(wheel):
    (name,) = (n for n in wheel if n.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel[name].decode())
    assert sorted(points["stabnet"].values()) == PLUGINS
    assert dict(points["console_scripts"]) == {"stabnet": "stabnet.cli:main"}


def test_wheel_has_version_license_and_readme(wheel):
    (name,) = (n for n in wheel if n.endswith(".dist-info/METADATA"))
    fields = email.message_from_bytes(wheel[name])
    assert fields["Version"] == PROJECT["version"]
    assert fields["License-Expression"] == "Apache-2.0"
    assert "Stability-constrained" in str(fields.get_payload())
    assert any(n.endswith("/LICENSE") for n in wheel)


def test_source_distribution_has_what_tests_and_readers_need(unpacked):
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    assert (unpacked / "tests" / Path(__file__).name).is_file()


# Without building.


def test_every_plugin_package_is_listed_where_it_must_be():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages = hatch["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(["stabnet", *(f"plugins/{p}" for p in PLUGINS)])
    assert sorted(PROJECT["entry-points"]["stabnet"].values()) == PLUGINS


def test_version_is_the_same_everywhere():
    assert stabnet.__version__ == metadata.version("stabnet") == PROJECT["version"]
    (changelog,) = re.findall(
        rf"^## {re.escape(PROJECT['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert changelog


def test_citation_file_is_complete_and_current():
    yaml = pytest.importorskip("yaml", reason="reading CITATION.cff needs PyYAML")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["authors"]
    assert all(a.keys() == {"name"} for a in citation["authors"])
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_installed_distribution_announces_every_plugin():
    installed = metadata.entry_points(group="stabnet")
    ours = sorted(p.value for p in installed if p.dist and p.dist.name == "stabnet")
    assert ours == PLUGINS
