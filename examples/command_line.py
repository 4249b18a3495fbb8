"""The command line that results name, so that whoever reads them can repeat the run."""

from __future__ import annotations

import argparse
from pathlib import Path


def command_of(script: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Return the command line, with the options that are not at their defaults, but for `--out`."""
    words = ["python", f"examples/{Path(script).name}"]
    for name, value in vars(args).items():
        if name != "out" and value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)
