"""The command line: every command prints what a function returns that anyone can import.

The functions are :func:`stabnet.entries`, :func:`stabnet.info`, :func:`stabnet.plugins`,
:func:`stabnet.testing.check_entry`, and those of :mod:`stabnet.commands`. Nothing here imports
torch before a command needs it.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import stabnet

from .commands import attack_file, certify_file, train_by_name
from .errors import InvalidOptionError, StabnetError, UnknownNameError
from .plugin import Entry

__all__ = ["app", "main"]

app = typer.Typer(
    help="Stability-constrained layers for PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of stabnet is one message and exit status 1."""
    try:
        app(args=arguments, prog_name="stabnet")
    except StabnetError as error:
        _console(stderr=True).print(f"error: {error}", soft_wrap=True)
        raise SystemExit(1) from None


def _console(*, stderr: bool = False) -> Console:
    """Return a console that takes text literally, and is wide enough for tables in a pipe."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, markup=False, highlight=False, width=160 if piped else None)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table


def _assignments(words: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` words; a value is JSON where it can be, and else text."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise InvalidOptionError(f"--set {word!r} is not an option; write it as key=value")
        if key in found:
            raise InvalidOptionError(f"the option {key} is given twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _matching(pattern: str, kind: str | None) -> tuple[Entry, ...]:
    found = stabnet.entries(pattern, kind=kind)
    if not found:
        raise UnknownNameError(f"no registered name matches {pattern!r}; `stabnet list` shows all")
    return found


def _version(wanted: bool) -> None:
    if wanted:
        print(stabnet.__version__)
        raise typer.Exit


@app.callback()
def _stabnet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stability-constrained layers for PyTorch."""


Kind = Annotated[str | None, typer.Option(help="One kind of part only, such as 'solver'.")]
Root = Annotated[Path | None, typer.Option(help="Folder of data sets (else STABNET_DATA).")]
Download = Annotated[bool, typer.Option("--download", help="Download data that are missing.")]
Data = Annotated[str | None, typer.Option(help="A data set (by default the one trained on)")]
Device = Annotated[str | None, typer.Option(help="Such as 'cpu' or 'cuda'.")]
Seed = Annotated[int, typer.Option(min=0, max=2**62 - 1, help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option(help="Samples per batch.")]


@app.command("list")
def list_entries(
    pattern: Annotated[str, typer.Argument(help="A shell pattern, such as '*deq*'.")] = "*",
    kind: Kind = None,
) -> None:
    """List the registered names."""
    table = _table("kind", "name", "from", "summary")
    for entry in _matching(pattern, kind):
        table.add_row(entry.kind, entry.name, str(entry.provider), entry.summary)
    _console().print(table)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A registered name.")], kind: Kind = None
) -> None:
    """Show the options, parts and references of a name."""
    found = stabnet.info(name, kind=kind)
    console = _console()
    entry = found.entry
    console.print(f"{entry.kind} {entry.name} — {entry.summary or 'no summary'}", style="bold")
    console.print(f"from {entry.provider}, plugin {entry.provider.plugin}\n")
    table = _table("option", "default", "takes")
    for option, parameter in found.signature.parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        default = "(needed)" if needed else repr(parameter.default)
        table.add_row(option, default, ", ".join(found.parts.get(option, ())))
    console.print(table)
    for text in (found.documentation, *entry.reference):
        console.print(f"\n{text.strip()}", soft_wrap=True)


@app.command()
def plugins(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also the names, and the tracebacks of failures.")
    ] = False,
) -> None:
    """List the installed plugins, and what became of each."""
    console = _console()
    table = _table("plugin", "from", "status", "names", "hooks", "error")
    for report in stabnet.plugins():
        hooks = ", ".join(report.hooks)
        row = (report.provider.plugin, str(report.provider), report.status)
        table.add_row(*row, str(report.names), hooks, report.error)
    console.print(table)
    for report in stabnet.plugins() if verbose else ():
        console.print(f"\n{report.provider.plugin} ({report.module})", style="bold")
        for entry in stabnet.entries():
            if entry.provider == report.provider:
                console.print(f"  {entry.kind} {entry.name}")
        if report.details:
            console.print(report.details, soft_wrap=True)


@app.command()
def check(
    pattern: Annotated[str, typer.Argument(help="A shell pattern, such as 'my_*'.")] = "*",
    kind: Kind = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what was skipped, and why.")
    ] = False,
) -> None:
    """Check that parts keep the contract of their kind."""
    console = _console()
    failed = 0
    for entry in _matching(pattern, kind):
        results = stabnet.testing.check_entry(entry)
        counts = Counter(result.status for result in results)
        failed += counts["failed"]
        verdict = ", ".join(f"{n} {status}" for status, n in counts.items())
        console.print(f"{entry.kind} {entry.name}: {verdict}")
        for result in results:
            if result.status == "failed" or (verbose and result.status == "skipped"):
                console.print(f"  {result.status} {result.check}: {result.message}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A registered model, such as 'lyadeq'.")],
    data: Annotated[str, typer.Option(help="A registered data set.")] = "digits",
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 30,
    batch_size: BatchSize = 64,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    backbone: Annotated[str | None, typer.Option(help="The model's backbone.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the model; may be repeated."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What is minimized: a name, or JSON of a name and options.")
    ] = "cross_entropy",
    run_dir: Annotated[Path | None, typer.Option(help="Run folder (by default a new one)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir.")
    ] = False,
    time_limit: Annotated[float | None, typer.Option(help="Seconds to train at most.")] = None,
    device: Device = None,
    seed: Seed = 0,
    root: Root = None,
    download: Download = False,
) -> None:
    """Train a model and print its report."""
    if resume and run_dir is None:
        raise InvalidOptionError("--resume continues the run in --run-dir; name the folder")
    options = _assignments([*(settings or ()), *([f"backbone={backbone}"] if backbone else ())])
    minimized = _assignments([f"objective={objective}"])["objective"]
    result = train_by_name(
        model,
        data=data,
        root=root,
        download=download,
        options=options,
        run_dir=run_dir,
        seed=seed,
        objective=minimized,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        device=device,
        resume=resume,
        time_limit=time_limit,
    )
    _console().print(result.report.read_text(encoding="utf-8"), soft_wrap=True)


@app.command()
def attack(
    source: Annotated[Path, typer.Argument(help="A run folder, or a saved model.")],
    data: Data = None,
    images: Annotated[int | None, typer.Option(help="Test images (by default all)")] = None,
    protocol: Annotated[str, typer.Option(help="Which attacks: 'paper'.")] = "paper",
    name: Annotated[
        str | None,
        typer.Option("--attack", help="One attack instead, such as pgd_l2; see `stabnet list`."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of --attack; may be repeated."),
    ] = None,
    batch_size: BatchSize = 128,
    device: Device = None,
    seed: Seed = 0,
    root: Root = None,
    download: Download = False,
) -> None:
    """Attack a trained model and print what it withstands."""
    if settings and name is None:
        raise InvalidOptionError("--set is for an option of --attack; name the attack")
    options = _assignments(settings or ())
    if "name" in options:
        raise InvalidOptionError("--set name=… would name another attack; name it by --attack")
    report = attack_file(
        source,
        data=data,
        root=root,
        download=download,
        images=images,
        protocol=protocol,
        attack=name and {**options, "name": name},
        batch_size=batch_size,
        device=device,
        seed=seed,
    )
    _console().print(report.to_markdown(), soft_wrap=True)


@app.command()
def certify(
    source: Annotated[Path, typer.Argument(help="A run folder, or a saved model.")],
    eps: Annotated[list[float], typer.Option(help="Radius, images in [0, 1]; repeat it in l2.")],
    norm: Annotated[str, typer.Option(help="Norm of the radius: 'linf' or 'l2'.")] = "linf",
    data: Data = None,
    images: Annotated[int | None, typer.Option(help="Test images (by default all)")] = None,
    batch_size: BatchSize = 128,
    device: Device = None,
    root: Root = None,
    download: Download = False,
) -> None:
    """Prove what a trained model withstands, whatever the attack, and print it."""
    report = certify_file(
        source,
        eps=eps,
        norm=norm,
        data=data,
        root=root,
        download=download,
        images=images,
        batch_size=batch_size,
        device=device,
    )
    _console().print(report.to_markdown(), soft_wrap=True)
