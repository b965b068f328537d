"""Commands for MLflow: mlflow-sync, register."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .console import console, stop


def mlflow_sync(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of a training or evaluation.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="Where to send to, if not to where the run was meant to go.")
    ] = None,
) -> None:
    """Send what MLflow did not take while it was away; twice changes nothing."""
    from ..tracking.store import TrackingError
    from ..tracking.sync import sync

    try:
        done = sync(output_dir, tracking_uri)
    except TrackingError as error:
        stop(error)
    if not done:
        console.print(f"nothing to send in {escape(str(output_dir))}", highlight=False, soft_wrap=True)
    for run in done:
        state = f"run {run.run_id}, {run.status}" if run.run_id else "[yellow]left alone[/], its process still runs"
        console.print(f"{escape(run.name)}: {state}", highlight=False, soft_wrap=True)
        for reason in run.refused:
            console.print(f"[yellow]not sent[/] {escape(reason)}", highlight=False, soft_wrap=True)


def register(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of a tracked training that was evaluated.")],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    split: Annotated[str, typer.Option(help="Split whose evaluation judges the version.")] = "test",
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint; else the evaluated one.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; else the one the training used.")] = None,
    bundle_root: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("bundles/fair_lung_ct"),
) -> None:
    """Register an evaluated checkpoint in MLflow; it becomes `champion` when its P is higher and its gap not worse."""
    from ..common.errors import UserError
    from ..tracking.registry import register_output

    try:
        registered = register_output(output_dir, name, bundle_root, split, checkpoint, tracking_uri)
    except UserError as error:
        stop(error)
    outcome = "now the champion" if registered.decision.champion else "not the champion"
    text = f"{name} version {registered.version}: {outcome} ({registered.decision.reason})"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
