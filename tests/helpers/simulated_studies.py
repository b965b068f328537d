"""Study folders made by simulation: what a runner leaves, with predictions drawn at a given skill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from fairlung.pipeline.evaluation.predictions import load_predictions

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
SEXES = ("male", "female")
DRAWS = 300
SWEEP: dict[str, dict[str, Any]] = {
    "CE": {"skill": (0.75, 0.6)},
    "LA+CVaR alpha 0.7": {"skill": (0.72, 0.72), "alpha": 0.7, "system": "la_cvar", "val_score": 0.6},
    "LA+CVaR alpha 0.8": {"skill": (0.78, 0.8), "alpha": 0.8, "system": "la_cvar", "val_score": 0.8},
}


def cohort(classes: Sequence[str], groups: Sequence[str], per_cell: int, prefix: str = "scan") -> pd.DataFrame:
    cells = [(name, group) for name in classes for group in groups for _ in range(per_cell)]
    table = pd.DataFrame(cells, columns=["label", "sex"])
    table.insert(0, "scan", [f"{prefix}{i:04d}" for i in range(len(table))])
    return table


def predicted(
    scans: pd.DataFrame, classes: Sequence[str], skill: Mapping[str, float], rng: np.random.Generator
) -> pd.DataFrame:
    """Each scan is right with the skill of its group; else another class is said."""
    right = rng.random(len(scans)) < scans["sex"].map(skill).to_numpy()
    label = pd.Index(classes).get_indexer(pd.Index(scans["label"]))
    other = (label + rng.integers(1, len(classes), len(scans))) % len(classes)
    return scans.assign(prediction=np.array(classes)[np.where(right, label, other)])


def write_run(
    folder: Path,
    table: pd.DataFrame,
    classes: Sequence[str],
    groups: Sequence[str],
    split: str,
    synthetic: bool,
    val_score: float,
    rng: np.random.Generator,
    cells: pd.DataFrame | None = None,
) -> None:
    """The output_dir of one run: an evaluation, its best epoch's val/metrics.json and history.csv."""
    evaluation = folder / split / "evaluation"
    evaluation.mkdir(parents=True)
    table = table.assign(synthetic="yes") if synthetic else table
    table.to_csv(evaluation / "predictions.csv", index=False)
    confusion = load_predictions(evaluation / "predictions.csv", classes, groups).confusion()
    metrics = {"split": split, "class_names": list(classes), "group_names": list(groups)}  # no picture: it takes long
    (evaluation / "metrics.json").write_text(json.dumps(metrics | {"confusion": confusion.tolist()}))
    if cells is not None:
        cells.to_csv(evaluation / "cells.csv", index=False)
    (folder / "val").mkdir(exist_ok=True)
    (folder / "val" / "metrics.json").write_text(json.dumps({"metrics": {"score": val_score}}))
    epochs = np.arange(1, 13)
    score = val_score - 0.4 * np.exp(-epochs / 3) + rng.normal(0, 0.02, len(epochs))
    curves = {"val_score": score, "val_gap": 0.25 * np.exp(-epochs / 5) + rng.normal(0, 0.03, len(epochs))}
    curves["train_loss"] = np.exp(-epochs / 6)
    history = pd.concat(
        [pd.DataFrame({"epoch": epochs, "metric": name, "value": values}) for name, values in curves.items()]
    )
    history.to_csv(folder / "history.csv", index=False)


def write_study(
    folder: Path,
    configurations: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] = (1, 2, 3),
    folds: int = 0,
    repeats: int = 1,
    classes: Sequence[str] = CLASSES,
    groups: Sequence[str] = SEXES,
    per_cell: int = 15,
    reported_split: str | None = None,
    synthetic: bool = False,
    devices: Sequence[str | None] = ("cpu",),
    seed_spread: float = 0.02,
    **study: Any,
) -> Path:
    """A finished study.

    Args:
        folder: of the study.
        configurations: label -> ``skill`` (of each group, in their order), and optionally ``system``, ``alpha``,
            ``status``, ``reason``, ``val_score``.
        folds: outer folds; 0 gives every run all scans.
        devices: each run is made on each of them.
        seed_spread: standard deviation of the skill between runs.
        study: other entries of study.json.
    """
    rng = np.random.default_rng(0)
    scans = cohort(classes, groups, per_cell)
    split = reported_split or ("test" if folds else "val")
    counts = scans.groupby(["label", "sex"], sort=False).size().reset_index(name="n").rename(columns={"sex": "group"})
    cells = pd.concat([counts.assign(split=name)[["split", "label", "group", "n"]] for name in ("train", split)])
    runs = []
    for label, made in configurations.items():
        for seed in seeds:
            for repeat in range(repeats) if folds else [None]:
                for device in devices:
                    shift = rng.normal(0, seed_spread)
                    skill = {g: float(np.clip(s + shift, 0, 1)) for g, s in zip(groups, made["skill"], strict=True)}
                    table = predicted(scans, classes, skill, rng)
                    fold_of = np.random.default_rng(repeat or 0).permutation(len(scans)) % max(folds, 1)
                    for fold in range(folds) if folds else [None]:
                        name = "-".join(str(part) for part in (len(runs), f"s{seed}", fold) if part is not None)
                        status = made.get("status", "finished")
                        runs.append(
                            {"id": name, "system": made.get("system", label), "label": label, "seed": seed}
                            | {"alpha": made.get("alpha"), "fold": fold, "repeat": repeat, "device": device}
                            | {"status": status, "reason": made.get("reason", ""), "output_dir": f"runs/{name}"}
                        )
                        if status == "finished":
                            part = table if fold is None else table[fold_of == fold]
                            val_score = made.get("val_score", np.mean(made["skill"])) + rng.normal(0, 0.01)
                            write_run(folder / "runs" / name, part, classes, groups, split, synthetic, val_score, rng,
                                      cells)  # fmt: skip
    record = {
        "name": "a study", "synthetic": synthetic, "protocol": "nested" if folds else "given", "folds": folds,
        "repeats": repeats, "reported_split": split,
        "chosen_on": "inner validation folds" if folds else "the val split",
        "judged_on": "the outer folds" if folds else f"the {split} split", "warnings": [], "runs": runs,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(record | study))
    return folder


def runs_of(study: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads((study / "study.json").read_text())["runs"])


def change(study: Path, edit: Callable[[dict[str, Any]], None], to: Path) -> Path:
    """A copy of a study with another study.json."""
    shutil.copytree(study, to)
    record = json.loads((to / "study.json").read_text())
    edit(record)
    (to / "study.json").write_text(json.dumps(record))
    return to


def macro_f1(table: pd.DataFrame, classes: tuple[str, ...] = CLASSES) -> float:
    return float(f1_score(table["label"], table["prediction"], labels=list(classes), average="macro", zero_division=0))


def by_sklearn(study: Path, label: str, split: str) -> pd.DataFrame:
    """Numbers of each seed from its prediction files put together."""
    runs = runs_of(study)
    rows = []
    for _, group in runs[runs["label"] == label].groupby("seed"):
        files = [study / folder / split / "evaluation" / "predictions.csv" for folder in group["output_dir"]]
        table = pd.concat([pd.read_csv(file) for file in files])
        male, female = (macro_f1(table[table["sex"] == sex]) for sex in SEXES)
        rows.append({"f1_male": male, "f1_female": female, "score": (male + female) / 2})
        rows[-1] |= {"gap": male - female, "abs_gap": abs(male - female)}
    return pd.DataFrame(rows)


def without_group(study: Path, group: str, split: str, groups: Sequence[str], fold: int | None = None) -> None:
    """Take the scans of a group out of what judges."""
    runs = runs_of(study)
    for output in runs.loc[runs["fold"] == fold if fold is not None else slice(None), "output_dir"]:
        folder = study / output / split / "evaluation"
        table = pd.read_csv(folder / "predictions.csv")
        table[table["sex"] != group].to_csv(folder / "predictions.csv", index=False)
        metrics = json.loads((folder / "metrics.json").read_text())
        confusion = load_predictions(folder / "predictions.csv", CLASSES, groups).confusion()
        (folder / "metrics.json").write_text(json.dumps(metrics | {"confusion": confusion.tolist()}))
