"""The commands of the console program on prediction tables: verdicts first, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reconstruction import paper_cells, predictions_of
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app

runner = CliRunner(env={"COLUMNS": "160"})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    cells = paper_cells()
    found = predictions_of(cells["systems"]["LA+CVaR alpha 0.8"]["confusion"], cells["class_names"])
    names = np.array(found.class_names)
    columns = {"scan": found.scan, "truth": names[found.label], "said": names[found.prediction]}
    path = tmp_path / "others.csv"
    pd.DataFrame(columns | {"gender": np.array(["M", "F"])[found.group]}).to_csv(path, index=False)
    return path


OTHERS = ["--group-by", "gender", "--label-column", "truth", "--prediction-column", "said", "--resamples", "500"]


def test_an_audit_of_another_models_table(table: Path, tmp_path: Path) -> None:
    done = runner.invoke(app, ["audit", str(table), *OTHERS, "-o", str(tmp_path / "audit.json")])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("inconclusive: The gap of +0.024 (F minus M")
    result = json.loads((tmp_path / "audit.json").read_text())
    assert result["overall"]["score"]["value"] == pytest.approx(0.8403, abs=1e-4)
    assert result["group_names"] == ["F", "M"]
    for cell in result["cells"]:
        assert cell["class"] in done.output


def test_the_class_of_those_without_a_disease_is_named_or_found(table: Path, tmp_path: Path) -> None:
    found, path = pd.read_csv(table, dtype=str), tmp_path / "other.csv"
    assert (
        "note: Underdiagnosis (not normal, called normal)" in runner.invoke(app, ["audit", str(table), *OTHERS]).output
    )
    found.replace("normal", "well").to_csv(path, index=False)
    unnamed = runner.invoke(app, ["audit", str(path), *OTHERS]).output
    assert unnamed.count("no class is called normal, healthy or no finding") == 1 and "Underdiagnosis (" not in unnamed
    named = runner.invoke(app, ["audit", str(path), *OTHERS, "--normal", "well"]).output
    assert "note: Underdiagnosis (not well, called well)" in named and "no class is called" not in named


def test_an_audit_takes_the_column_that_says_whose_a_scan_is(table: Path) -> None:
    frame = pd.read_csv(table, dtype=str)
    frame["subject"] = frame["gender"] + (frame.index // 2).astype(str)
    frame.to_csv(table, index=False)
    assert "not scans" not in runner.invoke(app, ["audit", str(table), *OTHERS]).output
    done = runner.invoke(app, ["audit", str(table), *OTHERS, "--patient-column", "subject"])
    assert f"155 scans are of {frame['subject'].nunique()} patients: patients, not scans" in " ".join(
        done.output.split()
    )


def test_the_order_of_the_groups_is_the_sign_of_the_gap(table: Path) -> None:
    done = runner.invoke(app, ["audit", str(table), *OTHERS, "--group-name", "M", "--group-name", "F"])
    assert done.output.startswith("inconclusive: The gap of -0.024 (M minus F")


def test_numbers_of_a_published_table_are_called_by_their_names(table: Path, tmp_path: Path) -> None:
    """As the challenge's tables are: classes and sexes are numbers, and no column names the scans."""
    named = pd.read_csv(table)
    classes = list(paper_cells()["class_names"])
    numbered = pd.DataFrame({"pred": named["said"].map(classes.index), "target": named["truth"].map(classes.index)})
    numbered["source"] = named["gender"].eq("F").astype(int)
    numbered.to_csv(tmp_path / "numbers.csv", index=False)
    meant = ",".join(f"{number}={name}" for number, name in enumerate(classes))
    columns = ["--label-column", "target", "--prediction-column", "pred", "--group-by", "source", "--resamples", "500"]
    renamed = ["--rename", "source:0=male,1=female", "--rename", f"target:{meant}"]
    done = runner.invoke(app, ["audit", str(tmp_path / "numbers.csv"), *columns, *renamed])
    assert done.output.startswith("inconclusive: The gap of -0.024 (male minus female")
    assert all(name in done.output for name in classes)
    for wrong, said in (
        ("source", "got 'source'"),
        ("source:0=", "got 'source:0='"),
        ("sauce:0=a", "no column 'sauce'"),
    ):
        done = runner.invoke(app, ["audit", str(tmp_path / "numbers.csv"), *columns, "--rename", wrong])
        assert done.exit_code == 1 and said in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-by", "age"], "no column 'age'; it has scan, truth, said, gender"),
        (["--confidence", "95"], "confidence must be in (0, 1), got 95"),
        (["--margin", "5"], "margin must be in (0, 1), got 5"),
        (["--method", "bca"], "method must be one of smoothed, percentile, got 'bca'"),
        (["--specificity", "90"], "specificity must be in (0, 1), got 90"),
        (["--normal", "sick"], "normal must be one of the classes"),
        (["--group-name", "M"], "which is none of M"),
        (["--patient-column", "patient"], "no column 'patient'; it has scan, truth, said, gender"),
    ],
)
def test_an_audit_that_cannot_be_made_says_why(table: Path, arguments: list[str], message: str) -> None:
    done = runner.invoke(app, ["audit", str(table), *OTHERS, *arguments])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())


def test_an_audit_of_what_is_not_there(tmp_path: Path) -> None:
    done = runner.invoke(app, ["audit", str(tmp_path / "absent.csv")])
    assert done.exit_code == 1 and "absent.csv" in done.stderr


def evaluated(folder: Path, split: str, seed: int, repeated: np.ndarray | None = None) -> np.ndarray:
    """An evaluation of 60 scans with features in which sex can be read; the first rows are ``repeated`` ones."""
    rng = np.random.default_rng(seed)
    sex, label = np.tile([0, 1], 30), np.repeat([0, 1, 2, 3], 15)
    values = rng.standard_normal((60, 30)).astype(np.float32)
    values[:, 0] += 3 * sex
    if repeated is not None:
        values[: len(repeated)] = repeated
    scans, classes = np.array([f"{split}-{i}" for i in range(60)]), np.array(list("acgn"))[label]
    path = folder / split / "evaluation" / "predictions.csv"
    path.parent.mkdir(parents=True)
    columns = {"scan": scans, "label": classes, "sex": np.array(["male", "female"])[sex], "prediction": classes}
    pd.DataFrame(columns).to_csv(path, index=False)
    about = {"untrained_is": np.array("random"), "judged": np.array("run 1"), "cohort": np.array("c")}
    about |= {"label": classes, "patient_known": np.zeros(60, dtype=bool)}
    np.savez(
        path.with_name("features.npz"), scan=scans, features=values, untrained=values, image=values[:, 1:10], **about
    )
    return values


def test_what_can_be_read_is_said_and_kept(tmp_path: Path) -> None:
    values = evaluated(tmp_path, "val", 0)
    evaluated(tmp_path, "train", 1, values[:3])
    scanner = pd.DataFrame({"scan": [f"val-{i}" for i in range(60)], "scanner": ["A", "A", "B"] * 20})
    scanner.to_csv(tmp_path / "scanners.csv", index=False)
    command = ["probe", str(tmp_path), "--split", "val", "--permutations", "200"]
    done = runner.invoke(app, [*command, "--target", "sex", "--duplicates", "train"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("finding: sex can be read from the network's features (AUC 0.9")
    assert "the network before its training" in done.output and "statistics of the image" in done.output
    assert "does not show that the answers rest on it" in done.output
    folder = tmp_path / "val" / "evaluation"
    listed = pd.read_csv(folder / "duplicates.csv")
    assert {*zip(listed["scan"], listed["other"], strict=True)} >= {(f"val-{i}", f"train-{i}") for i in range(3)}
    assert "same patient? val-0 and train-0" in done.output
    again = runner.invoke(app, [*command, "--target", "scanner", "--table", str(tmp_path / "scanners.csv")])
    assert again.exit_code == 0 and "Whether scanner can be read" in again.output
    assert [one["target"] for one in json.loads((folder / "probe.json").read_text())["probes"]] == ["sex", "scanner"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --target, --duplicates, or both"),
        (["--target", "scanner"], "predictions.csv has no column 'scanner': name a table that has it with --table"),
        (["--target", "sex", "--permutations", "10"], "permutations must be at least 100, got 10"),
        (["--target", "sex", "--age-bands", "65"], "--age-bands is for --target age_band"),
        (["--target", "age_band"], "predictions.csv has no column 'age': name a table that has it with --table"),
        (["--duplicates", "test"], "test/evaluation/features.npz: evaluate with --save_features True"),
    ],
)
def test_a_probe_that_cannot_be_made_is_refused_in_a_line(tmp_path: Path, options: list[str], said: str) -> None:
    evaluated(tmp_path, "val", 0)
    done = runner.invoke(app, ["probe", str(tmp_path), *options])
    assert done.exit_code == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "val" / "evaluation" / "probe.json").exists()


def test_bands_of_age_are_made_of_ages(tmp_path: Path) -> None:
    evaluated(tmp_path, "val", 0)
    ages = pd.DataFrame({"scan": [f"val-{i}" for i in range(60)], "age": [40, 70] * 30})
    ages.to_csv(tmp_path / "cohort.csv", index=False)
    command = ["probe", str(tmp_path), "--target", "age_band", "--table", str(tmp_path / "cohort.csv")]
    command += ["--permutations", "100"]
    done = runner.invoke(app, command)
    assert done.exit_code == 1 and "name the edges of the bands, as by --age-bands 65" in done.stderr
    (tmp_path / "settings.json").write_text(json.dumps({"age_bands": [65]}))  # of the training in this folder
    done = runner.invoke(app, command)
    assert done.exit_code == 0 and "age_band (<65 30, >=65 30 scans" in " ".join(done.output.split()), done.output
    done = runner.invoke(app, [*command, "--age-bands", "30", "--age-bands", "50"])
    assert done.exit_code == 0 and "(30-49 30, >=50 30 scans" in " ".join(done.output.split()), done.output


def test_an_evaluation_without_features_says_how_to_get_them(tmp_path: Path) -> None:
    evaluated(tmp_path, "val", 0)
    (tmp_path / "val" / "evaluation" / "features.npz").unlink()
    done = runner.invoke(app, ["probe", str(tmp_path), "--target", "sex"])
    assert done.exit_code == 1 and "evaluate with --save_features True" in done.stderr
