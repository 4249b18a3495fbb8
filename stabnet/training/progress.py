"""The progress bar and what else is said while training runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "progress_bar", "summary"]

_SHOWN = ("loss", "accuracy", "nfe", "converged")


def summary(metrics: Mapping[str, float], prefix: str = "") -> str:
    """Return loss, accuracy, mean nfe and share of converged samples in one line.

    >>> summary({"loss": 0.5, "accuracy": 0.9, "nfe": 12.0})
    'loss 0.5000 · accuracy 90.00 % · nfe 12.0'
    """
    written = {
        "loss": lambda v: f"loss {v:.4f}",
        "accuracy": lambda v: f"accuracy {100 * v:.2f} %",
        "nfe": lambda v: f"nfe {v:.1f}",
        "converged": lambda v: f"converged {100 * v:.1f} %",
    }
    shown = [n for n in _SHOWN if prefix + n in metrics]
    return " · ".join(written[n](metrics[prefix + n]) for n in shown)


@final
class Bar:
    """A progress bar over the steps of all epochs, or nothing at all.

    Args:
        progress: rich's progress display, ``None`` for silence.
        epochs: number of epochs.
    """

    def __init__(self, progress: Progress | None, epochs: int) -> None:
        self._progress = progress
        self._epochs = epochs
        self._task = None if progress is None else progress.add_task("", total=None, metrics="")

    def start_epoch(self, epoch: int, steps: int) -> None:
        """Begin an epoch (from 1) of so many steps."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(
                self._task,
                total=steps,
                description=f"epoch {epoch}/{self._epochs}",
                metrics="",
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show how far the epoch is, and its means so far."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, metrics=summary(metrics))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(shown: bool, epochs: int) -> Iterator[Bar]:
    """Show a progress bar during the block.

    Args:
        shown: whether to show anything.
        epochs: number of epochs.
    """
    if not shown:
        yield Bar(None, epochs)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, epochs)
