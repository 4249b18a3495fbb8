"""Writing reports: as a Markdown table, and as a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text

__all__ = ["markdown_table", "write_plain"]


def markdown_table(head: Sequence[object], *rows: Sequence[object]) -> list[str]:
    """Return the lines of a table, each cell as ``str`` writes it."""
    lines = (head, ("---",) * len(head), *rows)
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def write_plain(path: str | os.PathLike[str], data: Mapping[str, Any]) -> Path:
    """Write plain data as JSON; the file appears whole or not at all.

    Args:
        path: where; missing folders are made.
        data: what to write; it holds no NaN and no infinity.

    Returns:
        The path.
    """
    target = Path(path)
    write_text(target, f"{json.dumps(data, indent=2, allow_nan=False)}\n")
    return target
