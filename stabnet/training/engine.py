"""The engine: one epoch of optimizer steps, and the state that continues them exactly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn

from ..errors import InvalidOptionError
from ..interfaces import Objective
from .metrics import Means
from .optimization import make_optimizer, rate, set_learning_rate
from .options import Options
from .progress import Bar
from .protocol import Batches
from .state import (
    get_random_state,
    load_module_state,
    module_state,
    seed_everything,
    set_random_state,
)

__all__ = ["Engine"]

_SYNC_EVERY = 10
"""Steps between two host synchronizations."""


@final
class _Step(nn.Module):
    """Model and objective as one module, so that engines see the use of every parameter."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = self.objective(self.model, x, y)
        return loss, logs


@final
class Engine:
    """Runs epochs of optimizer steps.

    Args:
        model: the model; it moves to the accelerator's device.
        objective: what is minimized.
        loader: training batches; its generator is reseeded before every epoch.
        options: the options.
        accelerator: devices, processes and precision.
        deadline: value of ``time.monotonic()`` after which training stops, at a step.

    Raises:
        InvalidOptionError: if there is nothing to train or nothing to train on.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        loader: Batches,
        options: Options,
        accelerator: Accelerator,
        deadline: float | None,
    ) -> None:
        seed_everything(options.seed + accelerator.process_index)
        self._module = _Step(model, objective)
        self._options = options
        self._accelerator = accelerator
        self._deadline = deadline
        self._generator = loader.generator
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        if not self._parameters:
            raise InvalidOptionError(
                "the model has no parameter to train; all are frozen, or there are none"
            )
        optimizer = make_optimizer(options.optimizer, self._parameters, options.learning_rate)
        self._step, self._optimizer, self._loader = accelerator.prepare(
            self._module, optimizer, loader
        )
        self._steps = len(self._loader)
        if self._steps == 0:
            raise InvalidOptionError("the training set has no batch; give at least one sample")

    @property
    def steps(self) -> int:
        """How many optimizer steps an epoch has."""
        return self._steps

    @property
    def late(self) -> bool:
        """Whether the deadline has passed, for all processes alike."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._accelerator.num_processes == 1 or self._deadline is None:
            return late
        if late:
            self._accelerator.set_trigger()
        return bool(self._accelerator.check_trigger())

    def learning_rate(self, epoch: int, index: int = 0) -> float:
        """Return the learning rate of a step (from 0) of an epoch (from 1)."""
        step, steps = (epoch - 1) * self._steps + index, self._options.epochs * self._steps
        return self._options.learning_rate * rate(self._options.schedule, step, steps)

    def run_epoch(
        self, epoch: int, bar: Bar, after_step: Callable[[int], None]
    ) -> tuple[dict[str, float], int]:
        """Train for one epoch, or until the deadline.

        Args:
            epoch: which, from 1.
            bar: where progress is shown.
            after_step: called after every step with how many were done in all epochs.

        Returns:
            The means over the samples seen, and how many steps of the epoch were done.

        Raises:
            NonFiniteLossError: if the loss became NaN or infinite; found at the next of the
                regular synchronizations, but named by its own step.
        """
        where = f"of epoch {epoch}"
        if self._generator is not None:
            self._generator.manual_seed(_order_seed(self._options.seed, epoch))
        means = Means(self._accelerator.device)
        self._step.train()
        bar.start_epoch(epoch, self._steps)
        done = 0
        for x, y in self._loader:
            set_learning_rate(self._optimizer, self.learning_rate(epoch, done))
            loss, logs = self._step(x, y)
            self._optimizer.zero_grad()
            self._accelerator.backward(loss)
            if self._options.gradient_clip is not None:
                self._accelerator.clip_grad_norm_(self._parameters, self._options.gradient_clip)
            self._optimizer.step()
            means.update(loss, logs, len(x))
            done += 1
            after_step((epoch - 1) * self._steps + done)
            regular = done % _SYNC_EVERY == 0
            if regular:
                bar.update(done, means.read(where))
            # Several processes must agree, which costs a synchronization.
            if (regular or self._accelerator.num_processes == 1) and self.late:
                break
        metrics = means.across(self._accelerator).read(where)
        if self._accelerator.num_processes > 1:
            # Each process has its own batch-norm statistics after the last step; the first's count.
            for buffer in self._module.buffers():
                buffer.copy_(broadcast(buffer.clone()))
        return metrics, done

    def state(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on; every process takes part."""
        scaler = self._accelerator.scaler
        return {
            "module": module_state(self._module),
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": gather_object([get_random_state(self._accelerator.device)]),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        Raises:
            CheckpointError: if it is the state of another model.
        """
        with torch.no_grad():
            load_module_state(self._module, state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        random = state["random"][self._accelerator.process_index]
        set_random_state(random, self._accelerator.device)


def _order_seed(seed: int, epoch: int) -> int:
    """Return the seed of the data's order in an epoch: well mixed, and the same everywhere."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
