"""What training needs of data, and the checks that model, objective and data belong together."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..equilibrium import Equilibrium
from ..errors import InvalidOptionError
from ..flow import Flow
from ..interfaces import Objective

__all__ = ["DatasetInfo", "TrainingData", "check_match"]

Batches = DataLoader[tuple[Tensor, Tensor]]


class DatasetInfo(Protocol):
    """What is known of a data set.

    Attributes:
        name: its name.
        task: ``"classification"`` or ``"regression"``.
        in_shape: shape of one input, without the batch.
        num_outputs: number of classes or values.
        augmentation: what is done to the training inputs, ``"none"`` for nothing.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - described above
    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def in_shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def num_outputs(self) -> int: ...  # noqa: D102
    @property
    def augmentation(self) -> str: ...  # noqa: D102


class TrainingData(Protocol):
    """A data set split for training, such as :func:`stabnet.data.split` returns.

    Attributes:
        dataset: what is known of the data set.
    """

    @property
    def dataset(self) -> DatasetInfo: ...  # noqa: D102

    def loader(
        self,
        split: Literal["train", "validation", "test"],
        *,
        batch_size: int,
        shuffle: bool,
        augment: bool,
    ) -> Any:
        """Return a ``DataLoader`` of ``(x, y)`` batches.

        Its order comes from its ``generator``, which training reseeds before every epoch; what
        else is random in it, from that or from the global generators.
        """
        ...


_DYNAMICS = {"flow": Flow, "equilibrium": Equilibrium}


def check_match(model: nn.Module, objective: Objective, data: TrainingData) -> None:
    """Refuse a model, an objective and data that do not belong together.

    Args:
        model: its ``dynamics``, ``in_shape`` and ``num_outputs`` are checked where it has them.
        objective: says which dynamics and task it is for.
        data: its ``dataset`` says what the samples are.

    Raises:
        InvalidOptionError: says which two do not match, and how; or that the data are not split.
    """
    if not hasattr(data, "dataset") or not hasattr(data, "loader"):
        raise InvalidOptionError(
            f"data is a {type(data).__name__}, which has no training, validation and test set; "
            "give stabnet.data.split(dataset), of a data set that was loaded or made by "
            "stabnet.data.from_tensors"
        )
    dataset = data.dataset
    if objective.task != dataset.task:
        raise InvalidOptionError(
            f"the objective {type(objective).__name__} is for {objective.task}, but "
            f"{dataset.name!r} is data for {dataset.task}; choose an objective for {dataset.task}"
        )
    if objective.dynamics != "any":
        needed = _DYNAMICS[objective.dynamics]
        dynamics = getattr(model, "dynamics", None)
        # A stack will do if one of its stages is what the objective speaks of.
        found = isinstance(dynamics, nn.Module) and any(
            isinstance(m, needed) for m in dynamics.modules()
        )
        if not found:
            raise InvalidOptionError(
                f"the objective {type(objective).__name__} needs a model whose dynamics is a "
                f"{needed.__name__}; this model's is {type(dynamics).__name__}"
            )
    for attribute in ("in_shape", "num_outputs"):
        of_model = getattr(model, attribute, None)
        of_data = getattr(dataset, attribute)
        if of_model is None:
            continue
        if attribute == "in_shape":
            of_model, of_data = tuple(of_model), tuple(of_data)
        if of_model != of_data:
            raise InvalidOptionError(
                f"the model has {attribute}={of_model}, but {dataset.name!r} has {of_data}; "
                f"build the model with {attribute}={of_data}"
            )
