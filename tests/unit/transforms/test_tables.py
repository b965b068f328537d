"""Tables of text: one reader for scan lists, cohorts, predictions, whatever wrote them; and cells that run nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from cohort_files import full_rows, load, write_rows
from hypothesis import given
from hypothesis import strategies as st
from small_scans import save_grey

from fairlung.pipeline.common.tables import csv_bytes, csv_rows, frame_csv, read_frame, write_frame
from fairlung.pipeline.evaluation.predictions import load_predictions
from fairlung.transforms import find_scans
from fairlung.transforms.tables import TableError, guarded, read_table, unguarded

ROWS = [["scan", "label"], ["a, b", "x"], ["two\nlines", "y; z"], ['"q"', "\v\u2028\x85"]]
FORMULAS = ("a\rb", "=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1", "'=1", "-a", "=")


def encoded(delimiter: str = ",", encoding: str = "utf-8", line: str = "\r\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=line, quoting=csv.QUOTE_ALL).writerows(ROWS)
    return text.getvalue().encode(encoding)


@pytest.mark.fault(
    "wrong", "a table with semicolons, tabs, a byte order mark or UTF-16",
    before="refused, or its columns not found", now="read as it is meant",
)  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, delimiter: str, encoding: str, line: str) -> None:
    (tmp_path / "t.csv").write_bytes(encoded(delimiter, encoding, line))
    header, rows = read_table(tmp_path / "t.csv")
    assert [header, *(row for _, row in rows)] == ROWS
    assert [line for line, _ in rows] == [2, 3, 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\r\n \n", "empty"),
        (b"scan\n\x93caf\xe9\x94\n", "save it as CSV UTF-8"),
        (b"PK\x03\x04\x00", "binary data"),
        (b'scan,label\n"a,b\n', "line 2"),
        (b"scan,label\na\n", "line 2: 1 values, but the header has 2"),
        (b"scan\na,b\n", "needs quotes"),
        (b"label,scan,scan\n", "'scan' (columns 2 and 3)"),
    ],
)
def test_what_is_no_table_is_refused_with_the_cause(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError) as caught:
        read_table(tmp_path / "t.csv")
    assert said in str(caught.value)
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.csv")


def test_columns_that_a_spreadsheet_left_empty_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("scan;label;;\na;x;;\nb;y;;\n")
    assert read_table(tmp_path / "t.csv") == (["scan", "label"], [(2, ["a", "x"]), (3, ["b", "y"])])


# ---- scan lists -----------------------------------------------------------------------------------------------------
@pytest.mark.fault(
    "wrong", "a scan's name in a list of scans with a vertical tab, U+2028 or a line feed in quotes",
    before="cut off there: the scan was not found", now="the scan is answered",
)  # fmt: skip
@pytest.mark.parametrize("name", ["a\vb", "a\u2028b", "a\x85b", "a\x1cb", "a\nb", "a;b", "=a", "'=a"])
def test_a_list_of_scans_names_them_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    save_grey(tmp_path / name, ["0.png", "1.png"])
    (tmp_path / "scans.csv").write_bytes(csv_bytes([["scan", "note"], [name, "x"]]))
    assert find_scans(tmp_path / "scans.csv") == [{"image": str(tmp_path / name), "scan": name}]


@pytest.mark.fault(
    "wrong", "a list of scans in which a column is there twice, or a row has a value too many",
    before="the last column was taken, the value dropped", now="refused with the columns or the line",
)  # fmt: skip
@pytest.mark.parametrize(
    ("content", "said"), [("scan,scan\na,b\n", "columns 1 and 2"), ("scan,note\na,x,y\n", "line 2: 3 values")]
)
def test_a_list_of_scans_that_says_two_things_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "scans.csv").write_text(content)
    with pytest.raises(ValueError, match=r"--scans: .*scans.csv") as caught:
        find_scans(tmp_path / "scans.csv")
    assert said in str(caught.value)


@pytest.mark.fault(
    "lost", "a path in a list of scans that is too long, or begins with ~ and no user",
    before="the whole run stopped", now="that scan fails, the others are answered",
)  # fmt: skip
@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/ct"])
def test_a_path_that_cannot_be_costs_no_other_scan(tmp_path: Path, name: str) -> None:
    save_grey(tmp_path / "ct", ["0.png"])
    (tmp_path / "scans.csv").write_text(f"scan\n{name}\nct\n")
    bad, good = find_scans(tmp_path / "scans.csv")
    assert bad["image"].problem == "does not exist" and good["image"] == str(tmp_path / "ct")


def test_a_scan_is_answered_once_and_a_row_without_one_is_told_of(tmp_path: Path, caplog) -> None:
    save_grey(tmp_path / "ct", ["0.png"])
    (tmp_path / "scans.csv").write_text("scan,note\nct,x\n,y\nct,z\n")
    assert [item["scan"] for item in find_scans(tmp_path / "scans.csv")] == ["ct"]
    assert "line 3 names no scan" in caplog.text and "line 4 names the scan of line 2" in caplog.text


# ---- cells that a spreadsheet would run -----------------------------------------------------------------------------
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("='+-@ \t\r0")))
def test_a_guarded_cell_is_read_back_and_begins_no_formula(cell: str) -> None:
    written = guarded(cell)
    assert unguarded(written) == cell
    if len(written.lstrip()) > 1 and written.lstrip()[0] in "=+-@":
        float(written)  # raises for anything but a number


@pytest.mark.fault(
    "leaked", "a name that a spreadsheet program runs as a formula, in a table of ours",
    before="written as it is", now="written with an apostrophe, and read back as it was",
)  # fmt: skip
@pytest.mark.parametrize("name", FORMULAS)
def test_our_tables_hold_no_formula_and_are_read_back(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame({"scan": [name, "b"], "label": [f"{name}x", "c"], name: ["1", "-2.5"]})
    write_frame(table, tmp_path / "t.csv")
    assert read_frame(tmp_path / "t.csv").equals(table.rename(columns=str.strip))
    assert csv_rows(csv_bytes([[name, -0.5, "-0.5"]])) == [[name, "-0.5", "-0.5"]]
    written = [*csv.reader(io.StringIO(frame_csv(table), newline=""))]
    for cell in (cell for row in written for cell in row):
        assert cell.strip()[:1] not in "=+-@" or len(cell) < 2 or float(cell)


def test_predictions_and_cohorts_are_read_back_with_the_names_they_had(tmp_path: Path) -> None:
    names = [*FORMULAS[1:5], "-a"]
    table = {"scan": names, "label": ["=x", "@y"] * 2 + ["=x"], "sex": "male", "prediction": "=x"}
    write_frame(pd.DataFrame(table), tmp_path / "p.csv")
    loaded = load_predictions(tmp_path / "p.csv")
    assert loaded.scan.tolist() == names and loaded.class_names == ("=x", "@y")
    rows = [row | {"scan": f"={row['scan']}", "site": "+s"} for row in full_rows()]
    path = write_rows(tmp_path, rows)
    write_frame(pd.DataFrame(rows), path)
    cohort = load(path, group_by="site", group_names=None)
    assert cohort.group_names == ("+s",) and cohort.items("train")[0]["scan"] == "=s0"
