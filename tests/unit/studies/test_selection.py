"""Alpha is chosen where it chose and scored where it is judged."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_studies import (
    DRAWS,
    SEXES,
    change,
    macro_f1,
    runs_of,
    write_study,
)

from fairlung.pipeline.studies.selection import expected_best
from fairlung.pipeline.studies.summary import study_tables
from fairlung.pipeline.studies.tables import (
    optimism_text,
)


@pytest.mark.parametrize("choices", [1, 2, 6, 30])
def test_the_expected_best_of_equal_configurations(choices):
    draws = np.random.default_rng(0).normal(0, 0.036, (200_000, choices)).max(1)
    assert expected_best(choices, 0.036) == pytest.approx(draws.mean(), abs=5e-4)


def test_alpha_is_chosen_where_it_chose_and_scored_where_it_is_judged(nested_study, nested_tables, nested_found):
    tables = nested_found
    (selection,) = tables.selections
    runs = runs_of(nested_study)
    sweep = runs[runs["alpha"].notna()].copy()
    sweep["val"] = [
        json.loads((nested_study / folder / "val" / "metrics.json").read_text())["metrics"]["score"]
        for folder in sweep["output_dir"]
    ]
    chosen = sweep.loc[sweep.groupby(["seed", "fold"])["val"].idxmax()]
    found = selection.choices.sort_values(["seed", "fold"])
    assert list(found["alpha"]) == list(chosen["alpha"]) and list(found["score_choosing"]) == list(chosen["val"])
    scores = []
    for _, group in chosen.groupby("seed"):
        parts = [pd.read_csv(nested_study / f / "test" / "evaluation" / "predictions.csv") for f in group["output_dir"]]
        table = pd.concat(parts)
        scores.append(np.mean([macro_f1(table[table["sex"] == sex]) for sex in SEXES]))
    assert selection.row is not None and selection.row.values["score"] == pytest.approx(scores)
    assert selection.name == "LA+CVaR, alpha chosen" and selection.lacking == 0
    assert "LA+CVaR, alpha chosen" in (nested_tables / "table1.csv").read_text()
    assert len(pd.read_csv(nested_tables / "selection.csv")) == 9
    text = optimism_text(tables)
    assert not text.startswith("Optimistic") and "inner validation folds" in text and "the outer folds" in text


def test_the_highest_score_on_the_choosing_scans_wins_even_where_it_judges_worse(tmp_path):
    systems = {
        f"X alpha {alpha}": {"skill": (skill, skill), "alpha": alpha, "system": "x", "val_score": val}
        for alpha, skill, val in ((0.5, 0.9, 0.2), (0.9, 0.5, 0.7))
    }
    folder = write_study(tmp_path / "s", systems, folds=2, per_cell=8)
    (selection,) = study_tables([folder], resamples=DRAWS).selections
    assert set(selection.choices["alpha"]) == {0.9}
    assert selection.row is not None and selection.row.estimates["score"].value < 0.7


def test_without_val_metrics_the_history_tells_the_choice(nested_study, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(nested_study, folder)
    for path in folder.glob("runs/*/val/metrics.json"):
        path.unlink()
    (selection,) = study_tables([folder], resamples=DRAWS).selections
    history = pd.read_csv(folder / "runs" / runs_of(folder).query("alpha == 0.8")["id"].iloc[0] / "history.csv")
    best = history.loc[history["metric"] == "val_score", "value"].max()
    assert selection.choices["score_choosing"].iloc[0] == pytest.approx(best)


def test_a_missing_alpha_leaves_the_choice_out(nested_study, tmp_path):
    def lose(record: dict[str, Any]) -> None:
        next(run for run in record["runs"] if run["alpha"] == 0.7)["status"] = "failed"

    (selection,) = study_tables([change(nested_study, lose, tmp_path / "s")], resamples=DRAWS).selections
    assert selection.lacking == 1 and len(selection.choices) == 8
    assert selection.row is not None and (selection.row.replicates, selection.row.planned) == (2, 3)
