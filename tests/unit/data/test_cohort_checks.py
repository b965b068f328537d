"""What is wrong with a cohort file is found all at once, and names no patient."""

from __future__ import annotations

import shutil

import pytest
from cohort_files import full_rows, load, message, write_rows

from fairlung.pipeline.data.cohort_checks import CohortError


def test_one_error_names_every_planted_problem(tmp_path):
    rows = full_rows()  # 16 rows: lines 2 to 17
    rows[0]["label"] = "adenocarcinom"  # line 2; also empties its cell
    rows[1]["sex"] = "femal"  # line 3
    rows[2]["split"] = "training"  # line 4
    rows[4]["scan"] = ""  # line 6
    rows[5]["label"] = ""  # line 7
    rows[6]["split"] = ""  # line 8
    rows[9]["patient"] = rows[3]["patient"] = "JOHN-DOE-1953"  # lines 5 and 11: train and val
    path = write_rows(tmp_path, rows)
    shutil.rmtree(tmp_path / "s8")  # line 10
    text = (
        path.read_text() + f"./s9/../s9,normal,male,val,x\n{tmp_path}/s10,normal,male,val,\ns77,normal\n"
    )  # lines 18 to 20
    path.write_text(text)
    report = message(path)
    for planted in (
        "line 2: label 'adenocarcinom' is unknown (did you mean 'adenocarcinoma'?)",
        "line 3: sex 'femal' is unknown (did you mean 'female'?)",
        "line 4: split 'training' is unknown (did you mean 'train'?)",
        "line 6: scan is empty",
        "line 7: label is empty",
        "line 8: split is empty",
        "line 10: scan 's8' does not exist",
        "line 18: scan './s9/../s9' is the scan of line 11 again",
        f"line 19: scan '{tmp_path}/s10' is the scan of line 12 again",
        "line 20: 2 values, but the header has 5",
        "one patient is in train (line 5) and in val (line 11)",
        "train: no male adenocarcinoma scan",
        "train: no female adenocarcinoma scan",
        "train: no male squamous_cell scan",
    ):
        assert planted in report
    assert "JOHN" not in report
    problems = report.splitlines()
    assert problems[0].endswith(f"cohort.csv: {len(problems) - 1} problems")
    numbers = [int(line.split("line ")[1].split(":")[0].split(")")[0]) for line in problems if "line " in line]
    assert numbers == sorted(numbers)


def test_patient_ids_are_in_no_message_and_no_repr(tmp_path):
    rows = full_rows()
    rows[15]["patient"] = rows[0]["patient"]
    assert "PAT" not in message(write_rows(tmp_path, rows))
    cohort = load(write_rows(tmp_path, full_rows()))
    assert "PAT" not in repr(cohort) and "PAT" not in str(cohort)


def test_the_same_patient_twice_in_one_split_and_unknown_patients_are_fine(tmp_path):
    rows = full_rows()
    rows[2]["patient"] = rows[0]["patient"]
    rows[3]["patient"] = rows[12]["patient"] = ""
    assert len(load(write_rows(tmp_path, rows)).table) == 16


def test_a_link_to_a_scan_is_the_same_scan(tmp_path):
    rows = full_rows()
    rows.append(rows[0] | {"scan": "link", "split": "val", "patient": ""})
    path = write_rows(tmp_path, rows)
    (tmp_path / "link").rmdir()
    (tmp_path / "link").symlink_to(tmp_path / "s0")
    assert "line 18: scan 'link' is the scan of line 2 again" in message(path)


def test_hints_know_short_forms(tmp_path):
    rows = full_rows()
    rows[0]["label"], rows[1]["sex"], rows[2]["label"], rows[3]["split"] = "COVID-19", "F", "G", "Validation"
    report = message(write_rows(tmp_path, rows), allow_empty_cells=True)
    for line, hint in ((2, "covid19"), (3, "female"), (4, "squamous_cell"), (5, "val")):
        assert any(f"line {line}:" in row and f"did you mean '{hint}'?" in row for row in report.splitlines())


def test_lines_are_those_of_the_file_also_after_blank_and_multi_line_rows(tmp_path):
    path = write_rows(tmp_path, full_rows(splits=("train",)))
    header, first, *rest = path.read_text().splitlines()
    rest[0] = rest[0].replace("female", "x")
    path.write_text("\n".join([header, "", first.replace("PAT0", '"two\nlines"'), *rest]))
    assert "line 5: sex 'x'" in message(path)


@pytest.mark.parametrize("count", [49, 50, 51, 300])
def test_a_long_list_says_how_much_of_it_is_missing(tmp_path, count):
    rows = full_rows() + [full_rows()[0] | {"scan": "s0", "patient": "", "label": "x"} for _ in range(count)]
    for index, row in enumerate(rows[16:]):
        row["scan"], row["label"] = f"t{index}", f"x{index}"
    report = message(write_rows(tmp_path, rows)).splitlines()
    assert report[0].endswith(f"{count} problems")
    assert len([line for line in report if "label 'x" in line]) == min(count, 50)
    assert (report[-1].strip() == f"... and {count - 50} more") == (count > 50)


def test_empty_cells_are_named_and_can_be_allowed(tmp_path):
    rows = [row for row in full_rows() if (row["split"], row["label"], row["sex"]) != ("val", "covid19", "female")]
    path = write_rows(tmp_path, rows)
    assert message(path).splitlines()[1:] == ["  - val: no female covid19 scan"]
    assert load(path, allow_empty_cells=True).class_counts("val")["covid19"] == 1


def test_a_class_missing_from_train_is_an_error_even_when_cells_may_be_empty(tmp_path):
    rows = [row for row in full_rows() if (row["split"], row["label"]) != ("train", "normal")]
    path = write_rows(tmp_path, rows)
    assert message(path, allow_empty_cells=True).splitlines()[1:] == ["  - train: no normal scan at all"]
    rows = [row for row in full_rows() if (row["split"], row["label"]) != ("val", "normal")]
    assert load(write_rows(tmp_path, rows), allow_empty_cells=True).class_counts("val")["normal"] == 0


def test_cells_are_not_asked_for_when_no_group_is_known(tmp_path):
    rows = [row | {"sex": ""} for row in full_rows()]
    cohort = load(write_rows(tmp_path, rows))
    assert {item["group"] for item in cohort.items("train")} == {-1}
    rows[0]["sex"] = "male"
    assert "train: no female adenocarcinoma scan" in message(write_rows(tmp_path, rows))


def test_required_splits(tmp_path):
    path = write_rows(tmp_path, full_rows())
    assert load(path, require_splits=["train", "val"]).splits() == ("train", "val")
    assert message(path, require_splits=["val", "test"]).splitlines()[1:] == ["  - test: no scan at all"]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"scan,label,sex\n", "no rows"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8"),
        (b"PK\x03\x04\x00\x00", "binary"),
        (b'scan,label,sex\n"s0,normal,male\n', "line 2"),
        (b'scan,label,sex,note\ns0,normal,male,"open\ns1,normal,female,x\n', "not a CSV"),
        (b"scan,scan,label,sex\ns0,s0,normal,male\n", "'scan'"),
        (b"scan|label|sex\ns0|normal|male\n", "commas"),
        (b"scan,Label\ns0,normal\n", "is it 'Label'?"),
        (b"scan,Label\ns0,normal\n", "no column 'sex'"),
    ],
)
def test_what_is_no_cohort_file_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "cohort.csv").write_bytes(content)
    report = message(tmp_path / "cohort.csv")
    assert said in report and str(tmp_path / "cohort.csv") in report


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in message(tmp_path / "cohort.csv")
    assert "cannot be read" in message(tmp_path)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"group_names": []}, "group_names"),
        ({"class_names": ()}, "class_names"),
        ({"class_names": "normal"}, "class_names"),
        ({"class_names": ["a", "a"]}, "class_names"),
        ({"class_names": ["a", " b"]}, "class_names"),
        ({"class_names": ["benign", "Benign"]}, "'benign' is written 'Benign' as well"),
        ({"group_names": ["male", "unknown"]}, "group_names"),
        ({"group_by": "label"}, "group_by"),
        ({"require_splits": ["training"]}, "require_splits"),
        ({"require_splits": "train"}, "require_splits"),
    ],
)
def test_arguments_without_sense_are_named(tmp_path, options, named):
    path = write_rows(tmp_path, full_rows())
    with pytest.raises(ValueError, match=named) as caught:
        load(path, **options)
    assert not isinstance(caught.value, CohortError)


def test_a_row_of_patients_in_place_of_the_header_is_not_shown(tmp_path):
    for row in ("s0,normal,male,DOE^JANE\n", "s0,DOE^JANE,DOE^JANE,male\n"):
        (tmp_path / "cohort.csv").write_text(row + "s1,normal,female,x\n")
        assert "DOE" not in message(tmp_path / "cohort.csv")


# ---- what is most likely one, or none -------------------------------------------------------------------------------
LOOK_ALIKE = [
    ("Rome", "rome", "site 'rome' is written 'Rome' in line 2"),
    ("Zürich", "Zu\u0308rich", r"site 'Zu\u0308rich' is written 'Z\xfcrich' in line 2"),
    ("Rome", "Ro\u200bme", r"site 'Ro\u200bme' is written 'Rome' in line 2"),
    ("New York", "New\u00a0 York", r"site 'New\xa0 York' is written 'New York' in line 2"),
    ("1", "1.0", "site '1.0' is written '1' in line 2"),
    ("s1", "s01", "site 's01' is written 's1' in line 2"),
    ("A", "\uff21", r"site '\uff21' is written 'A' in line 2"),
]
MISSING = ["NA", "NaN", "n/a", "null", "None", "?", "-", "#N/A"]


def of_sites(folder, *sites: str):
    rows = [row | {"site": sites[i % len(sites)]} for i, row in enumerate(full_rows())]
    return write_rows(folder, rows)


@pytest.mark.fault(
    "wrong", "one group written in two ways: Unicode forms, invisible letters, spaces, 1 and 1.0",
    before="two groups", now="refused, with both spellings and the line",
)  # fmt: skip
@pytest.mark.parametrize(("one", "other", "said"), LOOK_ALIKE)
def test_groups_that_look_alike_are_told_of(tmp_path, one, other, said):
    path = of_sites(tmp_path, one, other)
    options = {"group_by": "site", "group_names": None, "allow_empty_cells": True}
    assert message(path, **options).splitlines()[1:] == [f"  - line 3 and 7 more: {said}"]
    # a user who means two groups says so
    assert load(path, **options | {"group_names": [one, other]}).group_names == (one, other)


@pytest.mark.fault(
    "wrong",
    "NA, NaN, n/a and the like as a group",
    before="a group of that name",
    now="refused: leave it empty, or list it",
)
@pytest.mark.parametrize("word", MISSING)
def test_words_for_a_missing_group_are_told_of(tmp_path, word):
    path = of_sites(tmp_path, "a", word)
    report = message(path, group_by="site", group_names=None, allow_empty_cells=True)
    assert f"line 3 and 7 more: site {word!r}" in report and "leave it empty" in report
    options = {"group_by": "site", "group_names": ["a", word], "allow_empty_cells": True}
    assert word in load(path, **options).group_names


@pytest.mark.parametrize("pair", [("1", "2"), ("s1", "s10"), ("1.01", "1.1"), ("<65", ">=65"), ("a b", "ab")])
def test_groups_that_differ_are_two(tmp_path, pair):
    path = of_sites(tmp_path, *pair)
    assert set(load(path, group_by="site", group_names=None, allow_empty_cells=True).group_names) == set(pair)


@pytest.mark.fault(
    "wrong",
    "NA as the patient of many scans of a cohort",
    before="taken for one patient",
    now="refused, with the lines",
)
def test_a_word_for_no_patient_is_refused(tmp_path):
    rows = full_rows()
    rows[0]["patient"] = rows[1]["patient"] = "N/A"
    said = message(write_rows(tmp_path, rows)).splitlines()
    text = "patient 'N/A' (lines 2, 3) is what many tables write where there is no value, and would be one patient"
    assert f"  - {text}: leave it empty" in said


def test_a_patient_of_two_sexes_is_refused_in_either_unicode_form(tmp_path):
    rows = full_rows()
    rows[0]["patient"], rows[1]["patient"] = "Zo\u00eb", "Zoe\u0308"
    assert "one patient is male (line 2) and female (line 3), the id written" in message(write_rows(tmp_path, rows))


@pytest.mark.fault("wrong", "one patient of two sexes", before="taken as it is", now="refused, with the lines")
def test_a_patient_of_two_sexes_is_refused(tmp_path):
    rows = full_rows()
    rows[1]["patient"] = rows[0]["patient"]
    path = write_rows(tmp_path, rows)
    assert message(path).splitlines()[1:] == ["  - one patient is male (line 2) and female (line 3)"]
    others = write_rows(tmp_path, [row | {"site": "s"} for row in rows], "sites.csv")
    assert load(others, group_by="site", group_names=None).group_names == ("s",)


@pytest.mark.fault(
    "wrong", "a patient in two splits whose ids differ in case or zeros", before="taken for two patients", now="refused"
)
@pytest.mark.parametrize("ids", [("P01", "p01"), ("01", "1"), ("P1", "P01"), ("7", "7.0"), ("p", "p\u200b")])
def test_a_patient_is_in_one_split_however_the_id_is_written(tmp_path, ids):
    rows = full_rows()
    rows[0]["patient"], rows[8]["patient"] = ids
    (said,) = message(write_rows(tmp_path, rows)).splitlines()[1:]
    assert said == "  - one patient is in train (line 2) and in val (line 10), the id written in several ways"


@pytest.mark.fault(
    "words",
    "many rows with one wrong value",
    before="a line a row, others hidden behind 50",
    now="one line with their number",
)
@pytest.mark.parametrize(
    ("column", "value", "hint"),
    [
        ("sex", "M", "did you mean 'male'?"), ("sex", "W", "did you mean 'female'?"),
        ("sex", "0", "a number does not say"), ("split", "validation", "did you mean 'val'?"),
        ("label", "covid", "did you mean 'covid19'?"),
    ],
)  # fmt: skip
def test_a_value_that_is_wrong_in_many_rows_is_one_line(tmp_path, column, value, hint):
    rows = [row | {column: value} if i % 2 else row for i, row in enumerate(full_rows())]
    report = message(write_rows(tmp_path, rows), allow_empty_cells=True).splitlines()
    (line,) = [line for line in report if repr(value) in line]
    assert line.startswith(f"  - line 3 and 7 more: {column} {value!r} is unknown (") and hint in line


@pytest.mark.fault(
    "leaked", "line feeds, terminal codes and megabytes in a value that a message quotes",
    before="megabytes, or look-alikes, in the message", now="cut, on one line, as escapes",
)  # fmt: skip
@pytest.mark.parametrize("value", ["x\x1b[2Jy", "a\nb", "\u202ecba", "long" * 1000])
def test_a_value_in_a_message_is_cut_and_on_one_line(tmp_path, value):
    rows = full_rows()
    for row in rows[:2]:
        row["label"], row["sex"] = value, value
    report = message(write_rows(tmp_path, rows), allow_empty_cells=True)
    assert len(report) < 1000 and len(report.splitlines()) == int(report.split(" problem")[0].split()[-1]) + 1
    assert all(sign.isprintable() or sign == "\n" for sign in report)


def test_a_split_column_that_is_still_empty_is_none(tmp_path):
    rows = [row | {"split": ""} for row in full_rows(splits=("train",))]
    cohort = load(write_rows(tmp_path, rows))
    assert cohort.splits() == ("all",) and "split" not in cohort.table
