"""What an evaluation leaves behind: its summary, written here, and all of it, read for its report and model card."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..common import run_folder
from ..common.distributed import is_primary
from ..common.errors import UserError
from ..common.run_folder import RECORD, training_dir
from ..common.tables import read_frame
from ..data.groups import group_columns
from ..evaluation.audit import audit
from ..evaluation.metrics import fairness_summary
from ..evaluation.predictions import Predictions, load_predictions
from ..evaluation.records import Audit, read_record
from ..shortcuts.probe import Probe, read_probes

logger = logging.getLogger(__name__)


class EvidenceError(UserError, ValueError):
    """A file of an evaluation is missing, damaged, or does not belong to the others; says which."""


@dataclass(frozen=True)
class ErrorImage:
    """A wrong prediction and its picture (the bytes of a PNG)."""

    scan: str
    label: str
    group: str
    prediction: str
    confidence: float
    png: bytes


@dataclass(frozen=True)
class Evidence:
    """Everything that is known of one evaluation; empty or None is what is not known."""

    audit: Audit
    source: str = ""  # what was judged, for a heading: the name of a table
    split: str = ""
    checkpoint: str = ""  # file name; of several, their paths
    synthetic: bool | None = None  # whether the scans are phantoms
    history: pd.DataFrame | None = None  # columns epoch, metric, value of the training
    marked_epoch: int | None = None  # the epoch that the judged checkpoint is from
    marked_by: str = ""  # how that is known
    cells: pd.DataFrame | None = None  # columns split, label, group, n of the cohort
    errors: tuple[ErrorImage, ...] | None = None  # the worst errors; None when no gallery was made
    errors_problem: str = ""  # why no gallery could be made
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the training, as far as it noted them
    checkpoint_file: Path | None = None  # None when it is not where it was
    judged_on: str = ""  # date of the evaluation, UTC
    run: str = ""  # the training's run in MLflow
    commit: str = ""  # of the code that trained
    probes: tuple[Probe, ...] = ()  # what can be read from the network's features


def write_evaluation(
    predictions: str | Path, class_names: Sequence[str], group_names: Sequence[str],
    group_by: str | Sequence[str] = "sex", split: str = "", checkpoint: str | Sequence[str] = "", picture: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Summarise a labelled prediction table beside it: metrics.json and, with ``picture``, confusion.png.

    Without matplotlib there is a warning in place of the picture. ``checkpoint`` is the file that was judged; of
    several that answered together, a list of them.

    Returns the content of metrics.json; nothing in processes other than the first, which write nothing.
    """
    if not is_primary():
        return {}
    predictions = Path(predictions)
    # of earlier predictions: these may be none to judge
    for name in (run_folder.METRICS, run_folder.AUDIT, run_folder.CONFUSION):
        predictions.with_name(name).unlink(missing_ok=True)
    if not isinstance(checkpoint, str):
        checkpoint = checkpoint[0] if len(checkpoint) == 1 else list(checkpoint)
    columns = group_columns(group_by)
    table = load_predictions(predictions, class_names, group_names, columns)
    confusion = torch.from_numpy(table.confusion())
    result = {
        "split": split, "checkpoint": checkpoint, "synthetic": table.synthetic,
        "class_names": list(class_names), "group_names": list(group_names), "group_by": list(columns),
        "confusion": confusion.tolist(), "metrics": fairness_summary(confusion, class_names, group_names),
    }  # fmt: skip
    predictions.with_name(run_folder.METRICS).write_text(json.dumps(result, indent=2) + "\n")
    if not picture:
        return result
    try:
        from .figures import confusion_figure

        figure = confusion_figure(confusion.numpy(), list(class_names), list(group_names), synthetic=table.synthetic)
    except ImportError as error:  # a training must not end on a missing picture
        logger.warning("no picture of the confusion matrices: %s", error)
    else:
        figure.savefig(predictions.with_name(run_folder.CONFUSION), dpi=150, bbox_inches="tight")
    return result


def evidence_of_table(predictions: Predictions, source: str) -> Evidence:
    """What a table of predictions alone says: it is audited now; NoAuditError with scans of fewer than two groups."""
    return Evidence(audit(predictions), source=source, synthetic=predictions.synthetic or None)


def read_evidence(evaluation_dir: str | Path) -> Evidence:
    """What an evaluation left in its folder, and its training in the folder above.

    The folder holds metrics.json, predictions.csv, and, where they were made, audit.json (else the audit is run now; it
    may raise NoAuditError), cells.csv and errors/errors.json. EvidenceError: a file is missing, damaged, or audit.json
    is of other predictions than metrics.json.
    """
    folder = Path(evaluation_dir)
    metrics = optional_json(folder / run_folder.METRICS)
    if metrics is None:
        raise EvidenceError(f"{folder} holds no evaluation (metrics.json is missing): evaluate first")
    judged = _audit(folder)
    filled = [matrix for matrix in metrics["confusion"][:-1] if np.any(matrix)]
    if judged.confusion != filled or list(judged.class_names) != metrics["class_names"]:
        raise EvidenceError(f"{folder}: audit.json and metrics.json are not of the same predictions: evaluate again")
    several = isinstance(metrics["checkpoint"], list)
    checkpoint = ", ".join(metrics["checkpoint"]) if several else metrics["checkpoint"]
    output_dir = folder.parent.parent if folder.name == "evaluation" else folder.parent
    training = None if several else training_dir(checkpoint, output_dir)
    history = record = settings = None
    if training is not None:
        history = optional_table(training / run_folder.HISTORY, ("epoch", "metric", "value"))
        record = optional_json(training / RECORD)
        settings = optional_json(training / run_folder.SETTINGS)
    shown = checkpoint if several else Path(checkpoint).name
    epoch, known_by = (None, "") if several else _marked_epoch(checkpoint, record or {}, history)
    places = [Path(checkpoint), *([training / "models" / Path(checkpoint).name] if training is not None else [])]
    errors, problem = _errors(folder / "errors")
    judged_on = datetime.fromtimestamp((folder / run_folder.METRICS).stat().st_mtime, UTC).date().isoformat()
    run = record or {}
    cells = optional_table(folder / run_folder.CELLS, ("split", "label", "group", "n"))
    return Evidence(
        judged, split=metrics["split"], checkpoint=shown, synthetic=bool(metrics["synthetic"]),
        history=history, marked_epoch=epoch, marked_by=known_by, cells=cells, errors=errors, errors_problem=problem,
        settings=settings or {}, checkpoint_file=next((path for path in places if path.is_file()), None),
        judged_on=judged_on, run=" ".join(filter(None, (run.get("run_name"), run.get("run_id")))),
        commit=run.get("commit") or "", probes=read_probes(folder),
    )  # fmt: skip


def optional_json(path: Path) -> Any:
    """Content of a JSON file; None when there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from error


def optional_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    """A CSV with these columns, the last (and an epoch) as numbers; None when there is no such file, or no row."""
    try:
        table = read_frame(path)
        if missing := [column for column in columns if column not in table]:
            raise ValueError(f"no column {', '.join(missing)}")
        numbers = {name: kind for name, kind in {"epoch": int, "n": int, "value": float}.items() if name in columns}
        table = table[list(columns)].astype(numbers)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from error
    return None if table.empty else table


def _audit(folder: Path) -> Audit:
    """The audit beside the predictions; without one it is made now."""
    path, predictions = folder / run_folder.AUDIT, folder / run_folder.PREDICTIONS
    try:
        return read_record(Audit, path)
    except FileNotFoundError:
        if not predictions.exists():
            raise EvidenceError(f"{predictions} is missing: evaluate again") from None
        return audit(load_predictions(predictions))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from error


def _marked_epoch(checkpoint: str, record: Mapping[str, Any], history: pd.DataFrame | None) -> tuple[int | None, str]:
    if named := re.search(r"epoch=(\d+)\.pt$", checkpoint):
        return int(named[1]), "the judged checkpoint's"
    if record.get("best_epoch") is not None:
        return int(record["best_epoch"]), "the best one"
    if history is not None:
        score = history[history["metric"] == "val_score"]
        if len(score) and score["value"].notna().any():
            return int(score.loc[score["value"].idxmax(), "epoch"]), "the one of the highest P"
    return None, ""


def _errors(folder: Path) -> tuple[tuple[ErrorImage, ...] | None, str]:
    """The worst errors, None without a gallery; and why there is none, where that is known."""
    entries = optional_json(folder / "errors.json")
    if entries is None or isinstance(entries, dict):
        return None, str((entries or {}).get("problem", ""))
    found = []
    for entry in entries:
        image = folder / Path(entry["image"]).name  # a name in this folder, whatever the file says
        try:
            png = image.read_bytes()
        except OSError as error:
            named = f"{folder / 'errors.json'} names {image.name}"
            raise EvidenceError(f"{named}, which cannot be read: {error}") from error
        if not png.startswith(b"\x89PNG"):
            raise EvidenceError(f"{image} is no PNG")
        scan, label, group, said = (str(entry[name]) for name in ("scan", "label", "group", "prediction"))
        found.append(ErrorImage(scan, label, group, said, float(entry["confidence"]), png))
    return tuple(found), ""
