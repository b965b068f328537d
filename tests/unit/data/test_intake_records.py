"""What was found when scans were read, as tables and counts."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
from intake_examples import RECORDS, record

from fairlung.pipeline.data.intake_records import COLUMNS, group_counts, warning_counts, write_intake


def test_the_table_says_what_the_records_say(tmp_path: Path) -> None:
    write_intake(RECORDS, tmp_path / "new" / "intake.csv")
    table = pd.read_csv(tmp_path / "new" / "intake.csv", keep_default_na=False, dtype=str).set_index("scan")
    assert [table.index.name, *table.columns] == list(COLUMNS)
    assert table.index.tolist() == [each["scan"] for each in RECORDS]
    fine = table.loc["fine"]
    lengths = ["depth", "height", "width", "spacing_z", "spacing_y", "spacing_x", "value_low", "value_high"]
    assert fine[lengths].astype(float).tolist() == [80, 512, 512, 2.5, 0.7, 0.7, -1024, 1900]
    assert fine[["kind", "status", "reason", "warnings", "slices_found", "slices_used", "orientation", "decoder"]
                ].tolist() == ["dicom", "ok", "", "", "80", "16", "LPS", "pydicom"]  # fmt: skip
    assert table.loc["doubtful", "warnings"] == "missing_slices: 2 of 80; few_slices: 24 slices"
    assert table.loc["broken", "reason"] == "not a DICOM file"
    assert (table.loc["broken", [*lengths, "tilt_degrees"]] == "").all()


def test_the_json_holds_every_record_whole_but_its_files(tmp_path: Path) -> None:
    write_intake(RECORDS, tmp_path / "intake.csv")
    text = (tmp_path / "intake.json").read_text(encoding="utf-8")
    expected = [{name: value for name, value in each.items() if name != "files"} for each in RECORDS]
    assert json.loads(text) == expected
    assert text.count("\n") == len(RECORDS) + 2  # a line a scan
    for path in tmp_path.iterdir():
        assert "Doe_John" not in path.read_text(encoding="utf-8")


def test_a_name_that_is_not_unicode_costs_no_table(tmp_path: Path) -> None:
    odd = 'caf\udce9, "x"\nü'
    write_intake([record(odd)], tmp_path / "intake.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "intake.csv").read_bytes().decode(), newline="")))
    assert rows[1][0] == odd.replace("\udce9", "\\udce9")
    assert json.loads((tmp_path / "intake.json").read_text(encoding="utf-8"))[0]["scan"] == odd


def test_scans_are_counted_by_what_is_said_of_them() -> None:
    assert group_counts(RECORDS) == {"refused": 1, "warnings": 2, "fine": 1, "skipped": 1}
    assert warning_counts(RECORDS) == {"few_slices": 2, "missing_slices": 1}
    assert warning_counts([record("s", warnings=["gap: 1 mm", "gap: 2 mm"])]) == {"gap": 1}
