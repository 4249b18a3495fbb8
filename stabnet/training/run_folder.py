"""The run folder: where its files are, and whether a run may use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint import save
from ..checks import modes_restored
from ..errors import CheckpointError, InvalidOptionError, UndescribedPartError
from ..files import replacing, write_text

__all__ = ["RunFolder"]

_NOT_COMPARED = ("environment",)


@final
@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The model's description and every option."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def monitored(self) -> Path:
        """One line per call of the monitor."""
        return self.path / "monitor.jsonl"

    @property
    def weights(self) -> Path:
        """The best weights."""
        return self.path / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """What a resume continues from."""
        return self.path / "checkpoint" / "state.pt"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.md"

    @property
    def curves(self) -> Path:
        """The training curves."""
        return self.path / "plots" / "training.png"

    @property
    def tensorboard(self) -> Path:
        """The event files."""
        return self.path / "tensorboard"

    def check(self, config: Mapping[str, Any], resume: bool) -> bool:
        """Check that a run with this configuration may use the folder.

        Args:
            config: the configuration.
            resume: whether a run in the folder is to be continued.

        Returns:
            Whether there is a checkpoint to continue from.

        Raises:
            InvalidOptionError: if the folder is in use and ``resume`` is false, is no run folder,
                or its run has other options; lists the differences.
            CheckpointError: if its configuration is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InvalidOptionError(f"run_dir={str(self.path)!r} is a file; give a folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return False
        if not resume:
            raise InvalidOptionError(
                f"run_dir={str(self.path)!r} is not empty; give another folder, or resume=True to "
                "continue the run that is in it"
            )
        if not self.config.is_file():
            # A kill before the first file was in place leaves only the temporary one.
            if all(p.name.endswith(".partial") for p in self.path.iterdir()):
                return False
            raise InvalidOptionError(
                f"there is no run to resume in {str(self.path)!r}: it has files, but no "
                "config.json; give the folder of a run, or an empty one"
            )
        try:
            before = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.config} cannot be read: {error}") from error
        if not isinstance(before, dict):
            raise CheckpointError(
                f"{self.config} describes no run; it is damaged or was written by another program. "
                "Start afresh in an empty run_dir"
            )
        differences = list(_differences(_compared(before), _compared(config)))
        if differences:
            raise InvalidOptionError(
                f"the run in {str(self.path)!r} has other options, so it cannot be resumed: "
                f"{'; '.join(differences)}. Resume with the options of the run, or give another "
                "folder"
            )
        return self.checkpoint.is_file()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration."""
        write_text(self.config, json.dumps(config, indent=2) + "\n")

    def write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write the metrics, one line per epoch; ``null`` for what is not a finite number."""
        _write_lines(self.metrics, history)

    def write_monitored(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write what the monitor returned, one line per call; ``null`` as in the metrics.

        There is no file without a record, also where a run that was killed left one.
        """
        if records:
            _write_lines(self.monitored, records)
        else:
            self.monitored.unlink(missing_ok=True)

    def add_monitored(self, record: Mapping[str, Any]) -> None:
        """Add a line to what was written of the monitor; all of it again would take too long.

        Raises:
            CheckpointError: if it cannot be written.
        """
        try:
            with self.monitored.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise CheckpointError(f"cannot write {self.monitored}: {error}") from error

    def write_weights(self, model: nn.Module) -> bool:
        """Write the weights, so that :func:`stabnet.load` rebuilds the model, in eval mode.

        Returns:
            Whether it can; if not, the file is a bare state dict.
        """
        with modes_restored(model):
            model.eval()
            try:
                save(model, self.weights)
            except UndescribedPartError:
                # Copies: tensors that share a storage, or are part of one, are refused.
                tensors = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
                with replacing(self.weights) as temporary:
                    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, temporary)
                return False
            return True


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record)) + "\n"


def _finite(value: Any) -> Any:
    """Return plain data with ``None`` for numbers that are not finite, of which JSON has none."""
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compared(config: Any) -> Any:
    """Return what must agree for a resume: all but versions and machine, as JSON keeps it."""
    plain = json.loads(json.dumps(config))
    return _without_providers({k: v for k, v in plain.items() if k not in _NOT_COMPARED})


def _without_providers(config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _without_providers(v) for k, v in config.items() if k != "providers"}
    return config


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in dict.fromkeys([*before, *now])
            for difference in _differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if before == now else [f"{path} was {before!r} and is now {now!r}"]
