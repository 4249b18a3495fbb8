"""The report of a training, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..interfaces import Guarantee, Guaranteed, Integrator
from .result import FitResult

__all__ = ["write_report"]


def write_report(result: FitResult, config: Mapping[str, Any], described: bool) -> str:
    """Return the report.

    Args:
        result: what the training came to.
        config: what ``config.json`` holds.
        described: whether the weights file rebuilds the model, or is a bare state dict.
    """
    sections = [
        _summary(result, config),
        _evaluation(result),
        _solves(result),
        _step_size(result),
        _data(config),
        _training(result, config),
        _guarantees(result),
        _files(described, bool(result.monitored)),
    ]
    return "\n\n".join(sections) + "\n"


def _percent(value: float | None) -> str:
    return "not reported" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "not reported" if value is None else f"{value:.4g}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells)


def _summary(result: FitResult, config: Mapping[str, Any]) -> str:
    training, model = config["training"], config["model"]
    name = model.get("name", model.get("class"))
    lines = [f"# {name} on {config['data']['name']}", ""]
    if result.metric == "accuracy":
        lines.append(f"Test accuracy **{_percent(result.test['accuracy'])}**")
    else:
        lines.append(f"Test loss **{_number(result.test['loss'])}**")
    lines[-1] += (
        f" on {config['data']['sizes']['test']} samples, with the weights of epoch "
        f"{result.best_epoch}, which had the best validation {result.metric}. "
        "Inputs were not attacked: this says nothing about robustness."
    )
    if not result.complete:
        last = result.history[-1]
        part = "" if last["complete"] else f", the last of them (epoch {last['epoch']}) in part"
        lines += [
            "",
            f"**Training was cut short** by its time limit: {len(result.history)} of "
            f"{training['epochs']} epochs were run{part}. The learning rate had not come to the "
            "end of its schedule. `resume=True` continues after the last complete epoch.",
        ]
    return "\n".join(lines)


def _evaluation(result: FitResult) -> str:
    best = next(r for r in result.history if r["epoch"] == result.best_epoch)
    names = [n for n in result.test if f"validation_{n}" in best]
    rows = [
        (n, _number(best.get(f"train_{n}")), _number(best[f"validation_{n}"]), _number(v))
        for n, v in result.test.items()
        if n in names
    ]
    note = (
        "Training means are over the epoch, while the weights changed, in training mode and on "
        "inputs augmented as said below; the others are exact means over their sets in eval mode."
    )
    if "residual" in result.test:
        note += " `residual` is the mean over batches of the largest residual in each."
    table = _table(("metric", f"training, epoch {result.best_epoch}", "validation", "test"), rows)
    return f"## Metrics\n\n{table}\n\n{note}"


def _solves(result: FitResult) -> str:
    nfe, converged = result.test.get("nfe"), result.test.get("converged")
    lines = ["## What the dynamics did", ""]
    if nfe is None and converged is None:
        return "\n".join([*lines, "Not reported: the objective logs neither nfe nor convergence."])
    best = next(r for r in result.history if r["epoch"] == result.best_epoch)
    lines.append(
        f"- mean evaluations of the field or cell per batch (nfe): {_number(nfe)} on the test "
        f"set, {_number(best.get('train_nfe'))} in training (epoch {result.best_epoch})"
    )
    if converged is None:
        lines.append("- share of converged samples: not reported; nothing was solved for")
        return "\n".join(lines)
    training = best.get("train_converged")
    lines.append(
        f"- share of converged samples: {_percent(converged)} on the test set, "
        f"{_percent(training)} in training (epoch {result.best_epoch})"
    )
    if converged < 1:
        lines.append("- for the other test samples the state is no equilibrium to tolerance")
    if training is not None and training < 1:
        lines.append(
            "- **for the other training samples the solve missed its tolerance**, and with it the "
            "implicit gradient that assumes an equilibrium is inexact"
        )
    return "\n".join(lines)


def _step_size(result: FitResult) -> str:
    title = "## Step size"
    found = result.step_size
    if found is None:
        integrators = (m for m in result.model.modules() if isinstance(m, Integrator))
        kinds = ", ".join(sorted({type(m).__name__ for m in integrators}))
        reason = (
            f"the integrators ({kinds}) have no fixed step size; adaptive ones choose their own"
            if kinds
            else "the model has no integrator whose steps could be refined"
        )
        return f"{title}\n\nNot compared: {reason}."
    sizes = ", ".join(f"`{name}` {size:g}" for name, size in found.step_sizes.items())
    rows = [("evaluations per batch (nfe)", _number(found.nfe), _number(found.refined_nfe))]
    changes = (
        f"Outputs change by {_percent(found.mean_change)} in the mean and by "
        f"{_percent(found.largest_change)} at most, relative to the root mean square of their norm."
    )
    if found.accuracy is not None:
        rows.insert(0, ("accuracy", _percent(found.accuracy), _percent(found.refined_accuracy)))
        changes = f"The predicted class of {_percent(found.changed)} changes. {changes}"
    header = ("", "at these steps", f"at steps divided by {found.factor:g}")
    lines = [
        f"Longest steps: {sizes}. On the first {found.samples} test samples:",
        _table(header, rows),
        changes,
    ]
    if found.depends_on_step:
        lines.append(
            "**The result depends on the step size**: it belongs to these steps and not to the "
            "flow. Train and evaluate with smaller steps, or with an adaptive integrator."
        )
    return "\n\n".join([title, *lines])


def _data(config: Mapping[str, Any]) -> str:
    data = config["data"]
    sizes = ", ".join(f"{n} {split}" for split, n in data["sizes"].items())
    return (
        f"## Data\n\n{data['name']} ({data['task']}): inputs of shape {tuple(data['in_shape'])}, "
        f"{data['num_outputs']} outputs; samples: {sizes}; augmentation of the training inputs: "
        f"{data['augmentation']}."
    )


def _training(result: FitResult, config: Mapping[str, Any]) -> str:
    rows = [(n, f"`{json.dumps(v)}`") for n, v in config["training"].items()]
    objective = config["objective"]
    rows.insert(0, ("objective", f"`{objective.get('name', objective.get('class'))}`"))
    environment = ", ".join(f"{n} {v}" for n, v in config["environment"].items())
    complete = sum(bool(r["complete"]) for r in result.history)
    return (
        f"## Training\n\n{complete} complete epochs of {config['training']['epochs']}, "
        f"{result.seconds:.1f} s of training{', its monitor' * bool(result.monitored)} and "
        f"validation.\n\n"
        f"{_table(('option', 'value'), rows)}\n\nEnvironment: {environment}."
    )


def _guarantees(result: FitResult) -> str:
    title = "## Guarantees"
    model = result.model
    found: list[Guarantee] = list(model.guarantees()) if isinstance(model, Guaranteed) else []
    if not found:
        return f"{title}\n\nThe model states none."
    parts: dict[Guarantee, list[str]] = {}
    for g in found:
        parts.setdefault(replace(g, part=""), []).append(g.part or "model")
    rows = [
        (
            named[0] + (f" and {len(named) - 1} like it" if len(named) > 1 else ""),
            g.status,
            g.claim,
            f"`{g.formula}`",
            "; ".join([*g.assumptions, *([g.detail] if g.detail else [])]) or "none",
            g.source,
        )
        for g, named in parts.items()
    ]
    header = ("part", "status", "claim", "formula", "assumptions and detail", "source")
    note = (
        "They are as the model's parts state them; training checked none of them. Stability in "
        "the state is not robustness in the input."
    )
    return f"{title}\n\n{_table(header, rows)}\n\n{note}"


def _files(described: bool, monitored: bool) -> str:
    weights = (
        "the model with the best weights; `stabnet.load` rebuilds it"
        if described
        else "the best weights, **as a bare state dict**: a part of the model has no registered "
        "name, so the file cannot rebuild it; build the model yourself and use "
        "`stabnet.load_weights`"
    )
    rows = [
        ("`model.safetensors`", weights),
        ("`config.json`", "description of model, options, data and versions"),
        ("`metrics.jsonl`", "one line per epoch"),
        *([("`monitor.jsonl`", "what the monitor returned, one line per call")] * monitored),
        ("`checkpoint/state.pt`", "what `resume=True` continues from"),
        ("`plots/training.png`", "training curves"),
    ]
    return f"## Files\n\n{_table(('file', 'content'), rows)}"
