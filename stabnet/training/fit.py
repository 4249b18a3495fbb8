"""Training: one ``fit`` for every model, objective and data set."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from accelerate import Accelerator
from torch import nn

from ..checks import modes_restored
from ..errors import InvalidOptionError
from ..files import write_text
from ..interfaces import Objective
from ..plots import save_figure, training_curves
from ..plugin import build
from ..renormalization import renormalize
from .accelerator import Precision, make_accelerator
from .description import describe_run, load_splits
from .engine import Engine
from .evaluation import evaluate
from .events import write_events
from .ledger import Ledger
from .monitoring import Monitor, MonitorLog
from .optimization import Schedule
from .options import Options
from .progress import Bar, progress_bar, summary
from .protocol import Batches, TrainingData, check_match
from .report import write_report
from .result import FitResult
from .run_folder import RunFolder
from .state import random_state_restored, read_state, write_state
from .step_size import step_size_sensitivity

__all__ = ["fit"]


def fit(
    model: nn.Module,
    data: TrainingData,
    *,
    objective: str | Mapping[str, Any] | Objective = "cross_entropy",
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    optimizer: str | Mapping[str, Any] = "adam",
    schedule: Schedule = "cosine",
    gradient_clip: float | None = None,
    run_dir: str | os.PathLike[str],
    seed: int = 0,
    device: str | torch.device | None = None,
    mixed_precision: Precision = "no",
    resume: bool = False,
    time_limit: float | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    monitor: Monitor | None = None,
    monitor_every: int | None = None,
) -> FitResult:
    """Train a model, keep its best validation epoch, and leave an honest record of it.

    After each epoch the model is validated, and a checkpoint is written from which a killed run
    resumes: on the CPU to the bit-identical result. At the end the model holds the weights of the
    best validation epoch, re-normalized (:func:`stabnet.renormalize`), is evaluated on the test set
    once (the first 2000 samples again at a tenth of the steps, if it has fixed-step integrators),
    and is on the training's device; modes of modules and states of global random generators are as
    they were before.

    Args:
        model: the model, usually a :class:`stabnet.StabilityModel`.
        data: a split data set, see :func:`stabnet.data.split`.
        objective: a name, a dict of a name and options, or an objective.
        epochs: passes over the training set.
        batch_size: samples per batch of each process.
        learning_rate: the highest learning rate.
        optimizer: ``"adam"`` with β = (0.9, 0.999), ``"adamw"``, ``"sgd"``, or a registered
            optimizer; a name, or a dict of a name and options.
        schedule: ``"cosine"`` anneals the learning rate to zero over all steps of all epochs;
            ``"constant"`` leaves it.
        gradient_clip: greatest norm of the gradient of all parameters; ``None`` for no limit.
        run_dir: folder for the record; new or empty, unless ``resume``.
        seed: of the order of the data and of all random draws during training, not of the model's
            initial weights, which are already drawn.
        device: where to train; ``None`` for the launcher's choice, or the best device there is.
        mixed_precision: precision of autocast.
        resume: continue the run in ``run_dir`` after its last complete epoch; start it if there
            is none. Its options must be the same, ``device``, ``time_limit``, ``progress``,
            ``tensorboard``, ``monitor`` and ``monitor_every`` excepted.
        time_limit: seconds after which this call stops training, at a step. The epoch under way is
            then validated and counts for the best weights, and a resume repeats it. At least one
            step is done; the closing validation and test come on top.
        progress: whether to show a progress bar and a line per epoch (on the standard error).
        tensorboard: whether to write event files too.
        monitor: called with the model before the first step, then regularly, and after the last;
            returns a dict of values for JSON. What it returned is in ``FitResult.monitored`` and in
            ``monitor.jsonl``. The model is in eval mode; training goes on as if the monitor had
            not been called, unless it changes weights or buffers. With several processes all call
            it, and the main one's values are written. See :mod:`stabnet.monitors`.
        monitor_every: optimizer steps between its calls, counted over all epochs; ``None`` for
            once an epoch.

    Returns:
        The trained model, its history and metrics, and where the record is.

    Raises:
        InvalidOptionError: for options out of range, a model, an objective and data that do not
            match, a ``run_dir`` that cannot be used, or a monitor that returns what is no dict of
            values for JSON.
        CheckpointError: if a checkpoint cannot be read or written.
        NonFiniteLossError: if the loss becomes NaN or infinite. The checkpoint of the last
            complete epoch is kept.

    References:
        The defaults are the training of [LyaDEQ]: Adam, cosine annealing from 1e-3.
    """
    started = time.monotonic()
    if time_limit is not None and not time_limit > 0:
        raise InvalidOptionError(f"time_limit={time_limit!r} must be a positive number of seconds")
    options = Options(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=schedule,
        gradient_clip=gradient_clip,
        seed=seed,
        mixed_precision=mixed_precision,
    )
    module: Objective = build(objective, kind="objective")
    check_match(model, module, data)
    accelerator = make_accelerator(device, mixed_precision)
    log = MonitorLog(monitor, monitor_every, model, accelerator.device)
    with random_state_restored(accelerator.device), modes_restored(model, module):
        loaders = load_splits(data, batch_size, model)
        config = describe_run(model, module, data, loaders, options, accelerator)
        folder = RunFolder(Path(run_dir))
        resuming = folder.check(config, resume)
        accelerator.wait_for_everyone()
        deadline = None if time_limit is None else started + time_limit
        engine = Engine(model, module, loaders["train"], options, accelerator, deadline)
        with progress_bar(progress and accelerator.is_main_process, epochs) as bar:
            training = _Training(
                model, module, loaders, config, folder, accelerator, engine, bar, tensorboard, log
            )
            training.begin(resuming)
            training.run(epochs)
            return training.finish(epochs)


@final
@dataclass
class _Training:
    """One call of :func:`fit`, all its options being in order."""

    model: nn.Module
    objective: Objective
    loaders: Mapping[str, Batches]
    config: dict[str, Any]
    folder: RunFolder
    accelerator: Accelerator
    engine: Engine
    bar: Bar
    tensorboard: bool
    monitor: MonitorLog

    def __post_init__(self) -> None:
        by_task: Literal["accuracy", "loss"] = (
            "accuracy" if self.objective.task == "classification" else "loss"
        )
        self.ledger = Ledger(self.objective.metric or by_task)

    def begin(self, resuming: bool) -> None:
        """Load the checkpoint, or write the first one."""
        if resuming:
            state = read_state(self.folder.checkpoint)
            self.engine.load_state(state["engine"])
            self.ledger.load_state(state["ledger"])
            # What was recorded after that checkpoint will be recorded again.
            self.monitor.records = list(state.get("monitored", ()))
            self.bar.say(f"resuming after epoch {self.ledger.epochs}")
        else:
            # First of all, so that a monitor that fails leaves the folder free for another try.
            self.monitor.record(0)
            if self.accelerator.is_main_process:
                self.folder.write_config(self.config)
            self._checkpoint()
        if self.accelerator.is_main_process:
            self.folder.write_monitored(self.monitor.records)

    def run(self, epochs: int) -> None:
        """Train until the last epoch or the deadline, whichever comes first."""
        steps = self.engine.steps

        def after_step(step: int) -> None:
            if self.monitor.due(step, steps, epochs * steps):
                self._record(step)

        for epoch in range(self.ledger.epochs + 1, epochs + 1):
            started = time.monotonic()
            train, done = self.engine.run_epoch(epoch, self.bar, after_step)
            complete = done == steps
            validation = self._evaluate("validation")
            record: dict[str, float] = {
                "epoch": epoch,
                "complete": complete,
                "learning_rate": self.engine.learning_rate(epoch),
                **{f"train_{n}": v for n, v in train.items()},
                **{f"validation_{n}": v for n, v in validation.items()},
                "seconds": time.monotonic() - started,
            }
            best = self.ledger.add(record, self.model)
            if complete:
                self._checkpoint()
            self._publish(record, best)
            if not complete or self.engine.late:
                # Not part of the checkpoint: a resume does not stop here.
                self._record((epoch - 1) * steps + done)
                break

    def finish(self, epochs: int) -> FitResult:
        """Restore the best weights, test them, and write the record."""
        self.ledger.restore_best(self.model)
        renormalize(self.model)
        test = self._evaluate("test")
        step_size = step_size_sensitivity(
            self.model, self.loaders["test"], accelerator=self.accelerator
        )
        result = FitResult(
            model=self.model,
            history=tuple(self.ledger.history),
            monitored=tuple(self.monitor.records),
            best_epoch=self.ledger.best_epoch,
            metric=self.ledger.metric,
            best_validation=self.ledger.best_value,
            test=test,
            step_size=step_size,
            seconds=self.ledger.seconds,
            complete=self.ledger.epochs == epochs,
            run_dir=self.folder.path,
            weights=self.folder.weights,
            checkpoint=self.folder.checkpoint,
            report=self.folder.report,
        )
        if self.accelerator.is_main_process:
            self.folder.write_metrics(self.ledger.history)
            described = self.folder.write_weights(self.model)
            save_figure(training_curves(self.ledger.history), self.folder.curves)
            write_text(self.folder.report, write_report(result, self.config, described))
        self.accelerator.wait_for_everyone()
        self.bar.say(f"test: {summary(test)} · report in {self.folder.report}")
        return result

    def _evaluate(self, split: str) -> dict[str, float]:
        return evaluate(
            self.model,
            self.loaders[split],
            self.objective,
            accelerator=self.accelerator,
            name=f"{split} set",
        )

    def _checkpoint(self) -> None:
        state = {
            "engine": self.engine.state(),
            "ledger": self.ledger.state(),
            "monitored": self.monitor.records,
        }
        if self.accelerator.is_main_process:
            write_state(self.folder.checkpoint, state)
        self.accelerator.wait_for_everyone()

    def _record(self, step: int) -> None:
        if self.monitor.record(step) and self.accelerator.is_main_process:
            self.folder.add_monitored(self.monitor.records[-1])

    def _publish(self, record: Mapping[str, float], best: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.write_metrics(self.ledger.history)
        if best:
            self.folder.write_weights(self.model)
        if self.tensorboard:
            write_events(self.folder.tensorboard, record)
        self.bar.say(
            f"epoch {record['epoch']}: {summary(record, 'train_')}"
            f" | validation {summary(record, 'validation_')}"
        )
