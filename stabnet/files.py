"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import CheckpointError

__all__ = ["replacing", "write_text"]


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the target's place when the block is done.

    Args:
        target: the file to write; its folder is made.

    Raises:
        CheckpointError: if it cannot be written.
    """
    # A fixed name, since one process writes a run folder: what a kill left is written over.
    temporary = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
