"""What benchmarks measure with: peak memory of a call, and times of several in turn."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Run = Callable[[], Any]


@final
class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages made within the block that live at one time.

    Attributes:
        peak: their greatest sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what it made."""
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and _key(x) not in self._known | given:
                self._note(x.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the peak memory of one call, less what lives before."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with LiveStorages() as storages:
        run()
    return storages.peak


def seconds(run: Run, device: torch.device) -> float:
    """Return how long one call takes."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    run()
    return clock() - started


def medians(runs: dict[str, Run], device: torch.device, rounds: int) -> dict[str, float]:
    """Return median times, all runs in turn.

    A run of less than a second is called once untimed before each time, since whatever ran before
    has emptied the caches; a longer one is timed in the first three rounds only.
    """
    rough = {name: seconds(run, device) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name, run in runs.items():
            if rough[name] < 1:
                run()
            elif i > 2:
                continue
            times[name].append(seconds(run, device))
    return {name: statistics.median(t) for name, t in times.items()}
