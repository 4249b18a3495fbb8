"""What the commands ``train``, ``attack`` and ``certify`` do: everything by name, in one call."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stabnet

from .errors import InvalidOptionError, MissingDataError

if TYPE_CHECKING:
    from .certify import CertificationReport, RadiusReport
    from .data import Dataset
    from .robustness import RobustnessReport
    from .training import FitResult

__all__ = ["attack_file", "certify_file", "train_by_name"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Files of a run folder."""


def train_by_name(
    model: str,
    *,
    data: str = "digits",
    root: Path | None = None,
    download: bool = False,
    options: Mapping[str, Any] | None = None,
    run_dir: Path | None = None,
    seed: int = 0,
    **training: Any,
) -> FitResult:
    """Load a data set, build a model for it, and train it; everything by name.

    Args:
        model: a registered model.
        data: a registered data set.
        root: where data sets are kept; see :func:`stabnet.data.data_root`.
        download: whether to download a data set that is missing.
        options: options of the model.
        run_dir: the run folder; by default a new one under ``runs``.
        seed: of the split, of the initial weights and of the training.
        training: further arguments of :func:`stabnet.training.fit`.

    Returns:
        The outcome of :func:`stabnet.training.fit`.

    Raises:
        StabnetError: for a name, an option or a value that does not fit, or missing data.
    """
    known = stabnet.info(model, kind="model").signature.parameters
    dataset = stabnet.data.load(data, root=root, download=download)
    of_data = ("in_shape", "num_outputs", "mean", "std")
    given = {name: getattr(dataset, name) for name in of_data if name in known}
    import torch

    with stabnet.robustness.seeded(seed, torch.device("cpu")):
        network = stabnet.build(model, **{**given, **(options or {})})
    if run_dir is None:
        run_dir = Path("runs") / f"{data}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    splits = stabnet.data.split(dataset, seed=seed)
    return stabnet.training.fit(network, splits, run_dir=run_dir, seed=seed, **training)


def attack_file(
    source: Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    download: bool = False,
    images: int | None = None,
    protocol: str = "paper",
    attack: str | Mapping[str, Any] | None = None,
    batch_size: int = 128,
    device: str | None = None,
    seed: int = 0,
) -> RobustnessReport:
    """Attack a trained model on the test set.

    Args:
        source: a run folder, or a file that :func:`stabnet.save` wrote.
        data: a registered data set; by default the one the run was trained on.
        root: where data sets are kept; see :func:`stabnet.data.data_root`.
        download: whether to download a data set that is missing.
        images: how many test images; all of them if ``None``.
        protocol: ``"paper"``, see :func:`stabnet.robustness.paper_protocol`.
        attack: one registered attack, by name or as a dict of name and options, in place of the
            protocol.
        batch_size: images per batch.
        device: where the model runs; the CPU if ``None``.
        seed: of the attacks' random starts.

    Returns:
        The report, which a run folder also keeps as ``robustness.json``.

    Raises:
        StabnetError: for a file, a name or a value that does not fit, or missing data.
    """
    if protocol != "paper":
        raise InvalidOptionError(f"there is no protocol {protocol!r}; there is 'paper'")
    if images is not None and images < 1:
        raise InvalidOptionError(f"images={images}; attack at least one")
    model, dataset = _model_and_data(source, data, root, download, device)
    batches = stabnet.data.loader(dataset.test, batch_size=batch_size)
    if attack is None:
        report = stabnet.robustness.paper_protocol(model, batches, max_images=images, seed=seed)
    else:
        report = stabnet.robustness.attack_report(
            model, batches, [attack], max_images=images, seed=seed
        )
    if source.is_dir():
        report.write_json(source / "robustness.json")
    return report


def certify_file(
    source: Path,
    *,
    eps: float | Sequence[float],
    norm: str = "linf",
    data: str | None = None,
    root: Path | None = None,
    download: bool = False,
    images: int | None = None,
    batch_size: int = 128,
    device: str | None = None,
) -> CertificationReport | RadiusReport:
    """Certify a trained model on the test set.

    Args:
        source: a run folder, or a file that :func:`stabnet.save` wrote.
        eps: radius of the perturbations, in pixel units; in l2 there may be several.
        norm: ``"linf"``, see :func:`stabnet.certify.verified_accuracy`, or ``"l2"``, see
            :func:`stabnet.certify.certified_accuracy`.
        data: a registered data set; by default the one the run was trained on.
        root: where data sets are kept; see :func:`stabnet.data.data_root`.
        download: whether to download a data set that is missing.
        images: how many test images; all of them if ``None``.
        batch_size: images per batch.
        device: where the model runs; the CPU if ``None``.

    Returns:
        The report, which a run folder also keeps as ``certification.json``.

    Raises:
        StabnetError: for a file, a name or a value that does not fit, missing data, or a model
            that cannot be bounded.
    """
    if images is not None and images < 1:
        raise InvalidOptionError(f"images={images}; certify at least one")
    if norm not in ("linf", "l2"):
        raise InvalidOptionError(f"norm={norm!r} is unknown; it is 'linf' or 'l2'")
    radii = [eps] if isinstance(eps, int | float) else list(eps)
    if norm == "linf" and len(radii) != 1:
        raise InvalidOptionError(
            f"eps={radii}: in the norm linf every radius is a certificate of its own; give "
            "one radius"
        )
    model, dataset = _model_and_data(source, data, root, download, device)
    batches = stabnet.data.loader(dataset.test, batch_size=batch_size)
    certify = stabnet.certify
    report = (
        certify.certified_accuracy(model, batches, radii, max_images=images)
        if norm == "l2"
        else certify.verified_accuracy(model, batches, radii[0], max_images=images)
    )
    if source.is_dir():
        report.write_json(source / "certification.json")
    return report


def _model_and_data(
    source: Path, data: str | None, root: Path | None, download: bool, device: str | None
) -> tuple[stabnet.StabilityModel, Dataset]:
    """Return a saved model, and a data set that it can be used on."""
    place = stabnet.training.usable_device(device or "cpu")
    model = stabnet.load(source / WEIGHTS if source.is_dir() else source, device=place)
    if not isinstance(model, stabnet.StabilityModel):
        raise InvalidOptionError(
            f"{source} holds a {type(model).__name__}, which is a part; give the file of a model"
        )
    dataset = stabnet.data.load(data or _data_of(source), root=root, download=download)
    for takes, has, what in (
        (tuple(model.in_shape), tuple(dataset.in_shape), "inputs of shape"),
        (model.num_outputs, dataset.num_outputs, "a number of classes of"),
    ):
        if takes != has:
            raise InvalidOptionError(
                f"the model has {what} {takes}, but {dataset.name} has {has}; name the data set "
                "it was trained on"
            )
    return model, dataset


def _data_of(source: Path) -> str:
    """Return the name of the data set that a run was trained on."""
    try:
        config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        return str(config["data"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise MissingDataError(
            f"{source} does not say which data the model was trained on; name a data set (--data)"
        ) from None
