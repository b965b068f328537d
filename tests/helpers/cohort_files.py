"""Cohort files with one scan in every cell."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.data.cohort_checks import CohortError

CLASSES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")


SEXES = ("male", "female")


def write_rows(folder: Path, rows: list[dict[str, str]], name: str = "cohort.csv") -> Path:
    """A cohort file of these rows, and a folder for every scan."""
    for row in rows:
        if row["scan"]:
            (folder / row["scan"]).mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def full_rows(classes=CLASSES, groups=SEXES, splits=("train", "val"), column="sex") -> list[dict[str, str]]:
    """One scan in every cell."""
    cells = [(split, label, group) for split in splits for label in classes for group in groups]
    return [
        {"scan": f"s{index}", "label": label, column: group, "split": split, "patient": f"PAT{index}"}
        for index, (split, label, group) in enumerate(cells)
    ]


def load(path: Path, **options):
    return load_cohort(path, **({"class_names": CLASSES, "group_names": SEXES} | options))


def message(path: Path, **options) -> str:
    with pytest.raises(CohortError) as caught:
        load(path, **options)
    return str(caught.value)
