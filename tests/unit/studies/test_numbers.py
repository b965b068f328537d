"""Numbers of a study: those of other libraries, and bold only where it is deserved."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated_studies import (
    DRAWS,
    SEXES,
    SWEEP,
    by_sklearn,
    change,
    runs_of,
    without_group,
    write_study,
)

from fairlung.pipeline.comparison.compare import compare
from fairlung.pipeline.evaluation.audit import audit
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.pipeline.reports.document import Table
from fairlung.pipeline.studies.numbers import make_row, over_seeds, tell_best
from fairlung.pipeline.studies.record import StudyError, load_study
from fairlung.pipeline.studies.results import read_results
from fairlung.pipeline.studies.summary import fair_gap, study_tables
from fairlung.pipeline.studies.tables import (
    selection_tables,
    table_1,
    table_2,
    table_notes,
    write_tables,
)


@pytest.mark.parametrize(("name", "split"), [("given_study", "val"), ("nested_study", "test")])
def test_means_and_intervals_are_those_of_scikit_learn_and_scipy(name, split, request):
    folder, tables = request.getfixturevalue(name), request.getfixturevalue(name.replace("study", "found"))
    assert [row.label for row in tables.rows] == list(SWEEP)
    for row in tables.rows:
        expected = by_sklearn(folder, row.label, split)
        assert row.replicates == row.planned == len(expected) == 3 and row.over == "seeds"
        assert sorted(row.values["abs_gap"]) == pytest.approx(sorted(expected["abs_gap"]))
        size, gap = row.estimates["abs_gap"], row.estimates["gap"]
        assert size.value == abs(gap.value) and size.low == max(0, gap.low, -gap.high)
        assert size.high == max(-gap.low, gap.high)
        for key in ("f1_male", "f1_female", "score", "gap"):
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
    assert "there is one seed only" in tables.best[0].verdict.text
    assert any("nothing is known about other seeds" in note for note in table_notes(tables))


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
        assert gap.value == pytest.approx(np.abs((f1[0] - f1[1]).mean())) and gap.low < 0.3
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
    assert over_seeds([0.0, 0.2], "abs_gap").low == 0 and over_seeds([0.0, 0.2], "gap").low == -1
    for values in ([0.5], [0.5, 0.5]):
        with pytest.raises(ValueError, match=r"two different values at least, got \[0.5"):
            over_seeds(values, "score")


def test_seeds_that_are_all_equal_have_the_interval_over_scans(tmp_path):
    folder = write_study(tmp_path / "s", {"CE": {"skill": (9, 9)}, "LA": {"skill": (0.7, 0.7)}}, per_cell=12)
    tables = study_tables([folder], resamples=DRAWS)
    same, other = tables.rows
    made = tables.results.replicates["CE"]
    assert len(made) == 3 and same.over == "seeds" and set(same.values["score"]) == {1}
    alone = make_row(made[:1], "CE", None, 1, 0.95, DRAWS, 0)
    assert same.estimates == alone.estimates and same.estimates["score"].low < 0.999
    assert other.estimates["score"] == over_seeds(other.values["score"], "score")
    assert sum("the same with all seeds has the interval of the audit" in note for note in table_notes(tables)) == 1


def test_three_groups_have_no_smallest_gap_and_no_difference_between_devices(tmp_path):
    systems = {"fair": {"skill": (0.9, 0.9, 0.9)}, "not": {"skill": (0.9, 0.7, 0.2)}}
    folder = write_study(tmp_path / "s", systems, (1, 2, 3), groups=(*SEXES, "other"), per_cell=8,
                         devices=("A100", "L4"))  # fmt: skip
    tables = study_tables([folder], resamples=DRAWS)
    score, gap = tables.best
    assert score.rivals and gap.rivals == () and gap.verdict.level == "no-statement"
    assert "moves with the noise, so no interval" in gap.verdict.text
    assert tables.rows[0].estimates["abs_gap"].value == pytest.approx(np.mean(tables.rows[0].values["abs_gap"]))
    table, _ = table_2(tables)
    assert [row[-2] == "\u2013" for row in table.rows] == [False, False, True] * 2
    assert table.columns[-2:] == ("|gap|", "p of P")


def test_two_fair_ways_that_differ_in_accuracy_are_not_told_apart_in_fairness(tmp_path):
    systems = {"good": {"skill": (0.98, 0.98)}, "bad": {"skill": (0.5, 0.5)}}
    folder = write_study(tmp_path / "s", systems, seeds=range(10), per_cell=12)
    tables = study_tables([folder], resamples=DRAWS)
    good, bad = (np.mean(row.values["abs_gap"]) for row in tables.rows)
    assert bad > 2 * good  # the mean of |gap| grows with the noise
    score, gap = tables.best
    assert score.apart and not gap.apart and gap.verdict.level == "inconclusive"


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
    runs = tables.results.replicates["CE"]
    both = [[r.predictions for r in runs if r.device == device and r.fold != 2] for device in ("A100", "L4")]
    pair = compare(dict(zip("AB", both, strict=True)), DRAWS, DRAWS).comparisons[0]  # n x n pairs would have smaller p
    assert tables.devices["p_score"].iloc[2] == pytest.approx(pair.tests["score"].p_holm)


def test_other_scans_on_another_device_are_an_error(tmp_path):
    parts = [
        write_study(tmp_path / name, {"CE": {"skill": (0.8, 0.7)}}, (1,), per_cell=size, devices=[name])
        for name, size in (("A100", 8), ("L4", 7))
    ]
    with pytest.raises(StudyError, match="CE on A100 and on L4 cannot be compared: not the same scans"):
        study_tables(parts, resamples=DRAWS)


@pytest.mark.fault(
    "words", "the best system of a study on a few scans", before="tested and told", now="no statement, with the scans"
)
@pytest.mark.parametrize("per_cell", [1, 2])
def test_on_a_few_scans_no_system_is_the_best(tmp_path, per_cell: int):
    folder = write_study(
        tmp_path / "s", {"good": {"skill": (0.99, 0.99)}, "bad": {"skill": (0.3, 0.3)}}, per_cell=per_cell
    )
    for best in study_tables([folder], resamples=100).best:
        assert not best.apart and best.verdict.level == "no-statement"
        assert f"fewer than 10 scans of male ({4 * per_cell}), female ({4 * per_cell})" in best.verdict.text
