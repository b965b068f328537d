"""Tables of a study: the numbers of other libraries, bold only where it is deserved, and nothing hidden."""

from __future__ import annotations

import csv
import gc
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from markdown_it import MarkdownIt
from scipy import stats
from simulated_studies import CLASSES, SEXES, write_study
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.compare import compare
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.reports.document import Table
from fairlung.pipeline.reports.latex import FIT, escape_latex, latex_table
from fairlung.pipeline.studies.figures import curves_figure, pareto_front, study_trade_off_figure
from fairlung.pipeline.studies.numbers import StudyTables, expected_best, fair_gap, over_seeds, study_tables, tell_best
from fairlung.pipeline.studies.quoted import quoted_row
from fairlung.pipeline.studies.record import StudyError, load_study
from fairlung.pipeline.studies.results import read_results
from fairlung.pipeline.studies.tables import (
    optimism_text,
    selection_tables,
    table_1,
    table_2,
    table_notes,
    write_tables,
)

DRAWS = 300
ROOT = Path(__file__).parents[3]
SWEEP: dict[str, dict[str, Any]] = {
    "CE": {"skill": (0.75, 0.6)},
    "LA+CVaR alpha 0.7": {"skill": (0.72, 0.72), "alpha": 0.7, "system": "la_cvar", "val_score": 0.6},
    "LA+CVaR alpha 0.8": {"skill": (0.78, 0.8), "alpha": 0.8, "system": "la_cvar", "val_score": 0.8},
}
FILES = {
    "index.html", "tables.md", "selection.csv", "selection.md",
    *(f"{name}.{kind}" for name in ("table1", "table2") for kind in ("md", "csv", "tex")),
    *(f"{name}.{kind}" for name in ("figure1", "figure3", "curves") for kind in ("png", "svg")),
}  # fmt: skip


@pytest.fixture(scope="module")
def given_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds on the paper's protocol. Read-only."""
    return write_study(tmp_path_factory.mktemp("given") / "study", SWEEP, per_cell=12)


@pytest.fixture(scope="module")
def nested_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of three outer folds on phantoms, one system failed. Read-only."""
    systems = SWEEP | {"CNN-RNN": {"skill": (0.5, 0.5), "status": "failed", "reason": "CUDA out of memory"}}
    folder = tmp_path_factory.mktemp("nested") / "study"
    return write_study(folder, systems, folds=3, per_cell=12, synthetic=True, warnings=["A cell has 5 scans."])


@pytest.fixture(scope="module")
def nested_tables(nested_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tables")
    write_tables([nested_study], output, resamples=DRAWS)
    return output


@pytest.fixture(scope="module")
def given_found(given_study: Path) -> StudyTables:
    return study_tables([given_study], resamples=DRAWS)


@pytest.fixture(scope="module")
def nested_found(nested_study: Path) -> StudyTables:
    return study_tables([nested_study], resamples=DRAWS)


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> Iterator[None]:
    """statsmodels collects garbage at every adjustment, which takes long over all that is imported here."""
    gc.freeze()
    yield
    gc.unfreeze()


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


# ---------------------------------------------------------------------------------------------------------------------
# numbers
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "split"), [("given_study", "val"), ("nested_study", "test")])
def test_means_and_intervals_are_those_of_scikit_learn_and_scipy(name, split, request):
    folder, tables = request.getfixturevalue(name), request.getfixturevalue(name.replace("study", "found"))
    assert [row.label for row in tables.rows] == list(SWEEP)
    for row in tables.rows:
        expected = by_sklearn(folder, row.label, split)
        assert row.replicates == row.planned == len(expected) == 3 and row.over == "seeds"
        for key in ("f1_male", "f1_female", "score", "gap", "abs_gap"):
            values = expected[key]
            low, high = stats.t.interval(0.95, 2, values.mean(), values.std(ddof=1) / 3**0.5)
            found = row.estimates[key]
            assert sorted(row.values[key]) == pytest.approx(sorted(values))
            assert found.value == pytest.approx(values.mean())
            floor = -1 if key == "gap" else 0
            assert (found.low, found.high) == pytest.approx((max(low, floor), min(high, 1)))


def test_pooled_folds_are_one_table_over_all_scans_not_a_mean_over_folds(nested_study):
    results = read_results(load_study(nested_study))
    replicate = results.replicates["CE"][0]
    assert len(set(replicate.predictions.scan)) == 2 * 4 * 12
    folds = [results.tables[run.id] for run in results.study.runs if run.label == "CE" and run.seed == replicate.seed]
    assert sum(len(part.scan) for part in folds) == 2 * 4 * 12
    assert replicate.numbers["score"] != pytest.approx(np.mean([audit(p, 100, 100).overall.score.value
                                                                for p in folds]), abs=1e-4)  # fmt: skip


def test_one_seed_has_the_audits_interval_and_is_never_bold(tmp_path):
    folder = write_study(tmp_path / "s", {"good": {"skill": (0.99, 0.99)}, "bad": {"skill": (0.3, 0.3)}}, seeds=[42])
    tables = study_tables([folder], resamples=1000)
    row = tables.rows[0]
    (file,) = (folder / runs_of(folder)["output_dir"][0]).glob("val/evaluation/predictions.csv")
    judged = audit(load_predictions(file), resamples=1000).overall.numbers()
    assert row.over == "scans"
    for key in ("score", "gap", "abs_gap"):
        assert row.estimates[key] == pytest.approx(judged[key], abs=0.02)  # other draws of the same bootstrap
    assert table_1(tables).strong == frozenset()
    assert "one seed each" in tables.best[0].verdict.text
    assert any("nothing is known about other seeds" in note for note in table_notes(tables))


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


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_group_without_a_scan_that_judges_is_left_out(tmp_path, seeds):
    groups = (*SEXES, "other")
    systems = {name: {"skill": (skill, 0.7, 0.5)} for name, skill in (("one", 0.8), ("two", 0.7))}
    folder = write_study(tmp_path / "s", systems, seeds=range(seeds), groups=groups, per_cell=8)
    without_group(folder, "other", "val", groups)
    tables = study_tables([folder], resamples=DRAWS)
    for row in tables.rows:
        assert "f1_other" not in row.estimates
        for key, (value, low, high) in row.estimates.items():
            assert low <= value <= high, key
        score, gap = row.estimates["score"], row.estimates["abs_gap"]
        f1 = [np.array(row.values[f"f1_{sex}"]) for sex in SEXES]
        assert score.value == pytest.approx(np.mean(f1)) and score.high > 0.7
        assert gap.value == pytest.approx(np.abs(f1[0] - f1[1]).mean()) and gap.low < 0.3
    assert fair_gap(tables)[1] < 0.3
    assert any("No scan that judges is of group other: no statement" in note for note in table_notes(tables))
    write_tables([folder], resamples=DRAWS)
    without_group(folder, "male", "val", groups)
    with pytest.raises(StudyError, match="judged scans of two groups at least; there are scans of: female"):
        study_tables([folder], resamples=DRAWS)


def test_a_fold_of_one_group_alone_has_no_gap(tmp_path):
    systems = {
        f"X alpha {alpha}": {"skill": (0.9, 0.6), "alpha": alpha, "system": "x"} for alpha in (0.5, 0.9)
    }  # fmt: skip
    folder = write_study(tmp_path / "s", systems, seeds=[1, 2], folds=2, per_cell=8)
    without_group(folder, "female", "test", SEXES, fold=0)
    tables = study_tables([folder], resamples=DRAWS)
    (selection,) = tables.selections
    choices = selection.choices.set_index("fold")
    assert choices.loc[0, ["gap", "abs_gap"]].isna().all(axis=None) and choices.loc[1].notna().all(axis=None)
    (_, shown) = selection_tables(tables)
    assert isinstance(shown, Table) and [row[-2:] == ("\u2013", "\u2013") for row in shown.rows] == [True, False] * 2
    assert selection.row is not None and np.isfinite(selection.row.values["gap"]).all()


def test_an_interval_over_seeds():
    assert over_seeds([0.5, 0.5], "score") == (0.5, 0.5, 0.5)
    assert over_seeds([0.0, 0.2], "abs_gap").low == 0 and over_seeds([0.0, 0.2], "gap").low == -1
    with pytest.raises(ValueError, match="two at least, got 1"):
        over_seeds([0.5], "score")


@pytest.mark.parametrize("choices", [1, 2, 6, 30])
def test_the_expected_best_of_equal_configurations(choices):
    draws = np.random.default_rng(0).normal(0, 0.036, (200_000, choices)).max(1)
    assert expected_best(choices, 0.036) == pytest.approx(draws.mean(), abs=5e-4)


# ---------------------------------------------------------------------------------------------------------------------
# the best
# ---------------------------------------------------------------------------------------------------------------------
def test_a_clear_winner_is_bold_and_the_rule_is_compares(tmp_path):
    systems = {"bad": {"skill": (0.5, 0.5)}, "good": {"skill": (0.95, 0.95)}, "middle": {"skill": (0.7, 0.7)}}
    folder = write_study(tmp_path / "s", systems, seeds=range(6), per_cell=12)
    tables = study_tables([folder], resamples=DRAWS)
    score, gap = tables.best
    assert score.apart and score.label == "good" and [rival["system"] for rival in score.rivals] == ["middle"]
    assert not gap.apart and "cannot be told" in gap.verdict.text
    runs = {label: [r.predictions for r in made] for label, made in tables.results.replicates.items()}
    pair = compare({name: runs[name] for name in ("good", "middle")}, DRAWS, DRAWS).comparisons[0]
    assert score.rivals[0]["difference"] == pair.differences["score"]
    assert score.rivals[0]["p_value"] == pair.tests["score"].p_value
    p = sorted([score.rivals[0]["p_value"], gap.rivals[0]["p_value"]])
    assert score.rivals[0]["p_holm"] == pytest.approx(min(1, 2 * p[0]))  # Holm of the smaller of two
    table = table_1(tables)
    assert table.strong == {(1, table.columns.index("P"))}
    written = write_tables([folder], resamples=DRAWS)
    value = " ".join(table.rows[1][3].split())
    assert f"**{value}**" in (folder / "tables" / "table1.md").read_text()
    assert (folder / "tables" / "table1.tex").read_text().count(r"\bfseries") == 1
    assert (folder / "tables" / "index.html").read_text().count("<td><strong>") == 1
    assert list(pd.read_csv(folder / "tables" / "table1.csv")["best_score"].fillna("")) == ["", "yes", ""]
    assert written.verdicts[0].level == "finding"


def test_a_tie_is_not_bold(tmp_path):
    systems = {name: {"skill": (0.8, 0.8)} for name in ("one", "two", "three")}
    folder = write_study(tmp_path / "s", systems, seeds=range(6), per_cell=12)
    tables = study_tables([folder], resamples=DRAWS)
    assert table_1(tables).strong == frozenset()
    assert [best.verdict.level for best in tables.best] == ["inconclusive", "inconclusive"]
    assert sum("cannot be told" in note for note in table_notes(tables)) == 2


def test_few_seeds_are_said_to_be_too_few(given_found):
    assert "so few seeds cannot tell" in given_found.best[0].verdict.text


def test_a_rival_with_fewer_seeds_than_the_next_is_tested_too(tmp_path):
    systems = {name: {"skill": (s, s)} for name, s in (("good", 0.95), ("middle", 0.8), ("short", 0.6))}
    folder = write_study(tmp_path / "s", systems, seeds=range(6), per_cell=12)

    def stop(record: dict[str, Any]) -> None:
        for run in record["runs"]:
            if run["label"] == "short" and run["seed"] > 0:
                run["status"] = "pending"

    tables = study_tables([change(folder, stop, tmp_path / "half")], resamples=DRAWS)
    assert [rival["system"] for rival in tables.best[0].rivals] == ["middle", "short"]
    assert not tables.best[0].apart and "another, short" in tables.best[0].verdict.text
    table = table_1(tables)
    assert [row[table.columns.index("seeds")] for row in table.rows] == ["6", "6", "1 of 6"]
    assert [row[table.columns.index("interval over")] for row in table.rows] == ["seeds", "seeds", "scans"]


def test_one_configuration_has_no_best(tmp_path):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (0.8, 0.7)}}, per_cell=6)
    assert study_tables([folder], resamples=DRAWS).best == ()
    assert tell_best({}) == ()
    write_tables([folder], resamples=DRAWS)


# ---------------------------------------------------------------------------------------------------------------------
# unfinished, damaged
# ---------------------------------------------------------------------------------------------------------------------
def test_failed_runs_are_counted_and_shown(nested_tables):
    page = (nested_tables / "index.html").read_text()
    assert "27 of 36 runs finished, 9 failed" in page and "CUDA out of memory" in page
    assert "CNN-RNN 3 of 3" in (nested_tables / "table1.md").read_text()
    assert page.index("A cell has 5 scans.") < page.index("Table 1")


def test_a_seed_that_lacks_a_fold_is_left_out_and_counted(nested_study, tmp_path):
    def lose(record: dict[str, Any]) -> None:
        run = next(run for run in record["runs"] if run["label"] == "CE" and run["fold"] == 1)
        run["status"] = "running"

    tables = study_tables([change(nested_study, lose, tmp_path / "s")], resamples=DRAWS)
    row = tables.rows[0]
    assert (row.label, row.replicates, row.planned) == ("CE", 2, 3)
    assert any("CE 1 of 3" in note for note in table_notes(tables))


def test_a_finished_run_without_its_evaluation_is_a_warning(given_study, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(given_study, folder)
    first, second = runs_of(folder)["output_dir"][:2]
    shutil.rmtree(folder / first / "val" / "evaluation")
    table = folder / second / "val" / "evaluation" / "predictions.csv"
    other = pd.read_csv(table)
    other["prediction"] = other["label"]
    other.to_csv(table, index=False)
    results = read_results(load_study(folder))
    assert [text.split()[0] for text in results.problems] == list(runs_of(folder)["id"][:2])
    assert "metrics.json is missing" in results.problems[0]
    assert "not of the same predictions" in results.problems[1]
    assert str(folder) not in "".join(results.problems)
    assert len(results.replicates["CE"]) == 1
    write_tables([folder], tmp_path / "out", resamples=DRAWS)
    assert "metrics.json is missing" in (tmp_path / "out" / "tables.md").read_text()


def test_nothing_finished_is_an_error(tmp_path):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (1, 1), "status": "pending"}})
    with pytest.raises(StudyError, match="no finished run yet .0 of 3 runs finished, 3 pending"):
        study_tables([folder])


def test_no_whole_seed_is_an_error(nested_study, tmp_path):
    def lose(record: dict[str, Any]) -> None:
        for run in record["runs"]:
            run["status"] = "pending" if run["fold"] == 2 else run["status"]

    with pytest.raises(StudyError, match="no seed has all its folds"):
        study_tables([change(nested_study, lose, tmp_path / "s")])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("name"), "no 'name'"),
        (lambda r: r.update(protocol="new"), "protocol must be one of given, nested, final, got 'new'"),
        (lambda r: r.update(folds="3"), "folds must be of type int, got '3'"),
        (lambda r: r.update(synthetic=1), "synthetic must be of type bool"),
        (lambda r: r.update(runs=[]), "no run in it"),
        (lambda r: r["runs"][1].update(status="done"), r"runs\[1\]: status must be one of .*got 'done'"),
        (lambda r: r["runs"][0].update(alpha="0.7"), r"runs\[0\]: alpha must be of type float"),
        (lambda r: r["runs"][0].update(seed=True), "seed must be of type int, got True"),
        (lambda r: r["runs"][0].update(id=r["runs"][1]["id"]), "is there twice"),
        (lambda r: r["runs"][0].update(seed=2), "are the same: CE, seed 2"),
        (lambda r: r.update(quoted={"CE": {"score": "high"}}), "quoted 'CE': score must be"),
        (lambda r: r["runs"].append(3), "must be an object, got 3"),
    ],
)
def test_a_damaged_study_json_is_named(given_study, tmp_path, edit, message):
    folder = tmp_path / "s"
    folder.mkdir()
    record = json.loads((given_study / "study.json").read_text())
    edit(record)
    (folder / "study.json").write_text(json.dumps(record))
    with pytest.raises(StudyError, match=message):
        load_study(folder)


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(StudyError, match=r"it has no study.json"):
        load_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path)


def test_folds_on_one_fixed_test_split_are_replicates_and_shared_scans_an_error(nested_study, tmp_path):
    folder = tmp_path / "fixed"
    shutil.copytree(nested_study, folder)
    runs = runs_of(folder)
    ce = runs[(runs["label"] == "CE") & (runs["seed"] == 1)]
    source = folder / ce["output_dir"].iloc[0] / "test"
    for other in ce["output_dir"].iloc[1:]:
        shutil.rmtree(folder / other / "test")
        shutil.copytree(source, folder / other / "test")
    assert [r.seed for r in read_results(load_study(folder)).replicates["CE"]] == [1, 1, 1, 2, 3]
    last = ce["output_dir"].iloc[2]
    shutil.rmtree(folder / last / "test")
    shutil.copytree(nested_study / last / "test", folder / last / "test")
    with pytest.raises(StudyError, match="judge some scans twice"):
        read_results(load_study(folder))


# ---------------------------------------------------------------------------------------------------------------------
# selection
# ---------------------------------------------------------------------------------------------------------------------
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


def test_the_papers_protocol_is_called_optimistic(given_study, given_found, tmp_path):
    tables = given_found
    text = optimism_text(tables)
    assert text.startswith("Optimistic: epoch and alpha are chosen on the very scans that are reported")
    assert "by 0.025 to 0.046" in text and "by 0.041 to 0.074" in text, text
    spread = np.sqrt(np.mean([np.var(row.values["score"], ddof=1) for row in tables.rows[1:]]))
    (selection,) = tables.selections
    assert selection.optimism == pytest.approx(expected_best(2, spread))
    assert f"expected to look {selection.optimism:.3f} better" in text
    assert all("alpha chosen" not in row[0] for row in table_1(tables).rows)
    write_tables([given_study], tmp_path, resamples=DRAWS)
    page = (tmp_path / "index.html").read_text()
    assert page.index("Optimistic") < page.index("Table 1")


# ---------------------------------------------------------------------------------------------------------------------
# devices
# ---------------------------------------------------------------------------------------------------------------------
def test_devices_of_several_studies_are_joined(tmp_path):
    parts = [
        write_study(tmp_path / name, {"CE": {"skill": (0.8, 0.7)}, name: {"skill": (1, 1)}}, seeds, per_cell=8,
                    devices=[name])
        for name, seeds in (("A100", (1, 2, 3)), ("L4", (2, 3, 4)))
    ]  # fmt: skip
    found = study_tables(parts, resamples=DRAWS).devices.set_index(["configuration", "device"])
    assert list(found.index) == [
        ("CE", "A100"), ("CE", "L4"), ("CE", "L4 minus A100"), ("A100", "A100"), ("L4", "L4"),
    ]  # fmt: skip
    assert list(found["seeds"]) == [3, 3, 2, 3, 3]
    values = [by_sklearn(part, "CE", "val").iloc[common] for part, common in zip(parts, ([1, 2], [0, 1]), strict=True)]
    difference = found.loc[("CE", "L4 minus A100")]
    for key in ("score", "gap", "f1_male"):
        assert difference[key] == pytest.approx(values[1][key].mean() - values[0][key].mean())
    assert difference["score_low"] <= difference["score"] <= difference["score_high"]
    assert 0 < difference["p_score"] <= 1
    with pytest.raises(StudyError, match="is it the same study twice"):
        study_tables([parts[0], shutil.copytree(parts[0], tmp_path / "copy")], resamples=DRAWS)
    other = change(parts[1], lambda r: r.update(protocol="nested"), tmp_path / "nested")
    with pytest.raises(StudyError, match="do not belong side by side"):
        study_tables([parts[0], other], resamples=DRAWS)


def test_devices_within_one_study_and_one_device_alone(tmp_path, given_found):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (0.8, 0.7)}}, (1, 2), per_cell=8, devices=("A100", None))
    tables = study_tables([folder], resamples=DRAWS)
    assert list(tables.devices["device"]) == ["A100", "unknown device", "unknown device minus A100"]
    assert tables.rows[0].replicates == 4
    (note,) = (note for note in table_notes(tables) if "several devices (A100, unknown device)" in note)
    assert "One seed on two devices counts as two" in note
    table, notes = table_2(given_found)
    assert len(table.rows) == 3 and "of one device (cpu)" in notes[0]


def test_folds_that_are_replicates_are_paired_fold_by_fold_over_devices(tmp_path):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (0.8, 0.7)}}, (1, 2, 3), per_cell=8, devices=("A100", "L4"))

    def as_folds(record: dict[str, Any]) -> None:
        record["folds"] = 3
        for run in record["runs"]:
            run.update(fold=run["seed"], seed=1)
            if run["device"] == "L4" and run["fold"] == 2:
                run["status"] = "failed"

    tables = study_tables([change(folder, as_folds, tmp_path / "folds")], resamples=DRAWS)
    assert list(tables.devices["seeds"]) == [3, 2, 2]
    runs = {(r.device, r.fold): r.numbers["score"] for r in tables.results.replicates["CE"]}
    by_hand = np.mean([runs["L4", fold] - runs["A100", fold] for fold in (1, 3)])
    assert tables.devices["score"].iloc[2] == pytest.approx(by_hand)
    # of the choices of 2 among 4 runs; n x n pairs would give far smaller p
    assert tables.devices["p_score"].iloc[2] >= 2 / 6


def test_other_scans_on_another_device_are_an_error(tmp_path):
    parts = [
        write_study(tmp_path / name, {"CE": {"skill": (0.8, 0.7)}}, (1,), per_cell=size, devices=[name])
        for name, size in (("A100", 8), ("L4", 7))
    ]
    with pytest.raises(StudyError, match="CE on A100 and on L4 cannot be compared: not the same scans"):
        study_tables(parts, resamples=DRAWS)


# ---------------------------------------------------------------------------------------------------------------------
# what is written
# ---------------------------------------------------------------------------------------------------------------------
def test_every_file_is_there_and_says_synthetic(nested_tables):
    assert {path.name for path in nested_tables.iterdir()} == FILES
    for path in nested_tables.iterdir():
        if path.suffix in (".md", ".tex", ".html"):
            assert "SYNTHETIC" in path.read_text(), path.name
        elif path.suffix == ".csv":
            assert set(pd.read_csv(path)["synthetic"]) == {"yes"}, path.name
        elif path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert path.read_bytes().lstrip().startswith(b"<?xml")
    page = (nested_tables / "index.html").read_text()
    assert "http:" not in page and "https:" not in page


def test_real_scans_are_not_called_synthetic(given_study, tmp_path):
    write_tables([given_study], tmp_path, resamples=DRAWS)
    for path in tmp_path.iterdir():
        assert b"SYNTHETIC" not in path.read_bytes() and b"synthetic" not in path.read_bytes(), path.name


def test_figures_of_phantoms_say_so():
    estimates = over_seeds([0.1, 0.2], "abs_gap")
    configurations = [("a", {"score": estimates, "abs_gap": estimates}, {"score": [0.1], "abs_gap": [0.2]})]
    curves = pd.DataFrame({"configuration": "a", "run": "1", "epoch": [1, 2], "metric": "val_score", "value": 0.5})
    for make in (
        lambda flag: study_trade_off_figure(configurations, synthetic=flag),
        lambda flag: curves_figure(curves, SEXES, synthetic=flag),
    ):
        assert "SYNTHETIC" in make(True).get_suptitle()
        assert not make(False).get_suptitle()


def test_a_phantom_table_marks_a_study_that_forgot_to_say_so(nested_study, tmp_path):
    folder = change(nested_study, lambda r: r.update(synthetic=False), tmp_path / "s")
    assert read_results(load_study(folder)).synthetic


def test_the_same_study_gives_the_same_bytes(nested_study, nested_tables, tmp_path):
    write_tables([nested_study], tmp_path, resamples=DRAWS)
    for path in nested_tables.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_markdown_and_html_and_csv_have_the_same_table(nested_tables):
    tokens = MarkdownIt("commonmark").enable("table").parse((nested_tables / "table1.md").read_text())
    texts = ["".join(child.content for child in t.children or []) for t in tokens if t.type == "inline"]
    data = pd.read_csv(nested_tables / "table1.csv")
    page = (nested_tables / "index.html").read_text()
    for line in data.to_dict("records"):
        score = f"{line['score']:.3f} ({line['score_low']:.3f} to {line['score_high']:.3f})"
        assert score in texts and score.replace(" (", "\n(") in page
    assert any("CVaR" in name for name in data["configuration"])


def test_three_groups_have_no_signed_gap(tmp_path):
    sites = ("alder", "birch", "cedar")
    systems = {"CE": {"skill": (0.9, 0.7, 0.5)}, "LA": {"skill": (0.8, 0.8, 0.8)}}
    folder = write_study(tmp_path / "s", systems, per_cell=8, groups=sites, classes=("x", "y"))
    tables = study_tables([folder], resamples=DRAWS)
    assert table_1(tables).columns == ("configuration", *(f"F1 {s}" for s in sites), "P", "|gap|", "seeds")
    for row in tables.rows:
        f1 = np.array([row.values[f"f1_{site}"] for site in sites])
        assert row.values["abs_gap"] == pytest.approx(np.ptp(f1, axis=0))
    write_tables([folder], resamples=DRAWS)
    assert tables.quoted == {}


EVIL = "a_b & 50% $x$ #{}~^\\input{/etc/passwd} <script>alert(1)</script> [x](http://e.org) |y| \u03b1\u00e9\u0436 *z*"


def test_hostile_names_come_out_inert(tmp_path):
    systems = {
        EVIL: {"skill": (0.8, 0.7), "alpha": 0.5, "system": EVIL},
        "[first]\nline": {"skill": (0.7, 0.7), "status": "failed", "reason": EVIL},
    }
    folder = write_study(tmp_path / "s", systems, per_cell=6, classes=("x", "<b>y</b>"), name=EVIL, warnings=[EVIL])
    write_tables([folder], resamples=DRAWS)
    page = (folder / "tables" / "index.html").read_text()
    assert "<script" not in page and "<b>y" not in page
    for name in ("tables.md", "table1.md"):
        tokens = MarkdownIt("commonmark").enable("table").parse((folder / "tables" / name).read_text())
        inline = [child for token in tokens for child in token.children or []]
        assert {token.type for token in [*tokens, *inline]}.isdisjoint(
            {"html_block", "html_inline", "link_open", "em_open"}
        )
    with (folder / "tables" / "table1.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["configuration"] == EVIL
    check_latex((folder / "tables" / "table1.tex").read_text())


def check_latex(text: str) -> None:
    """Balanced, ASCII or accented letters, and no command that the table does not write itself."""
    assert FIT in text
    body = text.partition("\n")[2].replace(FIT, "")  # without the comment, and what makes it as wide as the page
    plain = re.sub(r"\\[\\&%$#_{}]", "", body)  # escaped signs and line ends
    depth = 0
    for sign in plain:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not re.search(r"[%#~^_|<>]", plain.replace("\\textasciitilde", "").replace("tab:table1", ""))
    commands = set(re.findall(r"\\([a-zA-Z]+)", body.replace("\\\\", " ")))
    assert commands <= {
        "begin", "end", "centering", "scriptsize", "setlength", "tabcolsep", "caption", "label", "toprule", "midrule",
        "bottomrule", "shortstack", "tiny", "par", "smallskip", "raggedright", "boldmath", "bfseries", "alpha",
        "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "pm", "times",
        "textendash", "rule", "strut",
    }  # fmt: skip
    columns = re.search(r"\\begin\{tabular\}\{(l?r+)\}", body)
    assert columns is not None
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1


@given(st.text(max_size=30))
def test_any_text_is_safe_in_latex(text):
    shown = escape_latex(text)
    rest = re.sub(r"\\text[a-z]+\{\}|-\{\}|\\[&%$#_{}]|\$(\\alpha|\\pm|\\times|-)\$|\{[\[\]*`']\}", "", shown)
    assert not re.search(r"[\\&%$#_{}~^<>|\[\]*]", rest)
    assert "\n" not in shown and shown.isprintable()
    check_latex(
        latex_table(Table(text, ("a", "b"), ((text, f"1\n{text}"),), frozenset({(0, 1)})), "tab:table1", [text])
    )


def test_letters_that_pdflatex_lacks_are_called_by_their_number():
    assert escape_latex("Zürich, Ørsted, Łódź, Şükrü: 3 \u00b1 1") == "Zürich, Ørsted, Łódź, Şükrü: 3 $\\pm$ 1"
    assert escape_latex("\u2260\u0105\u1ebf\u212a\u80ba") == "[U+2260][U+0105][U+1EBF][U+212A][U+80BA]".translate(
        {91: "{[}", 93: "{]}"}
    )
    assert escape_latex("-0.1 (-0.2 to 0.1), a-1--b") == "$-$0.1 ($-$0.2 to 0.1), a-1-{}-b"


def test_latex_counts_tables_itself(given_found):
    assert re.search(r"\\caption\{a study: mean", latex_table(table_1(given_found), "tab:table1"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_tables_of_awkward_names_compile_and_fit_the_page(tmp_path):
    names = ("a_b%c&d {x} #1 $5 ~ ^ \\cmd", '[odd] *star* `q\' "dq" <a|b>', f"ß \u2260 \u03b1 \u2212 {'wide ' * 30}")
    systems = {name: {"skill": (0.8, 0.7)} for name in names}
    parts = [
        write_study(tmp_path / device, systems, (1, 2), per_cell=6, devices=[f"{device}_{{}} 50% &"], name=names[0])
        for device in ("A100", "L4")
    ]
    write_tables(parts, tmp_path, resamples=DRAWS)
    (tmp_path / "page.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\begin{document}\sloppy"
        r"\input{table1}\input{table2}\ref{tab:table1}\ref{tab:table2}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert made.returncode == 0, made.stdout
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \((.*?)pt", made.stdout)]
    assert max(wide, default=0) < 1


# ---------------------------------------------------------------------------------------------------------------------
# quoted
# ---------------------------------------------------------------------------------------------------------------------
def test_quoted_numbers_are_the_papers_own(data_dir):
    printed = json.loads((data_dir / "paper_cells.json").read_text())["systems"]
    for label, alpha in (("CE", None), ("LA", None), ("CVaR", 0.7), ("LA+CVaR alpha 0.8", 0.8)):
        row = quoted_row(label, alpha)
        expected = printed[label]["printed"]
        assert row is not None and row["score"] == expected["score"]
        assert (row["f1_male"], row["f1_female"]) == (expected["f1_male"], expected["f1_female"])
        assert row["abs_gap"] == pytest.approx(abs(row["f1_male"] - row["f1_female"]), abs=1.5e-4)
        assert row["score"] == pytest.approx((row["f1_male"] + row["f1_female"]) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("label", "alpha", "score"),
    [
        ("CE", None, 0.7413), ("LA only", None, 0.7986), ("CVaR only, alpha 0.7", 0.7, 0.8165),
        ("LA + CVaR (\u03b1 = 0.4)", 0.4, 0.7379), ("LA+CVaR alpha 0.9, published gradient", 0.9, 0.8260),
        ("LA+CVaR alpha 0.95", 0.95, None), ("CVaR", 0.8, None), ("CNN-RNN", None, None), ("focal", None, None),
        ("LA+CVaR", None, None),
    ],
)  # fmt: skip
def test_which_labels_are_quoted(label, alpha, score):
    row = quoted_row(label, alpha)
    assert (None if row is None else row["score"]) == score


def test_a_studys_own_quotes_replace_the_papers(given_study, given_found, tmp_path):
    tables = given_found
    assert set(tables.quoted) == set(SWEEP)
    table = table_1(tables)
    assert table.rows[0][-1] == "0.7413,\n0.1089" and table.columns[-1] == "quoted P, |gap|"
    assert any("not computed here" in note for note in table_notes(tables))
    own = change(given_study, lambda r: r.update(quoted={"CE": {"score": 0.5, "gap": -0.1}}), tmp_path / "own")
    table = table_1(study_tables([own], resamples=DRAWS))
    assert table.columns[-1] == "quoted P, gap (male minus female)"
    assert [row[-1] for row in table.rows] == ["0.5000,\n-0.1000", "\u2013", "\u2013"]
    none = change(given_study, lambda r: r.update(quoted={}), tmp_path / "none")
    assert "quoted" not in " ".join(table_1(study_tables([none], resamples=DRAWS)).columns)


# ---------------------------------------------------------------------------------------------------------------------
# figures
# ---------------------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_pareto_front(points):
    score, gap = zip(*points, strict=True)
    front = pareto_front(score, gap)

    def dominates(i: int, j: int) -> bool:
        return score[i] >= score[j] and gap[i] <= gap[j] and points[i] != points[j]

    everyone = range(len(points))
    assert not any(dominates(i, j) for j in front for i in everyone)
    assert all(any(dominates(i, j) for i in front) for j in everyone if j not in front)
    assert [gap[i] for i in front] == sorted(gap[i] for i in front)
    assert [score[i] for i in front] == sorted(score[i] for i in front)


def configurations(count: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        centre = rng.uniform((0.02, 0.7), (0.15, 0.85))
        values = {"abs_gap": np.abs(centre[0] + rng.normal(0, 0.03, 4)), "score": centre[1] + rng.normal(0, 0.02, 4)}
        estimates = {key: over_seeds(value, key) for key, value in values.items()}
        made.append((f"LA+CVaR alpha 0.{index}", estimates, values))
    return made


@pytest.mark.parametrize("seed", range(4))
def test_labels_of_nine_configurations_lie_on_no_label_and_no_mean(seed):
    shown = configurations(9, seed)
    figure = study_trade_off_figure(shown)
    (ax,) = figure.axes
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts if text.get_text().startswith("LA+")}
    assert set(boxes) == {label for label, *_ in shown}
    names = list(boxes)
    for i, name in enumerate(names):
        assert not any(boxes[name].overlaps(boxes[other]) for other in names[:i]), name
        assert figure.bbox.x0 <= boxes[name].x0 and boxes[name].x1 <= figure.bbox.x1
        for _, estimates, _ in shown:
            x, y = ax.transData.transform((estimates["abs_gap"].value, estimates["score"].value))
            assert not boxes[name].contains(x, y)


def test_learning_curves_draw_the_mean_over_runs():
    rows = [
        {
            "configuration": name,
            "run": f"{name}{run}",
            "epoch": epoch,
            "metric": metric,
            "value": base + run * epoch / 10,
        }
        for name, base in (("a", 0.2), ("b", 0.3))
        for run in range(3)
        for epoch in (1, 2, 3)
        for metric in ("val_score", "val_gap", "train_loss")
    ]
    curves = pd.DataFrame(rows)
    figure = curves_figure(curves, SEXES)
    expected = curves[curves["metric"] == "val_score"].groupby(["configuration", "epoch"])["value"].mean()
    for ax, name in zip(figure.axes[:2], "ab", strict=True):
        line = max(ax.lines, key=lambda line: line.get_linewidth())
        assert ax.get_title() == name and list(line.get_ydata()) == pytest.approx(list(expected[name]))
        assert ax.collections  # the spread
    with pytest.raises(ValueError, match="no val_score; there is train_loss"):
        curves_figure(curves[curves["metric"] == "train_loss"], SEXES)


def test_what_is_not_there_is_left_out_and_said(given_study, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(given_study, folder)
    for path in [*folder.glob("runs/*/history.csv"), *folder.glob("runs/*/val/evaluation/cells.csv")]:
        path.unlink()
    written = write_tables([folder], resamples=DRAWS)
    assert not {"curves.png", "figure1.png"} & {path.name for path in written.paths}
    text = (folder / "tables" / "tables.md").read_text()
    assert "no history.csv" in text and "no cells.csv" in text


# ---------------------------------------------------------------------------------------------------------------------
# the console program
# ---------------------------------------------------------------------------------------------------------------------
def test_the_command(given_study, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    done = CliRunner().invoke(app, ["tables", str(given_study), "-o", str(tmp_path / "out"), "--resamples", "200"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert "LA+CVaR alpha 0.8" in done.output and "index.html" in done.output and "inconclusive:" in done.output
    wrong = CliRunner().invoke(app, ["tables", str(tmp_path)])
    assert wrong.exit_code == 1 and "it has no study.json" in wrong.output


def test_the_quotes_are_packaged():
    assert "quoted_paper.json" in (ROOT / "setup.cfg").read_text()
    assert (ROOT / "pipeline" / "quoted_paper.json").is_file()
