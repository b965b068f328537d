"""A cohort file is read strictly, counted exactly, and built the same whatever the file system's order."""

from __future__ import annotations

import csv
import io
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fairlung.pipeline.cli.console import cells_table, drawn
from fairlung.pipeline.data.cohort import load_cohort
from fairlung.pipeline.data.cohort_checks import CohortError
from fairlung.pipeline.data.cohort_folders import build_cohort, write_cohort

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


def test_items_name_image_label_group_and_scan(tmp_path):
    rows = full_rows()
    rows.append({"scan": "s99", "label": "normal", "sex": "", "split": "train", "patient": ""})
    cohort = load(write_rows(tmp_path, rows))
    items = cohort.items("train")
    assert items[0] == {"image": str(tmp_path / "s0"), "label": 0, "group": 0, "group_values": ["male"], "scan": "s0"}
    assert items[-1] == {"image": str(tmp_path / "s99"), "label": 3, "group": -1, "group_values": [""], "scan": "s99"}
    assert [(item["label"], item["group"]) for item in items[:8]] == [(c, g) for c in range(4) for g in range(2)]
    assert len(items) + len(cohort.items("val")) == len(cohort.table) == 17
    assert cohort.splits() == ("train", "val")
    with pytest.raises(ValueError, match=r"'test'.*train, val"):
        cohort.items("test")


def test_relative_cohort_path_gives_absolute_images(tmp_path, monkeypatch):
    write_rows(tmp_path, full_rows())
    monkeypatch.chdir(tmp_path)
    cohort = load(Path("cohort.csv"))
    monkeypatch.chdir("/")
    assert all(os.path.isabs(item["image"]) and os.path.isdir(item["image"]) for item in cohort.items("train"))


def test_extra_columns_are_kept_as_text(tmp_path):
    rows = [row | {"age": "007", "note": "NA"} for row in full_rows()]
    table = load(write_rows(tmp_path, rows)).table
    assert list(table.columns) == [*rows[0]]
    assert set(table["age"]) == {"007"} and set(table["note"]) == {"NA"}
    assert list(table.index) == list(range(len(rows)))


def test_bom_spaces_and_blank_lines_are_no_problem(tmp_path):
    text = write_rows(tmp_path, full_rows()).read_text()
    path = tmp_path / "spaced.csv"
    path.write_text("\ufeff" + text.replace(",", " , ").replace("\n", " \r\n\r\n"), encoding="utf-8")
    assert load(path).table.equals(load(tmp_path / "cohort.csv").table)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_counts_are_those_of_a_plain_count(tmp_path_factory, data):
    classes = data.draw(st.sampled_from([("a", "b", "c"), CLASSES, ("only", "two")]))
    groups = data.draw(st.sampled_from([("all",), SEXES, ("s1", "s2", "s3", "s4", "s5")]))
    drawn = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(("train", "val", "test")), st.sampled_from(classes), st.sampled_from((*groups, ""))
            )
        )
    )
    seen = [("train", label, groups[0]) for label in classes] + drawn
    rows = [{"scan": f"s{i}", "label": b, "site": c, "split": a} for i, (a, b, c) in enumerate(seen)]
    path = write_rows(tmp_path_factory.mktemp("cohort"), rows)
    cohort = load(path, class_names=classes, group_names=groups, group_by="site", allow_empty_cells=True)

    expected, splits = Counter(seen), [s for s in ("train", "val", "test") if s in {split for split, _, _ in seen}]
    unknown = any(group == "" for _, _, group in seen)
    cells = cohort.cells()
    assert list(cells.columns) == ["split", "label", "group", "n"]
    assert len(cells) == len(splits) * len(classes) * (len(groups) + unknown)
    for split, label, group, n in cells.itertuples(index=False):
        assert n == expected[split, label, "" if group == "unknown" else group]
    assert cells["n"].sum() == len(seen)
    for split in splits:
        assert list(cohort.class_counts(split)) == list(classes)
        assert cohort.class_counts(split) == {c: sum(s == split and b == c for s, b, _ in seen) for c in classes}
        assert Counter(item["group"] for item in cohort.items(split)) == Counter(
            groups.index(g) if g else -1 for s, _, g in seen if s == split
        )


def test_a_file_without_splits_is_one_split_called_all(tmp_path):
    rows = [{key: row[key] for key in ("scan", "label", "sex")} for row in full_rows(splits=("train",))]
    cohort = load(write_rows(tmp_path, rows))
    assert cohort.splits() == ("all",) and len(cohort.items("all")) == 8
    assert "split" not in cohort.table
    assert "no column 'split'" in message(tmp_path / "cohort.csv", require_splits=["train"])


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
        "line 2: label 'adenocarcinom' is unknown, did you mean 'adenocarcinoma'?",
        "line 3: sex 'femal' is unknown, did you mean 'female'?",
        "line 4: split 'training' is unknown, did you mean 'train'?",
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
    rows[1]["patient"] = rows[0]["patient"]
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
        row["scan"] = f"t{index}"
    report = message(write_rows(tmp_path, rows)).splitlines()
    assert report[0].endswith(f"{count} problems")
    assert len([line for line in report if "label 'x'" in line]) == min(count, 50)
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
        (b"scan;label;sex\ns0;normal;male\n", "commas"),
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


@pytest.mark.parametrize("classes", [("a", "b", "c"), CLASSES])
@pytest.mark.parametrize("groups", [("all",), SEXES, ("s1", "s2", "s3", "s4", "s5")])
def test_any_number_of_classes_and_groups_in_any_column(tmp_path, classes, groups):
    path = write_rows(tmp_path, full_rows(classes, groups, column="site"))
    cohort = load(path, class_names=classes, group_names=groups, group_by="site")
    assert cohort.cells()["n"].tolist() == [1] * (2 * len(classes) * len(groups))
    assert {item["group"] for item in cohort.items("val")} == set(range(len(groups)))


def test_the_table_of_cells_shows_every_cell_and_the_totals(tmp_path):
    rows = full_rows(("a", "b[red]"), SEXES, ("train", "val"))
    extra = [rows[0] | {"scan": f"t{index}", "patient": "", "sex": sex} for index, sex in enumerate(("male", ""))]
    cohort = load(write_rows(tmp_path, rows + extra), class_names=("a", "b[red]"))
    text = io.StringIO()
    Console(width=100, file=text).print(drawn(cells_table(cohort)))
    shown = [re.findall(r"[^\s│┃]+", line) for line in text.getvalue().splitlines()]
    assert " ".join(shown[0]) == "10 scans by split, class and sex"
    assert ["split", "class", "male", "female", "unknown", "total"] in shown
    assert [row for row in shown if row and row[-1].isdigit()] == [
        ["train", "a", "2", "1", "1", "4"],
        ["b[red]", "1", "1", "0", "2"],
        ["total", "3", "2", "1", "6"],
        ["val", "a", "1", "1", "0", "2"],
        ["b[red]", "1", "1", "0", "2"],
        ["total", "2", "2", "0", "4"],
    ]


# --- digest ---------------------------------------------------------------------------------------------------------


def digest_of(folder: Path, rows: list[dict[str, str]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return load(write_rows(folder, rows), allow_empty_cells=True).digest


def test_digest_ignores_order_place_other_columns_and_spelling(tmp_path):
    rows = full_rows()
    digest = digest_of(tmp_path / "a", rows)
    assert len(digest) == 64 and int(digest, 16) >= 0
    assert digest_of(tmp_path / "b" / "deeper", random.Random(0).sample(rows, len(rows))) == digest
    assert (
        digest_of(tmp_path / "c", [dict(reversed(row.items())) | {"age": "3", "patient": ""} for row in rows]) == digest
    )
    assert digest_of(tmp_path / "d", [row | {"scan": str(tmp_path / "d" / row["scan"])} for row in rows]) == digest
    assert digest_of(tmp_path / "e", [row | {"scan": f"./{row['scan']}/"} for row in rows]) == digest


@pytest.mark.parametrize(
    "change", [{"scan": "other"}, {"label": "normal"}, {"sex": ""}, {"sex": "female"}, {"split": "test"}], ids=str
)
def test_digest_sees_every_change_that_matters(tmp_path, change):
    rows = full_rows()
    rows.append(rows[0] | {"scan": "s99", "patient": ""})
    changed = [*rows[:-1], rows[-1] | change]
    assert digest_of(tmp_path / "a", rows) != digest_of(tmp_path / "b", changed)


def test_digest_cannot_be_fooled_by_where_values_end(tmp_path):
    rows = full_rows()
    one = [*rows, rows[0] | {"scan": "x,normal", "patient": ""}]
    two = [*rows, rows[0] | {"scan": "x", "patient": ""}]
    assert digest_of(tmp_path / "a", one) != digest_of(tmp_path / "b", two)


# --- building -------------------------------------------------------------------------------------------------------


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def records(table) -> list[tuple[str, ...]]:
    return [tuple(row) for row in table.itertuples(index=False)]


PAPER_TREE = [
    f"{split}/{label}/{sex}/ct_{number}/1.jpg"
    for split in ("Train", "Val", "Test")
    for label in CLASSES
    for sex in SEXES
    for number in (2, 10)
]
CHALLENGE_TREE = {
    "train1/A/male/a1/0.jpg": ("train1/A/male/a1", "adenocarcinoma", "male", "train"),
    "train1/G/female/g1/0.jpg": ("train1/G/female/g1", "squamous_cell", "female", "train"),
    "train2/covid/female/c1/0.png": ("train2/covid/female/c1", "covid19", "female", "train"),
    "train2/normal/male/n1/0.dcm": ("train2/normal/male/n1", "normal", "male", "train"),
    "train1/val/A/male/a2/0.jpg": ("train1/val/A/male/a2", "adenocarcinoma", "male", "val"),
    "Validation/x/G/male/g2/0.jpg": ("Validation/x/G/male/g2", "squamous_cell", "male", "val"),
    "val1/covid/male/c2.nii.gz": ("val1/covid/male/c2.nii.gz", "covid19", "male", "val"),
    "TESTING/normal/Female/n2/0.jpg": ("TESTING/normal/Female/n2", "normal", "female", "test"),
}


@pytest.mark.parametrize("layout", ["auto", "paper"])
def test_paper_layout(tmp_path, layout):
    table, skipped = build_cohort(touch(tmp_path, *PAPER_TREE), layout=layout)
    assert not skipped
    assert set(records(table)) == {
        (f"{split}/{label}/{sex}/ct_{number}", label, sex, split.lower())
        for split in ("Train", "Val", "Test")
        for label in CLASSES
        for sex in SEXES
        for number in (2, 10)
    }
    assert list(table["scan"][:2]) == ["Test/adenocarcinoma/female/ct_2", "Test/adenocarcinoma/female/ct_10"]


@pytest.mark.parametrize("layout", ["auto", "challenge"])
def test_challenge_layout(tmp_path, layout):
    table, skipped = build_cohort(touch(tmp_path, *CHALLENGE_TREE), layout=layout)
    assert not skipped
    assert sorted(records(table)) == sorted(CHALLENGE_TREE.values())


def test_a_layout_refuses_the_other_one_and_says_so(tmp_path):
    touch(tmp_path, *PAPER_TREE, *CHALLENGE_TREE)
    paper = build_cohort(tmp_path, layout="paper")
    assert len(paper.table) == len(PAPER_TREE)
    assert {entry.path for entry in paper.skipped} == {row[0].rpartition("/")[0] for row in CHALLENGE_TREE.values()}
    assert any("'A' is not one of" in entry.reason for entry in paper.skipped)
    assert any("as the paper layout wants it" in entry.reason for entry in paper.skipped)  # train2/normal


def test_custom_classes(tmp_path):
    touch(tmp_path, "train/Asthma/male/1/1.jpg", "train/A/male/2/1.jpg", "train/covid-19/female/3/1.jpg")
    assert set(build_cohort(tmp_path).table["label"]) == {"Asthma", "adenocarcinoma", "covid19"}
    table, skipped = build_cohort(tmp_path, class_names=["asthma", "A"])
    assert records(table) == [
        ("train/A/male/2", "A", "male", "train"),
        ("train/Asthma/male/1", "asthma", "male", "train"),
    ]
    assert [entry.path for entry in skipped] == ["train/covid-19/female"] and "asthma, A" in skipped[0].reason


def test_what_is_no_scan_is_reported_not_taken(tmp_path):
    touch(
        tmp_path,
        "train/A/male/good/1.jpg",
        "train/A/male/one_volume/ct.NII.GZ",
        "train/A/male/two_volumes/ct.nii",
        "train/A/male/two_volumes/mask.nii",
        "train/A/male/only_hidden/._1.jpg",
        "train/A/male/notes/readme.txt",
        "train/A/male/nested/series/1.jpg",
        "train/A/male/loose.jpg",
        "train/A/male/._good/1.jpg",
        "train/A/male/single.dcm",
        "train/A/male/readme.txt",
        "train/A/nobody/1.jpg",
        "unlabelled/ct_1/1.jpg",
        "other/A/male/s/1.jpg",
    )
    (tmp_path / "train/A/male/empty").mkdir()
    (tmp_path / "train/A/male/gone").symlink_to(tmp_path / "nowhere")
    bare = touch(tmp_path, "train/A/male/uid/1.2.840.113619")
    (bare / "train/A/male/uid/1.2.840.113619").write_bytes(b"\0" * 128 + b"DICM")
    table, skipped = build_cohort(tmp_path)
    taken = {path.removeprefix("train/A/male/") for path in table["scan"]}
    assert taken == {"good", "one_volume/ct.NII.GZ", "single.dcm", "uid"}
    reasons = {entry.path.removeprefix("train/A/male/"): entry.reason for entry in skipped}
    assert set(reasons) == {
        "two_volumes", "only_hidden", "notes", "nested", "loose.jpg", "empty", "gone",
        "train/A/nobody", "unlabelled/ct_1", "other/A/male",
    }  # fmt: skip
    assert reasons["empty"] == reasons["only_hidden"] == "no image, DICOM or volume file in it"
    assert "which one" in reasons["two_volumes"] and "train, val or test" in reasons["other/A/male"]


def test_names_that_a_cohort_file_cannot_hold_are_reported(tmp_path):
    touch(tmp_path, "train/A/male/ok/1.jpg", "train/A/male/space /1.jpg")
    os.makedirs(os.fsencode(tmp_path) + b"/train/A/male/\xff")
    touch(tmp_path, os.fsdecode(b"train/A/male/\xff/1.jpg"))
    table, skipped = build_cohort(tmp_path)
    assert list(table["scan"]) == ["train/A/male/ok"]
    assert all(entry.path.encode() for entry in skipped)
    assert sorted(entry.reason for entry in skipped) == [
        "its name begins or ends with a space",
        "its name is not UTF-8",
    ]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    paths = [f"{split}/{c}/{sex}/{name}/1.jpg" for split in ("train", "val") for c in "AG" for sex in SEXES
             for name in ("ct_10", "ct_9", "CT_9", "ct_09", "b", "B2", "b10")]  # fmt: skip
    paths += [f"train/A/{sex}/empty{i}/x.txt" for sex in SEXES for i in (2, 11)]
    rng = random.Random(0)
    for index in range(3):
        touch(tmp_path / str(index), *rng.sample(paths, len(paths)))
    real = os.scandir

    class Shuffled:
        def __init__(self, folder):
            with real(folder) as entries:
                self.entries = list(entries)
            rng.shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    first = build_cohort(tmp_path / "0")
    monkeypatch.setattr(os, "scandir", Shuffled)
    for index in (0, 1, 2):
        again = build_cohort(tmp_path / str(index))
        assert records(again.table) == records(first.table)
        assert again.skipped == first.skipped
    names = [scan.split("/")[-1] for scan in first.table["scan"][:7]]
    assert names == ["b", "B2", "b10", "CT_9", "ct_09", "ct_9", "ct_10"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "data/train/A/male/s1/1.jpg", "elsewhere/1.jpg")
    (tmp_path / "data/train/again").symlink_to(tmp_path / "data")
    (tmp_path / "data/train/A/male/s2").symlink_to(tmp_path / "elsewhere")
    assert list(build_cohort(tmp_path / "data").table["scan"]) == ["train/A/male/s1", "train/A/male/s2"]


def test_nothing_found_is_an_error_with_reasons(tmp_path):
    with pytest.raises(CohortError, match="not a folder"):
        build_cohort(tmp_path / "nowhere")
    with pytest.raises(CohortError, match="no usable scan"):
        build_cohort(tmp_path)
    touch(tmp_path, "A/male/s1/1.jpg")  # the split is not guessed, whatever the folders above are called
    with pytest.raises(CohortError, match="A/male: no folder above the class"):
        build_cohort(tmp_path)
    with pytest.raises(ValueError, match="layout: 'papers'"):
        build_cohort(tmp_path, layout="papers")


@pytest.mark.parametrize("place", [".", "above", "above/beside"])
def test_a_built_cohort_is_written_and_loaded_back(tmp_path, place):
    data = touch(tmp_path / "above" / "data", *PAPER_TREE)
    table, _ = build_cohort(data)
    target = (data if place == "." else tmp_path / place) / "cohort.csv"
    target.parent.mkdir(exist_ok=True)
    assert write_cohort(table, target, root=data) == target
    cohort = load(target, require_splits=["train", "val", "test"])
    assert {os.path.realpath(item["image"]) for item in cohort.items("val")} == {
        os.path.realpath(data / scan) for scan in table.loc[table["split"] == "val", "scan"]
    }
    assert cohort.cells()["n"].tolist() == [2] * 24
    assert not any("\\" in scan or os.path.isabs(scan) for scan in cohort.table["scan"])


def test_a_cohort_is_written_right_through_a_linked_folder(tmp_path):
    data = touch(tmp_path / "data", *PAPER_TREE)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    write_cohort(build_cohort(data).table, tmp_path / "link" / "cohort.csv", root=data)
    assert len(load(tmp_path / "link" / "cohort.csv").table) == len(PAPER_TREE)


def test_writing_with_the_wrong_root_fails_and_writes_nothing(tmp_path):
    table, _ = build_cohort(touch(tmp_path / "data", *PAPER_TREE))
    with pytest.raises(CohortError, match="48 problems"):
        write_cohort(table, tmp_path / "cohort.csv")
    with pytest.raises(CohortError, match="no column 'label'"):
        write_cohort(table[["scan"]], tmp_path / "cohort.csv")
    assert not (tmp_path / "cohort.csv").exists()


def test_written_bytes_are_the_same_on_every_run(tmp_path):
    touch(tmp_path, *CHALLENGE_TREE)
    paths = [write_cohort(build_cohort(tmp_path).table, tmp_path / name, root=tmp_path) for name in ("a.csv", "b.csv")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"\r" not in paths[0].read_bytes()


def test_a_row_of_patients_in_place_of_the_header_is_not_shown(tmp_path):
    for row in ("s0,normal,male,DOE^JANE\n", "s0,DOE^JANE,DOE^JANE,male\n"):
        (tmp_path / "cohort.csv").write_text(row + "s1,normal,female,x\n")
        assert "DOE" not in message(tmp_path / "cohort.csv")


def test_a_cohort_says_that_it_is_synthetic(tmp_path):
    assert not load(write_rows(tmp_path, full_rows())).synthetic
    assert load(write_rows(tmp_path, [row | {"synthetic": "yes"} for row in full_rows()])).synthetic
