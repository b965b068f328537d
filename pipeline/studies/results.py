"""The finished part of a study: the predictions of each seed as one table, its numbers, its learning curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..common import run_folder
from ..common.errors import UserError
from ..evaluation.metrics import fairness_summary
from ..evaluation.predictions import Predictions, load_predictions
from ..reports.evidence import EvidenceError, optional_json, optional_table
from .record import Study, StudyError, StudyRun, status_text

UNKNOWN_DEVICE = "unknown device"


@dataclass(frozen=True)
class Replicate:
    """One configuration trained once: a run, or the runs of all folds with their judged scans put together."""

    label: str
    seed: int
    repeat: int | None  # of the k-fold
    device: str  # of the runs; several are joined by a comma
    predictions: Predictions  # on all scans that judge
    numbers: Mapping[str, float]  # of fairness_summary
    fold: int | None = None  # where each fold is a replicate of its own


@dataclass(frozen=True)
class Results:
    study: Study
    tables: Mapping[str, Predictions]  # of each finished run, by its id
    replicates: Mapping[str, tuple[Replicate, ...]]  # by label, in the study's order; () of a label without any
    planned: Mapping[str, int]  # replicates that were planned, by label
    synthetic: bool  # the study or a table says that scans are phantoms
    problems: tuple[str, ...]  # finished runs that cannot be used, in words

    @property
    def any_table(self) -> Predictions:
        """One of the tables: all have the same classes and groups."""
        return next(iter(self.tables.values()))

    @property
    def devices(self) -> list[str]:
        runs = (run for run in self.study.runs if run.id in self.tables)
        return list(dict.fromkeys(run.device or UNKNOWN_DEVICE for run in runs))

    @property
    def judged(self) -> Predictions:
        """All the scans that judge, as one of the replicates predicts them; there must be one."""
        return next(replicate.predictions for made in self.replicates.values() for replicate in made)


def read_results(study: Study) -> Results:
    """The evaluations of a study's finished runs.

    With folds, the judged scans of all folds of one seed (and repeat) are one table, so that P and the gap are computed
    over all scans once, not as a mean over small folds. A seed that lacks a fold is left out: its P would be over other
    scans. Folds that judge the very same scans (a fixed test split) are replicates of their own.

    Raises:
        StudyError: no run is finished, or the runs do not have the same classes and groups.
    """
    tables: dict[str, Predictions] = {}
    problems = []
    for run in (run for run in study.runs if run.status == "finished"):
        try:
            tables[run.id] = _evaluation(run.output_dir / study.reported_split / "evaluation")
        except (UserError, OSError, KeyError, TypeError) as error:
            said = " ".join(str(error).replace(f"{study.folder}/", "").split())
            problems.append(f"{run.id} is called finished, but its evaluation cannot be used: {said}")
    if not tables:
        raise StudyError("\n  ".join([f"{study.folder}: no finished run yet ({status_text(study)})", *problems[:5]]))
    _alike(tables)
    planned = dict.fromkeys(study.labels, 0)
    replicates: dict[str, tuple[Replicate, ...]] = dict.fromkeys(study.labels, ())
    for (label, *_), runs in replicate_groups(study, study.runs).items():
        made = replicates_of(study, runs, tables)
        planned[label] += len(runs) if len(made) > 1 else 1
        replicates[label] += made
    synthetic = study.synthetic or any(table.synthetic for table in tables.values())
    return Results(study, tables, replicates, planned, synthetic, tuple(problems))


def replicate_groups(study: Study, runs: Sequence[StudyRun]) -> dict[tuple[Any, ...], list[StudyRun]]:
    """Runs that make one replicate together, by label, seed, repeat, and device where one seed ran on several."""
    several = len({(run.label, run.seed, run.repeat, run.fold) for run in study.runs}) < len(study.runs)
    found: dict[tuple[Any, ...], list[StudyRun]] = {}
    for run in runs:
        found.setdefault((run.label, run.seed, run.repeat, run.device if several else None), []).append(run)
    return found


def replicates_of(
    study: Study, runs: Sequence[StudyRun], tables: Mapping[str, Predictions], label: str = ""
) -> tuple[Replicate, ...]:
    """The replicates of the finished runs of one configuration, seed and repeat: one, one a fold that judges the same
    scans, or none. ``label`` replaces that of the runs; StudyError when the folds share some scans, but not all.
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
    whole = pooled(parts)
    if study.sites:
        whole = replace(whole, site=np.repeat([run.fold for run in done], [len(part.scan) for part in parts]))
    return (made(whole, done),)


def numbers_of(table: Predictions) -> dict[str, float]:
    return fairness_summary(torch.from_numpy(table.confusion()), table.class_names, table.group_names)


def pooled(tables: Sequence[Predictions]) -> Predictions:
    """Tables of different scans, of the same classes and groups, as one with neither probabilities nor duplicates.

    Their numbers of patients are their own: no patient is in two, as folds never part one.
    """
    names = ("scan", "label", "prediction", "group")
    columns: dict[str, Any] = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    parts = [table.patient for table in tables if table.patient is not None]
    if len(parts) == len(tables):
        starts = np.cumsum([0, *(part.max() + 1 for part in parts[:-1])])
        columns["patient"] = np.concatenate([part + start for part, start in zip(parts, starts, strict=True)])
    else:
        columns["patient"] = None
    return replace(tables[0], **columns, probabilities=None, synthetic=any(table.synthetic for table in tables))


def one_answer_notes(results: Results) -> list[str]:
    """Of each configuration with runs that give all scans of their fold one class, that it has them.

    Where folds differ in their classes, as sites do, such answers put together look as if the network told classes
    apart.
    """
    notes = []
    for label in results.study.labels:
        tables = [results.tables[run.id] for run in results.study.runs if run.label == label and run.fold is not None
                  and run.id in results.tables]  # fmt: skip
        if one := sum(np.ptp(table.prediction) == 0 < np.ptp(table.label) for table in tables):
            text = (
                f"{label}: {one} of {len(tables)} runs give one class to all scans of their fold. Over all folds P is "
            )
            notes.append(f"{text}then higher than within them where folds differ in their classes.")
    return notes


def _evaluation(folder: Path) -> Predictions:
    metrics = optional_json(folder / run_folder.METRICS)
    if metrics is None:
        raise EvidenceError(f"{folder} holds no evaluation (metrics.json is missing)")
    table = load_predictions(folder / run_folder.PREDICTIONS, with_probabilities=False)
    if table.confusion().tolist() != metrics["confusion"]:
        raise EvidenceError(f"{folder}: predictions.csv and metrics.json are not of the same predictions")
    return table


def _alike(tables: Mapping[str, Predictions]) -> None:
    (first, reference), *others = tables.items()
    for name, table in others:
        for what, said in (("class_names", "classes"), ("group_names", "groups"), ("group_by", "group columns")):
            mine, theirs = getattr(table, what), getattr(reference, what)
            if mine != theirs:
                raise StudyError(f"run {name} has the {said} {', '.join(mine)}; run {first} has {', '.join(theirs)}")


def read_history(run: StudyRun) -> pd.DataFrame | None:
    """Columns ``epoch``, ``metric``, ``value`` of a training; None without."""
    return optional_table(run.output_dir / run_folder.HISTORY, ("epoch", "metric", "value"))


def score_on_choosing_scans(run: StudyRun) -> float | None:
    """P of a run's best epoch on the scans that chose it (its val split); None when it left no note of it."""
    metrics = optional_json(run.output_dir / "val" / run_folder.METRICS)
    if metrics is not None:
        return float(metrics["metrics"]["score"])
    history = read_history(run)
    scores = None if history is None else history.loc[history["metric"] == "val_score", "value"].dropna()
    return None if scores is None or scores.empty else float(scores.max())


def read_cells(results: Results) -> pd.DataFrame | None:
    """Scans of the study's cohort: columns ``split``, ``label``, ``group``, ``n``; None when no evaluation noted them.

    The splits of folds differ from run to run and are counted together.
    """
    study = results.study
    for run in (run for run in study.runs if run.id in results.tables):
        path = run.output_dir / study.reported_split / "evaluation" / run_folder.CELLS
        cells = optional_table(path, ("split", "label", "group", "n"))
        if cells is not None:
            together = cells.groupby(["label", "group"], sort=False, as_index=False)["n"].sum().assign(split="all")
            return cells if run.fold is None else together
    return None
