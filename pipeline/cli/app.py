"""The console program ``fairlung``: data sets in, tables out; training and inference as ``monai.bundle`` does them."""

import atexit
import logging
import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..common.claims import end_in_order
from ..common.text import mask_logins
from . import bundle_commands, data_commands, evaluation_commands, study_commands, weights_commands
from .console import console, stops

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="A chest-CT classifier that is fair between the sexes: data sets, phantoms, results.",
)  # fmt: skip


def _version(show: bool) -> None:
    if show:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:  # fmt: skip
    mask_logins()
    end_in_order()


for _command in (
    data_commands.cohort, data_commands.split, data_commands.check, data_commands.phantom, evaluation_commands.results,
    evaluation_commands.audit, evaluation_commands.compare, evaluation_commands.plan, evaluation_commands.probe,
    data_commands.submit, evaluation_commands.report, study_commands.tables, evaluation_commands.model_card,
    evaluation_commands.postprocess, study_commands.study, study_commands.mlflow_sync, study_commands.register,
    study_commands.settings,
):  # fmt: skip
    app.command()(stops(_command))
for _job in (bundle_commands.train, bundle_commands.evaluate, bundle_commands.infer):
    app.command(context_settings=bundle_commands.AS_TYPED)(stops(_job))
app.command()(stops(bundle_commands.bundle))
app.add_typer(weights_commands.weights, name="weights")


def main() -> None:
    """The console program. It ends as any does, but does not take down what it has imported, which takes seconds."""
    code: str | int | None = 1

    def leave() -> None:  # the first to be registered is the last to be called
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)

    atexit.register(leave)
    try:
        app(prog_name="fairlung")
    except SystemExit as end:
        code = end.code
        raise
