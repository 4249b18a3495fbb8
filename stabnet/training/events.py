"""Event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_events"]


def write_events(folder: Path, record: Mapping[str, float]) -> None:
    """Write what an epoch came to.

    Args:
        folder: where the event files are.
        record: the record of the epoch.
    """
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and seldom wanted

    epoch = int(record["epoch"])
    # Purging hides what a run that was killed or cut short wrote of this epoch.
    with SummaryWriter(str(folder), purge_step=epoch) as writer:
        for name, value in record.items():
            if name not in ("epoch", "complete"):
                group, _, metric = name.partition("_")
                writer.add_scalar(f"{group}/{metric}" if metric else name, value, epoch)
