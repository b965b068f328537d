"""Where tables of labelled predictions lie: a CSV, a glob pattern, the output_dir of a job, an MLflow run."""

import glob
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlung.transforms.files import visible

from ..common import run_folder
from ..common.claims import process_folder
from ..common.text import nearest, without_login
from ..evaluation.predictions import PredictionsError
from ..tracking.store import UPLOAD_TIMEOUT, impatient, living_run

TABLE = run_folder.PREDICTIONS
RUN = re.compile(r"(?:runs:/+)?([0-9a-f]{32})/?")
LISTED = 5  # of what there is instead


def named_sources(arguments: Sequence[str]) -> dict[str, list[str]]:
    """``NAME=SOURCE`` arguments by name, in their order; a name that is repeated gets more runs.

    Without a name, a source is called by the last part of its path, or by the whole where that is taken. Before the
    first ``=`` stands a name unless it holds a slash or the whole is a path that exists. PredictionsError for an empty
    name or source, or a source that is given twice.
    """
    found: dict[str, list[str]] = {}
    for text in arguments:
        name, equals, source = text.partition("=")
        if not equals or "/" in name or Path(text).exists():
            name, source = _short_name(text), text
            name = text if name in found else name
        if not name.strip() or not source.strip():
            raise PredictionsError(f"{text!r}: give SOURCE or NAME=SOURCE")
        if any(source in sources for sources in found.values()):
            raise PredictionsError(f"{source} is given twice")
        found.setdefault(name.strip(), []).append(source.strip())
    return found


def _short_name(source: str) -> str:
    if run := RUN.fullmatch(source):
        return run[1][:8]
    path = Path(source)
    if glob.has_magic(source):
        return source
    return path.stem if path.suffix == ".csv" else path.name


def find_predictions(source: str, split: str | None = None, tracking_uri: str | None = None) -> list[Path]:
    """The tables that a source stands for: one, or one a run for a glob pattern that matches several.

    PredictionsError when nothing is there, or several splits and no choice; the message says what there is.

    Args:
        source: a CSV; a glob pattern (``**`` goes through folders) of CSVs or folders, taken in sorted order; the
            output_dir of a training or an evaluation; an MLflow run (``runs:/ID``, or its 32 hex digits), whose table
            is downloaded to a folder that is removed when the process ends.
        split: of an output_dir or a run. None takes the only one that was evaluated, or without an evaluation the val
            table of the training's best epoch.
        tracking_uri: MLflow's store; None takes MLflow's own choice (``MLFLOW_TRACKING_URI``).
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [_of_folder(path, split)]
    if run := RUN.fullmatch(source):
        return [_of_run(run[1], split, tracking_uri)]
    if source.startswith("runs:"):
        raise PredictionsError(f"{source} names no MLflow run: it is runs:/ and 32 hex digits")
    if glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
        if not matches:
            raise PredictionsError(f"nothing matches {source}{_instead(path)}")
        return [match if match.is_file() else _of_folder(match, split) for match in matches]
    raise PredictionsError(f"{source}: no such file or folder{_instead(path)}")


def _instead(path: Path) -> str:
    """What there is near a path that is not there."""
    parent = path.parent
    while glob.has_magic(str(parent)) or not parent.is_dir():
        if parent == parent.parent:
            return ""
        path, parent = parent, parent.parent
    names = sorted(entry.name for entry in visible(parent))
    near = sorted(nearest(path.name, names, LISTED)) or names[:LISTED]
    if not near:
        return f"; {parent} is empty"
    more = ", ..." if len(near) == LISTED < len(names) else ""
    return f"; in {parent} there is {', '.join(near)}{more}"


def _of_folder(folder: Path, split: str | None) -> Path:
    evaluated = {path.parent.parent.name: path for path in sorted(folder.glob(f"*/evaluation/{TABLE}"))}
    best = folder / "val" / TABLE  # written by the training
    if split is None and len(evaluated) > 1:
        raise PredictionsError(f"{folder} has evaluations of {', '.join(evaluated)}: choose one with --split")
    if found := evaluated.get(next(iter(evaluated), "") if split is None else split):
        return found
    if split in (None, "val") and best.is_file():
        return best
    splits = [*evaluated, *(["val"] if best.is_file() and "val" not in evaluated else [])]
    if splits:
        raise PredictionsError(f"{folder} has no evaluation of the split {split}; it has {', '.join(splits)}")
    hint = f"; it holds a {TABLE} itself, name that file" if (folder / TABLE).is_file() else ""
    raise PredictionsError(f"{folder} holds no evaluation (no {split or '*'}/evaluation/{TABLE}){hint}")


def _of_run(run_id: str, split: str | None, tracking_uri: str | None) -> Path:
    import mlflow

    uri = tracking_uri or mlflow.get_tracking_uri()
    store, shown = Path(uri.removeprefix("sqlite:///")), without_login(uri)
    if uri.startswith("sqlite:///") and not store.is_file():  # MLflow would make an empty one
        raise PredictionsError(f"no MLflow store at {store}; say where it is with --tracking-uri")
    try:
        with impatient(MLFLOW_HTTP_REQUEST_TIMEOUT=UPLOAD_TIMEOUT, MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false"):
            client = mlflow.MlflowClient(tracking_uri=uri)
            run = living_run(client, run_id)
            if run is None:
                raise PredictionsError(f"MLflow at {shown} has no run {run_id}; another store: --tracking-uri")
            artifact = f"evaluation/{_split_of_run(client, run, split)}/{TABLE}"
            folder = tempfile.mkdtemp(dir=process_folder())
            where = {"run_id": run_id, "artifact_path": artifact, "dst_path": folder, "tracking_uri": uri}
            return Path(mlflow.artifacts.download_artifacts(**where))
    except PredictionsError:
        raise
    except Exception as error:  # of MLflow, its database's driver or its artifact store
        reason = str(error).strip().partition("\n")[0]
        raise PredictionsError(f"MLflow at {shown}: {without_login(reason)}") from error


def _split_of_run(client: Any, run: Any, split: str | None) -> str:
    run_id = run.info.run_id
    folders = [item.path for item in client.list_artifacts(run_id, "evaluation") if item.is_dir]

    def has_table(folder: str) -> bool:
        return any(Path(item.path).name == TABLE for item in client.list_artifacts(run_id, folder))

    splits = [Path(folder).name for folder in folders if has_table(folder)]
    name = f"MLflow run {run.info.run_name} ({run_id})"
    if split is None and len(splits) > 1:
        raise PredictionsError(f"{name} has evaluations of {', '.join(splits)}: choose one with --split")
    if splits and split in (None, *splits):
        return split or splits[0]
    nested = f"tags.`mlflow.parentRunId` = '{run_id}'"
    children = client.search_runs([run.info.experiment_id], nested, max_results=LISTED)
    below = ", ".join(f"{child.info.run_name} (runs:/{child.info.run_id})" for child in children)
    text = f"{name} has no evaluation" if split is None else f"{name} has no evaluation of the split {split}"
    text += f"; it has {', '.join(splits)}" if splits else ""
    raise PredictionsError(f"{text}; runs below it: {below}" if below else text)
