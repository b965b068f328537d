"""Cohort files to begin with: from tables of other words, and from folders that say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_scans import save_grey
from typer.testing import CliRunner

from fairlung.pipeline.cli.app import app
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.data.cohort_checks import CohortError
from fairlung.pipeline.data.cohort_drafts import draft_cohort, folder_table, translated
from fairlung.pipeline.phantoms.writers import write_dicom_series

CLASSES = ["covid19", "normal"]


def cli(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def other_words(folder: Path, scans: int = 40, delimiter: str = ";") -> Path:
    """A table of scans (two a patient) as another program writes it: semicolons, a mark, other columns and words."""
    rows = [["path", "Gender", "Label", "Age", "note", "pid"]]
    for i in range(scans):
        (folder / f"s{i}.nii.gz").touch()
        patient = i // 2
        sex, label = ("M", "Female")[patient % 2], ("Normal", "covid19")[patient // 2 % 2]
        rows.append([f"s{i}.nii.gz", sex, label, f"0{patient + 30}Y", f"={i}", f"P{patient}"])
    text = "\n".join(delimiter.join(row) for row in rows)
    (folder / "list.csv").write_text(f"\ufeff{text}\n", encoding="utf-8")
    return folder / "list.csv"


@pytest.mark.fault(
    "words", "a table of scans with other columns, M and Female, 065Y, semicolons",
    before="refused, row by row", now="fairlung cohort makes a cohort file of it and says what it took for what",
)  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_in_other_words_becomes_a_cohort(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "out").mkdir()
    path, output = other_words(tmp_path, delimiter=delimiter), tmp_path / "out" / "cohort.csv"
    columns = "path=scan,Gender=sex,pid=patient"
    done = cli("cohort", path, "-o", output, "--columns", columns)
    assert done.exit_code == 0, done.output
    for said in ("sex 'M' is male in 20 rows", "sex 'Female' is female in 20 rows", "no splits yet; `fairlung split`"):
        assert said in done.output
    cohort = load_cohort(output, class_names=CLASSES)
    assert cohort.class_counts("all") == {"covid19": 20, "normal": 20}
    assert cohort.table["age"].tolist()[:3] == ["30", "30", "31"] and cohort.table["note"][1] == "=1"
    assert [item["image"] for item in cohort.items("all")][:1] == [str(tmp_path / "out" / "../s0.nii.gz")]
    again = cli("cohort", path, "-o", output, "--columns", columns)
    assert again.exit_code == 1 and "is there already" in again.output


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "no column 'scan'; --columns NAME=scan"),
        ({"pth": "scan"}, "no column 'pth' to take for 'scan' (did you mean 'path'?)"),
        ({"path": "scan", "note": "sex", "Gender": "sex"}, "two columns sex"),
    ],
)
def test_a_column_that_is_not_there_or_twice_is_named(tmp_path: Path, columns: dict[str, str], said: str) -> None:
    with pytest.raises(CohortError) as caught:
        translated(other_words(tmp_path, 1), columns)
    assert said in str(caught.value) and "list.csv" in str(caught.value)


def test_words_are_taken_only_for_what_they_surely_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("scan,label,sex,split,age\na,A,0,Validation,47\nb,covid,n/a,train,old\n")
    table, said = translated(tmp_path / "t.csv")
    assert table.to_numpy().tolist() == [["a", "A", "0", "val", "47"], ["b", "covid", "", "train", "old"]]
    assert len(said) == 2
    named = translated(tmp_path / "t.csv", class_names=["covid19", "adenocarcinoma"]).table
    assert named["label"].tolist() == ["adenocarcinoma", "covid19"]


@pytest.mark.parametrize("text", ["path", "=scan", "path=scan,sex"])
def test_columns_that_are_no_pairs_are_refused(tmp_path: Path, text: str) -> None:
    done = cli("cohort", other_words(tmp_path, 1), "-o", tmp_path / "c.csv", "--columns", text)
    assert done.exit_code == 1 and "must be such as path=scan" in done.output
    folder = cli("cohort", tmp_path, "-o", tmp_path / "c.csv", "--columns", "path=scan")
    assert folder.exit_code == 1 and "is for a table" in folder.output


# ---- any folder tree ------------------------------------------------------------------------------------------------
@pytest.fixture
def tree(tmp_path: Path) -> Path:
    hu, spacing = np.zeros((3, 16, 16), np.int16), (5, 1, 1)
    for name, patient, sex in (
        ("a/one", "DOE-1", "female"),
        ("b/two", "DOE-1", "female"),
        ("c/male/x", "ROE-2", "female"),
    ):
        write_dicom_series(tmp_path / "data" / name, hu, spacing, sex=sex, age=61, patient_id=patient, uid_seed=name)
    save_grey(tmp_path / "data" / "Validation" / "covid" / "pictures", ["0.png"])
    return tmp_path / "data"


@pytest.mark.fault(
    "words", "scans in folders of no known layout", before="no cohort file", now="one to fill in, with what headers say"
)
def test_any_folder_gives_a_cohort_to_fill_in(tree: Path, tmp_path: Path) -> None:
    done = cli("cohort", tree, "-o", tmp_path / "cohort.csv")
    assert done.exit_code == 0, done.output
    assert "4 scans; fill in label (3), sex (2), split (3)" in done.output
    table = pd.read_csv(tmp_path / "cohort.csv", dtype=str, keep_default_na=False)
    assert table.to_numpy().tolist() == [
        ["data/a/one", "", "female", "61", "", "1"],
        ["data/b/two", "", "female", "61", "", "1"],
        ["data/c/male/x", "", "", "61", "", "2"],  # the folder says another sex than the header
        ["data/Validation/covid/pictures", "covid19", "", "", "val", ""],
    ]
    again = cli("cohort", tree, "-o", tmp_path / "cohort.csv")
    assert again.exit_code == 1 and "is there already" in again.output


@pytest.mark.fault(
    "leaked", "names and ids of patients in DICOM headers, in a cohort that is made of them",
    before="no such cohort", now="a patient is a number",
)  # fmt: skip
def test_no_name_and_no_id_is_in_a_draft(tree: Path) -> None:
    text = str(draft_cohort(tree)) + draft_cohort(tree).table.to_csv()
    assert "PHANTOM" not in text and "DOE" not in text and "ROE" not in text


def test_a_folder_without_scans_has_no_draft(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no usable scan"):
        draft_cohort(tmp_path)


# ---- splits ---------------------------------------------------------------------------------------------------------
@pytest.mark.fault(
    "words", "a cohort file without splits", before="refused, without a way on", now="`fairlung split` makes them"
)
def test_a_cohort_is_split_by_patient_class_and_sex(tmp_path: Path) -> None:
    made = cli(
        "cohort", other_words(tmp_path, 80), "-o", tmp_path / "c.csv", "--columns", "path=scan,Gender=sex,pid=patient"
    )
    assert made.exit_code == 0, made.output
    with pytest.raises(CohortError, match="`fairlung split` makes them, and a study of protocol nested"):
        load_cohort(tmp_path / "c.csv", class_names=CLASSES, require_splits=["train", "val"])
    outputs = [tmp_path / f"{name}.csv" for name in ("first", "same", "other")]
    for output, seed in zip(outputs, (3, 3, 4), strict=True):
        done = cli("split", tmp_path / "c.csv", "-o", output, "--seed", seed)
        assert done.exit_code == 0, done.output
    first, same, other = (output.read_bytes() for output in outputs)
    assert first == same != other
    cohort = load_cohort(outputs[0], class_names=CLASSES, require_splits=["train", "val", "test"])
    assert set(cohort.table.groupby("patient")["split"].nunique()) == {1}
    assert (cohort.cells()["n"] >= 2).all()  # every class and sex in every part
    assert list(cohort.table["note"]) == [f"={i}" for i in range(80)]  # rows and columns stay
    refused = cli("split", outputs[0], "-o", tmp_path / "again.csv")
    assert refused.exit_code == 1 and "has splits already: train, val, test" in refused.output


@pytest.mark.parametrize("ids", [("P01", "p01"), ("01", "1"), ("p\u200b1", "p1")])
def test_ids_that_may_be_one_patient_stay_together(tmp_path: Path, ids: tuple[str, str]) -> None:
    rows = ["scan,label,sex,patient"]
    for i in range(30):
        (tmp_path / f"s{i}.nii.gz").touch()
        rows.append(
            f"s{i}.nii.gz,{CLASSES[i % 2]},{('male', 'female')[i // 2 % 2]},{ids[i // 4] if i in (0, 4) else f'x{i}'}"
        )
    (tmp_path / "c.csv").write_text("\n".join(rows))
    for seed in range(2):
        assert cli("split", tmp_path / "c.csv", "-o", tmp_path / f"{seed}.csv", "--seed", seed).exit_code == 0
        table = pd.read_csv(tmp_path / f"{seed}.csv")
        assert table["split"][0] == table["split"][4]


# ---- folders that a table knows -------------------------------------------------------------------------------------
def said_of_folders(folder: Path, text: str) -> Path:
    (folder / "folders.csv").write_text(text)
    return folder / "folders.csv"


def test_a_table_of_folders_says_what_their_scans_are(tree: Path, tmp_path: Path) -> None:
    content = (
        "Dir,Label,Sex,Age,site,split\nB*,Covid-19,,,,\nTWO,,F,034Y,,\na,-,,,,\nc,normal,M,,,\ndata,,,,x,Training\n"
    )
    table = said_of_folders(tmp_path, content + "d?,normal,,,y,\npictures,normal,,,z,\n")
    folders = ("--folders", table, "--columns", "Dir=folder", "--class-name", "covid19", "--class-name", "normal")
    done = cli("cohort", tmp_path, "-o", tmp_path / "cohort.csv", *folders)
    assert done.exit_code == 0, done.output
    for said in ("label 'Covid-19' is covid19", "no scan in 1 of 7 rows of the table of folders, such as d?"):
        assert said in done.output
    assert "left out data/a/one: its folder has the label -" in done.output
    table = pd.read_csv(tmp_path / "cohort.csv", dtype=str, keep_default_na=False)
    assert table.columns.tolist() == ["scan", "label", "sex", "age", "split", "patient", "site"]
    assert table.to_numpy().tolist() == [
        ["data/b/two", "covid19", "female", "34", "train", "1", "x"],  # the nearest folder that says a thing, says it
        ["data/c/male/x", "normal", "", "61", "train", "2", "x"],  # the table says another sex than the header
        ["data/Validation/covid/pictures", "normal", "", "", "train", "", "z"],
    ]


def test_a_name_of_a_folder_comes_before_a_pattern(tree: Path, tmp_path: Path) -> None:
    table = folder_table(said_of_folders(tmp_path, "folder,label\n*,one\nB,two\n[a],three\n"))
    assert draft_cohort(tree, folders=table.table).table["label"].tolist() == ["one", "one", "one", "one"]
    table = folder_table(said_of_folders(tmp_path, "folder,label\n[ab],one\nB,two\nc*,\n"))
    assert draft_cohort(tree, folders=table.table).table["label"].tolist() == ["one", "two", "", "covid19"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\na,x\n", "no column 'folder'; --columns NAME=folder says which it is"),
        ("folder,label\na,x\nA,y\n", "the folder 'a' is in two rows"),
        ("folder,label\n,x\n", "a row names no folder"),
        ("folder,scan\na,x\n", "says nothing of the column 'scan'"),
        ("folder,patient\na,x\n", "says nothing of the column 'patient'"),
    ],
)
def test_a_table_of_folders_that_cannot_be_is_refused(tree: Path, tmp_path: Path, text: str, said: str) -> None:
    done = cli("cohort", tree, "-o", tmp_path / "c.csv", "--folders", said_of_folders(tmp_path, text))
    assert done.exit_code == 1 and said in done.output.replace("\n", " ")


def test_a_table_of_folders_needs_folders(tree: Path, tmp_path: Path) -> None:
    table = said_of_folders(tmp_path, "folder,label\na,x\n")
    assert "is a table" in cli("cohort", table, "--folders", table).output
    assert "not for paper" in cli("cohort", tree, "--folders", table, "--layout", "paper").output
