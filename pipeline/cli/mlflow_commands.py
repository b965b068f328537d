"""Commands for MLflow: mlflow-sync, register."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.markup import escape
from typer import Argument, Option

from .console import console, say, stops


def mlflow_sync(
    output_dir: Annotated[Path, Argument(help="The output_dir of a training or evaluation.")],
    tracking_uri: Annotated[str | None,
        Option(help="Where to send to, if not to where the run was meant to go.")] = None,
) -> None:  # fmt: skip
    """Send what MLflow did not take while it was away; twice changes nothing."""
    from ..tracking.store import TrackingError
    from ..tracking.sync import sync

    with stops((TrackingError,)):
        done = sync(output_dir, tracking_uri)
    if not done:
        say(f"nothing to send in {output_dir}")
    for run in done:
        state = f"run {run.run_id}, {run.status}" if run.run_id else "[yellow]left alone[/], its process still runs"
        console.print(f"{escape(run.name)}: {state}", highlight=False, soft_wrap=True)
        for reason in run.refused:
            say(reason, "not sent")


def register(
    output_dir: Annotated[Path, Argument(help="The output_dir of a tracked training that was evaluated.")],
    name: Annotated[str, Option(help="Name of the registered model.")],
    split: Annotated[str, Option(help="Split whose evaluation judges the version.")] = "test",
    checkpoint: Annotated[Path | None, Option(help="The checkpoint; else the evaluated one.")] = None,
    tracking_uri: Annotated[str | None, Option(help="MLflow store; else the one the training used.")] = None,
    bundle_root: Annotated[Path, Option(help="Folder of the bundle.")] = Path("bundles/fair_lung_ct"),
) -> None:
    """Register an evaluated checkpoint in MLflow; it becomes `champion` when its P is higher and its gap not worse."""
    from ..common.errors import UserError
    from ..tracking.registry import register_output

    with stops((UserError,)):
        registered = register_output(output_dir, name, bundle_root, split, checkpoint, tracking_uri)
    outcome = "now the champion" if registered.decision.champion else "not the champion"
    say(f"{name} version {registered.version}: {outcome} ({registered.decision.reason})")
