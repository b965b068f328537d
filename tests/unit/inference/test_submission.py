"""Every scan of a submission is in exactly one file, that of its class; or there is no submission."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.common.names import CLASS_NAMES
from fairlung.pipeline.inference.prediction_writer import PredictionWriter
from fairlung.pipeline.inference.submission import FILES, SubmissionError, submission_name, write_submission


def write_table(folder: Path, answers: list[tuple[str, str]], failed: list[str] = ()) -> Path:  # type: ignore[assignment]
    """A table in the columns that inference writes."""
    writer = PredictionWriter(folder / "predictions.csv", CLASS_NAMES)
    rows = [
        [scan, label, *(str(float(label == name)) for name in CLASS_NAMES), "ok", "", ""] for scan, label in answers
    ]
    rows += [[scan, "", *[""] * len(CLASS_NAMES), "failed", "holds no scan", ""] for scan in failed]
    pd.DataFrame(rows, columns=writer.columns).to_csv(writer.path, index=False)
    return writer.path


def read(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text(encoding="utf-8").splitlines() for path in folder.iterdir()}


def test_the_files_are_the_challenges() -> None:
    assert FILES == {
        "adenocarcinoma": "A.csv",
        "squamous_cell": "G.csv",
        "covid19": "covid.csv",
        "normal": "normal.csv",
    }


@given(
    answers=st.dictionaries(
        st.from_regex(r"ct_[a-z0-9é]{1,4}", fullmatch=True), st.sampled_from(CLASS_NAMES), min_size=1
    )
)
def test_each_scan_is_in_the_file_of_its_class(
    answers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("submission")
    table = write_table(folder, [(f"test/sub/{name}", label) for name, label in answers.items()])
    done = write_submission(table, folder / "out")
    found = read(folder / "out")
    assert found == {FILES[label]: [name for name, its in answers.items() if its == label] for label in CLASS_NAMES}
    assert {path.name: count for path, count in done.files.items()} == {name: len(rows) for name, rows in found.items()}


def test_names_are_those_of_the_scan_folders() -> None:
    names = {
        "test/ct_scan_1": "ct_scan_1",
        "ct.v1.2": "ct.v1.2",
        "a/ct_2.nii.gz": "ct_2",
        "ct_3.NRRD": "ct_3",
        "4": "4",
    }
    assert {scan: submission_name(scan) for scan in names} == names


def test_failed_scans_stop_it_unless_allowed(tmp_path: Path) -> None:
    failed = [f"test/ct_{i}" for i in range(20, 32)]
    table = write_table(tmp_path, [("test/ct_0", "normal")], failed)
    stopped = CliRunner().invoke(app, ["submit", str(table), "-o", str(tmp_path / "out")])
    assert stopped.exit_code == 1
    assert all(name in stopped.output for name in (*failed, "12 of 13", "holds no scan", "--allow-missing"))
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, ["submit", str(table), "-o", str(tmp_path / "out"), "--allow-missing"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in failed)
    assert read(tmp_path / "out") == {"A.csv": [], "G.csv": [], "covid.csv": [], "normal.csv": ["ct_0"]}
    assert (tmp_path / "out" / "normal.csv").read_bytes() == b"ct_0\n"


def test_what_inference_skipped_is_no_scan_of_the_challenge(tmp_path: Path) -> None:
    path = write_table(tmp_path, [("a/ct_0", "normal")], ["b/ct_0"])
    path.write_text(path.read_text().replace("failed,holds no scan", "skipped,a localizer"))
    done = write_submission(path, tmp_path / "out")
    assert read(tmp_path / "out")["normal.csv"] == ["ct_0"]
    assert done.missing == ["'b/ct_0': skipped, a localizer"]


def test_an_earlier_submission_is_not_overwritten_unasked(tmp_path: Path) -> None:
    table = write_table(tmp_path, [("ct_0", "normal"), ("ct_1", "covid19")])
    write_submission(table, tmp_path / "out")
    (tmp_path / "out" / "A.csv").unlink()
    write_table(tmp_path, [("ct_0", "normal"), ("ct_1", "normal")])
    with pytest.raises(SubmissionError, match="already there: G.csv, covid.csv, normal.csv"):
        write_submission(table, tmp_path / "out")
    assert read(tmp_path / "out")["covid.csv"] == ["ct_1"]
    write_submission(table, tmp_path / "out", overwrite=True)
    assert read(tmp_path / "out") == {"A.csv": [], "G.csv": [], "covid.csv": [], "normal.csv": ["ct_0", "ct_1"]}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([("a/ct_0", "normal"), ("b/ct_0", "normal")], "'a/ct_0' and 'b/ct_0' are both called 'ct_0'"),
        ([("ct_0.nii", "normal"), ("ct_0", "covid19")], "are both called 'ct_0'"),
        ([("ct_0", "benign")], "class 'benign' is none of adenocarcinoma, squamous_cell"),
        ([("ct,0", "normal")], "cannot be a line"),
        ([("ct\n0", "normal")], "cannot be a line"),
    ],
)
def test_what_cannot_be_submitted(answers: list[tuple[str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=said):
        write_submission(write_table(tmp_path, answers), tmp_path / "out", allow_missing=True)
    assert not (tmp_path / "out").exists()


def test_other_spellings_and_other_tables(tmp_path: Path) -> None:
    rows = [("a", "COVID"), ("b", "G"), ("c", "healthy"), ("d", "adenocarcinoma"), ("e", "")]
    path = tmp_path / "p.csv"
    pd.DataFrame(rows, columns=["scan", "prediction"]).to_csv(path, index=False)
    done = write_submission(path, tmp_path / "out", allow_missing=True)
    assert read(tmp_path / "out") == {"A.csv": ["d"], "G.csv": ["b"], "covid.csv": ["a"], "normal.csv": ["c"]}
    assert done.missing == ["'e': no prediction"]
    path.write_text("name,prediction\nx,normal\n")
    with pytest.raises(SubmissionError, match="no column 'scan'; it has name, prediction"):
        write_submission(path, tmp_path / "other")
