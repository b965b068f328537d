"""The record of a study and its runs, as study.json holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..common.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


STUDY_FILE = "study.json"
STATUSES = ("finished", "failed", "pending", "running")
PROTOCOLS = ("given", "nested", "final")
ALPHA = re.compile(r"[\s,;(]*\b(?:alpha|\u03b1)\s*=?\s*\d*\.?\d+\)?", re.IGNORECASE)  # in the name of a configuration


class StudyError(UserError, ValueError):
    """A study that cannot be run as it is written, cannot be read, or has nothing to show yet; says where and why."""


@dataclass(frozen=True)
class StudyRun:
    """One training of a study, and its evaluation.

    Args:
        id: its name in the study.
        system: the way of training without alpha and seed.
        label: what the configuration is called in tables.
        alpha: of CVaR; None where there is none.
        seed: of the training.
        fold: which fold judged; None without folds.
        repeat: of the repeated k-fold; None without.
        device: what it ran on; None when nobody said.
        status: one of STATUSES.
        reason: why it failed, or nothing.
        output_dir: of the bundle.
    """

    id: str
    system: str
    label: str
    alpha: float | None
    seed: int
    fold: int | None
    repeat: int | None
    device: str | None
    status: str
    reason: str
    output_dir: Path

    @property
    def family(self) -> tuple[str, str]:
        """What runs have in common that differ in alpha only."""
        return self.system, ALPHA.sub("", self.label).strip() or self.system


@dataclass(frozen=True)
class Study:
    """What study.json says.

    Args:
        folder: of the study.
        name: of the study.
        synthetic: the scans are phantoms.
        protocol: ``given`` (the cohort's own splits) or ``nested`` (outer folds judge, inner ones choose), or
            ``final`` (the held-out split judges one configuration).
        folds: outer folds; 0 or 1 without.
        repeats: of the k-fold.
        reported_split: whose evaluations are reported; ``val`` is the split that chose.
        chosen_on: which scans chose epoch and alpha, in words.
        judged_on: which scans judged, in words.
        quoted: numbers of others by label; None takes the paper's where a label is one of the paper's.
        warnings: what a reader must know first.
        runs: all that were planned.
    """

    folder: Path
    name: str
    synthetic: bool
    protocol: str
    folds: int
    repeats: int
    reported_split: str
    chosen_on: str
    judged_on: str
    quoted: Mapping[str, Mapping[str, float]] | None
    warnings: tuple[str, ...]
    runs: tuple[StudyRun, ...]

    @property
    def optimistic(self) -> bool:
        """Whether the scans that are reported have chosen the epoch, and alpha."""
        return self.reported_split == "val"

    @property
    def labels(self) -> tuple[str, ...]:
        """Configurations in the study's order."""
        return tuple(dict.fromkeys(run.label for run in self.runs))


def load_study(folder: str | Path) -> Study:
    """Read and check ``study.json`` of a study's folder.

    Raises:
        StudyError: it is missing or damaged, or a value in it is of the wrong kind; names the value.
    """
    path = Path(folder) / STUDY_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{folder} is no study: it has no {STUDY_FILE}") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    read = _Reader(record, str(path))
    runs = read("runs", list)
    warnings = read("warnings", list, [])
    quoted = read("quoted", dict, None)
    study = Study(
        folder=Path(folder),
        name=read("name", str),
        synthetic=read("synthetic", bool, False),
        protocol=read("protocol", str, one_of=PROTOCOLS),
        folds=read("folds", int, 0),
        repeats=read("repeats", int, 1),
        reported_split=read("reported_split", str),
        chosen_on=read("chosen_on", str),
        judged_on=read("judged_on", str),
        quoted=None if quoted is None else {label: _quoted(path, label, row) for label, row in quoted.items()},
        warnings=tuple(map(str, warnings)),
        runs=tuple(_run(Path(folder), _Reader(run, f"{path}: runs[{i}]")) for i, run in enumerate(runs)),
    )
    if not study.runs:
        raise StudyError(f"{path}: no run in it")
    ids = pd.Series([run.id for run in study.runs])
    if ids.duplicated().any():
        raise StudyError(f"{path}: run {ids[ids.duplicated()].iloc[0]!r} is there twice")
    _no_twins(study.runs, str(path))
    return study


_NO_DEFAULT = object()


class _Reader:
    """Fields of a JSON object, each checked for its type."""

    def __init__(self, record: Any, where: str) -> None:
        if not isinstance(record, dict):
            raise StudyError(f"{where} must be an object, got {record!r}")
        self.record, self.where = record, where

    def __call__(self, key: str, kind: type, default: Any = _NO_DEFAULT, one_of: Sequence[str] = ()) -> Any:
        value = self.record.get(key, default)
        if value is _NO_DEFAULT:
            raise StudyError(f"{self.where}: no {key!r}")
        if value is None and default is None:
            return None
        number = kind is float and isinstance(value, int)
        if not (isinstance(value, kind) or number) or (kind is not bool and isinstance(value, bool)):
            raise StudyError(f"{self.where}: {key} must be of type {kind.__name__}, got {value!r}")
        if one_of and value not in one_of:
            raise StudyError(f"{self.where}: {key} must be one of {', '.join(one_of)}, got {value!r}")
        return value


def _run(folder: Path, read: _Reader) -> StudyRun:
    return StudyRun(
        id=read("id", str),
        system=read("system", str),
        label=read("label", str),
        alpha=read("alpha", float, None),
        seed=read("seed", int),
        fold=read("fold", int, None),
        repeat=read("repeat", int, None),
        device=read("device", str, None),
        status=read("status", str, one_of=STATUSES),
        reason=read("reason", str, None) or "",
        output_dir=folder / read("output_dir", str),
    )


def _quoted(path: Path, label: str, row: Any) -> dict[str, float]:
    read = _Reader(row, f"{path}: quoted {label!r}")
    return {key: read(key, float) for key in row}


def _no_twins(runs: Iterable[StudyRun], where: str) -> None:
    """Two runs of one configuration, seed, fold and device would be taken for two seeds."""
    seen: dict[Any, str] = {}
    for run in runs:
        key = run.label, run.seed, run.repeat, run.fold, run.device
        if key in seen:
            raise StudyError(
                f"{where}: the runs {seen[key]!r} and {run.id!r} are the same: {run.label}, seed {run.seed}, "
                f"fold {run.fold}, repeat {run.repeat}, device {run.device}"
            )
        seen[key] = run.id


def status_text(study: Study) -> str:
    """How many runs are finished, failed, pending and running: ``12 of 15 runs finished, 1 failed, 2 pending``."""
    counts = pd.Series([run.status for run in study.runs]).value_counts()
    others = [f"{counts[status]} {status}" for status in STATUSES[1:] if status in counts]
    return ", ".join([f"{counts.get('finished', 0)} of {len(study.runs)} runs finished", *others])
