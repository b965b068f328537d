"""A study's folder, read: what was planned, what is finished, and the predictions of each seed as one table.

A study is a grid of runs (configurations x seeds x folds) in one folder: ``study.json`` and an output_dir a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .errors import UserError
from .evidence import EvidenceError, optional_json, optional_table
from .labelled_predictions import Predictions, load_predictions
from .metrics import fairness_summary

STUDY_FILE = "study.json"
STATUSES = ("finished", "failed", "pending", "running")
PROTOCOLS = ("given", "nested", "final")
UNKNOWN_DEVICE = "unknown device"
ALPHA = re.compile(r"[\s,;(]*\b(?:alpha|\u03b1)\s*=?\s*\d*\.?\d+\)?", re.IGNORECASE)  # in the name of a configuration
GRADIENT = re.compile(r"\b(?:exact|published)(?: gradient)?\b", re.IGNORECASE)


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


@dataclass(frozen=True)
class Replicate:
    """One configuration trained once: a run, or the runs of all folds with their judged scans put together.

    Args:
        label: of the configuration.
        seed: of the training.
        repeat: of the k-fold.
        device: of the runs; several are joined by a comma.
        predictions: on all scans that judge.
        numbers: of :func:`~.metrics.fairness_summary`.
        fold: of the run where each fold is a replicate of its own; else None.
    """

    label: str
    seed: int
    repeat: int | None
    device: str
    predictions: Predictions
    numbers: Mapping[str, float]
    fold: int | None = None


@dataclass(frozen=True)
class Results:
    """The finished part of a study.

    Args:
        study: what was planned.
        tables: predictions of each finished run, by its id.
        replicates: by label, in the study's order; a label whose replicates are all unfinished has none.
        planned: replicates that were planned, by label.
        synthetic: the study or a table says that scans are phantoms.
        problems: finished runs that cannot be used, in words.
    """

    study: Study
    tables: Mapping[str, Predictions]
    replicates: Mapping[str, tuple[Replicate, ...]]
    planned: Mapping[str, int]
    synthetic: bool
    problems: tuple[str, ...]

    @property
    def any_table(self) -> Predictions:
        """One of the tables: all have the same classes and groups."""
        return next(iter(self.tables.values()))

    @property
    def judged(self) -> Predictions:
        """All the scans that judge, as one of the replicates, of which there must be one, predicts them."""
        return next(replicate.predictions for made in self.replicates.values() for replicate in made)


# ---------------------------------------------------------------------------------------------------------------------
# study.json
# ---------------------------------------------------------------------------------------------------------------------
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


# ---------------------------------------------------------------------------------------------------------------------
# evaluations
# ---------------------------------------------------------------------------------------------------------------------
def read_results(study: Study) -> Results:
    """The evaluations of a study's finished runs.

    With folds, the judged scans of all folds of one seed (and repeat) are first put together into one table, so that P
    and the gap are computed over all scans once, not as a mean over folds of a few scans each. A seed that lacks a
    fold is left out: its P would be over other scans. Folds that judge the very same scans (a fixed test split) are
    replicates of their own.

    Raises:
        StudyError: no run is finished, or the runs do not have the same classes and groups.
    """
    tables: dict[str, Predictions] = {}
    problems: list[str] = []
    for run in study.runs:
        if run.status != "finished":
            continue
        try:
            tables[run.id] = _evaluation(run.output_dir / study.reported_split / "evaluation")
        except (UserError, OSError, KeyError, TypeError) as error:
            text = " ".join(str(error).replace(f"{study.folder}/", "").split())
            problems.append(f"{run.id} is called finished, but its evaluation cannot be used: {text}")
    if not tables:
        raise StudyError("\n  ".join([f"{study.folder}: no finished run yet ({status_text(study)})", *problems[:5]]))
    _alike(tables)
    groups = replicate_groups(study, study.runs)
    found = {key: replicates_of(study, runs, tables) for key, runs in groups.items()}
    planned = dict.fromkeys(study.labels, 0)
    replicates: dict[str, tuple[Replicate, ...]] = dict.fromkeys(study.labels, ())
    for key, made in found.items():
        label = key[0]
        planned[label] += len(groups[key]) if len(made) > 1 else 1
        replicates[label] += made
    return Results(
        study,
        tables,
        replicates,
        planned,
        study.synthetic or any(table.synthetic for table in tables.values()),
        tuple(problems),
    )


def status_text(study: Study) -> str:
    """How many runs are finished, failed, pending and running: ``12 of 15 runs finished, 1 failed, 2 pending``."""
    counts = pd.Series([run.status for run in study.runs]).value_counts()
    others = [f"{counts[status]} {status}" for status in STATUSES[1:] if status in counts]
    return ", ".join([f"{counts.get('finished', 0)} of {len(study.runs)} runs finished", *others])


def replicate_groups(study: Study, runs: Sequence[StudyRun]) -> dict[tuple[Any, ...], list[StudyRun]]:
    """Runs that make one replicate together, by label, seed, repeat, and device where one seed ran on several."""
    keys = pd.Series([(run.label, run.seed, run.repeat, run.fold) for run in study.runs])
    several = bool(keys.duplicated().any())
    found: dict[tuple[Any, ...], list[StudyRun]] = {}
    for run in runs:
        found.setdefault((run.label, run.seed, run.repeat, run.device if several else None), []).append(run)
    return found


def replicates_of(
    study: Study, runs: Sequence[StudyRun], tables: Mapping[str, Predictions], label: str = ""
) -> tuple[Replicate, ...]:
    """The replicates of the runs of one configuration and seed: one, one a fold that judges the same scans, or none.

    Args:
        study: says how many folds there are.
        runs: of one configuration, seed and repeat.
        tables: predictions by id of the run.
        label: instead of that of the runs.

    Raises:
        StudyError: the folds share some scans, but not all.
    """
    done = [run for run in runs if run.id in tables]
    if not done:
        return ()
    first, parts = done[0], [tables[run.id] for run in done]

    def made(table: Predictions, of: Sequence[StudyRun], fold: int | None = None) -> Replicate:
        devices = ", ".join(dict.fromkeys(run.device or UNKNOWN_DEVICE for run in of))
        return Replicate(label or first.label, first.seed, first.repeat, devices, table, numbers_of(table), fold)

    folds = {run.fold for run in study.runs} - {None}
    scans = [set(part.scan.tolist()) for part in parts]
    if len(parts) > 1 and all(part == scans[0] for part in scans):
        return tuple(made(part, [run], run.fold) for part, run in zip(parts, done, strict=True))
    if sum(map(len, scans)) > len(set().union(*scans)):
        raise StudyError(f"{study.folder}: folds of {first.label}, seed {first.seed} judge some scans twice")
    if folds and len(done) < max(len(folds), study.folds):
        return ()
    return (made(pooled(parts), done),)


def numbers_of(table: Predictions) -> dict[str, float]:
    """:func:`~.metrics.fairness_summary` of a table."""
    return fairness_summary(torch.from_numpy(table.confusion()), table.class_names, table.group_names)


def pooled(tables: Sequence[Predictions]) -> Predictions:
    """Tables of different scans as one, with neither probabilities nor duplicates.

    Args:
        tables: of the same classes and groups.
    """
    return replace(
        tables[0],
        scan=np.concatenate([table.scan for table in tables]),
        label=np.concatenate([table.label for table in tables]),
        prediction=np.concatenate([table.prediction for table in tables]),
        group=np.concatenate([table.group for table in tables]),
        probabilities=None,
        synthetic=any(table.synthetic for table in tables),
    )


def _evaluation(folder: Path) -> Predictions:
    metrics = optional_json(folder / "metrics.json")
    if metrics is None:
        raise EvidenceError(f"{folder} holds no evaluation (metrics.json is missing)")
    table = load_predictions(folder / "predictions.csv", with_probabilities=False)
    if table.confusion().tolist() != metrics["confusion"]:
        raise EvidenceError(f"{folder}: predictions.csv and metrics.json are not of the same predictions")
    return table


def _alike(tables: Mapping[str, Predictions]) -> None:
    (first, reference), *others = tables.items()
    for name, table in others:
        for what in ("class_names", "group_names", "group_by"):
            mine, theirs = getattr(table, what), getattr(reference, what)
            if mine != theirs:
                kind = what.replace("_names", "").replace("group_by", "group column")
                raise StudyError(f"run {name} has the {kind}s {', '.join(mine)}; run {first} has {', '.join(theirs)}")


# ---------------------------------------------------------------------------------------------------------------------
# beside the judged scans
# ---------------------------------------------------------------------------------------------------------------------
def read_history(run: StudyRun) -> pd.DataFrame | None:
    """Columns ``epoch``, ``metric``, ``value`` of a training; None without."""
    return optional_table(run.output_dir / "history.csv", ("epoch", "metric", "value"))


def score_on_choosing_scans(run: StudyRun) -> float | None:
    """P of a run's best epoch on the scans that chose it (its val split); None when it left no note of it."""
    metrics = optional_json(run.output_dir / "val" / "metrics.json")
    if metrics is not None:
        return float(metrics["metrics"]["score"])
    history = read_history(run)
    scores = None if history is None else history.loc[history["metric"] == "val_score", "value"].dropna()
    return None if scores is None or scores.empty else float(scores.max())


def read_cells(results: Results) -> pd.DataFrame | None:
    """Scans of each split, class and group of the study's cohort (columns ``split``, ``label``, ``group``, ``n``).

    With folds the splits differ from run to run, so all scans are counted together. None when no evaluation noted it.
    """
    study = results.study
    for run in (run for run in study.runs if run.id in results.tables):
        cells = optional_table(
            run.output_dir / study.reported_split / "evaluation" / "cells.csv", ("split", "label", "group", "n")
        )
        if cells is not None and run.fold is None:
            return cells
        if cells is not None:
            together = cells.groupby(["label", "group"], sort=False, as_index=False)["n"].sum()
            return together.assign(split="all")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# quoted
# ---------------------------------------------------------------------------------------------------------------------
@cache
def quoted_paper() -> Mapping[str, Any]:
    """The paper's printed Tables 1 and 2 with their source; quoted, not computed here."""
    return json.loads(Path(__file__).with_name("quoted_paper.json").read_text(encoding="utf-8"))


def quoted_row(label: str, alpha: float | None) -> dict[str, float] | None:
    """The paper's printed numbers for a configuration; None when it is none of the paper's.

    Args:
        label: of the configuration, such as ``LA+CVaR alpha 0.8`` or ``CE``.
        alpha: of CVaR; None where there is none.

    Returns:
        ``f1_male``, ``f1_female``, ``score`` and ``abs_gap`` as printed.
    """
    for row in quoted_paper()["table1"]["rows"]:
        same = (alpha is None) == (row["alpha"] is None) and (alpha is None or abs(alpha - row["alpha"]) < 1e-9)
        if same and _plain_label(label) in map(_plain_label, (row["configuration"], *row["also"])):
            return {key: row[key] for key in ("f1_male", "f1_female", "score", "abs_gap")}
    return None


def _plain_label(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", GRADIENT.sub("", ALPHA.sub("", label)).lower())


def quoted_numbers(results: Results) -> dict[str, Mapping[str, float]]:
    """Numbers of others beside the study's configurations, by label: the study's own quotes, else the paper's."""
    study = results.study
    if study.quoted is not None:
        return {label: study.quoted[label] for label in study.labels if label in study.quoted}
    if list(results.any_table.group_names) != quoted_paper()["groups"]:
        return {}
    first = {run.label: run for run in reversed(study.runs)}
    found = {label: quoted_row(label, first[label].alpha) for label in study.labels}
    return {label: row for label, row in found.items() if row is not None}
