"""A cohort is counted exactly, and is the same however its file is written."""

from __future__ import annotations

import io
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from cohort_files import CLASSES, SEXES, full_rows, load, message, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fairlung.pipeline.cli.console import cells_table, drawn


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


def test_columns_of_other_names_give_the_same_cohort(tmp_path):
    path = write_rows(tmp_path, full_rows())
    header, rest = path.read_text().split("\n", 1)
    other = path.with_name("other.csv")
    other.write_text(f"{header.replace('scan', 'path').replace('sex', 'gender')}\n{rest}")
    columns = " path=scan, gender =sex"
    cohort, found = load(path), load(other, columns=columns)
    assert found.table.equals(cohort.table) and found.digest == cohort.digest
    for wrong, said in (
        ("pth=scan,gender=sex", "other.csv: no column 'pth' to take for 'scan' (did you mean 'path'?)"),
        ("path=scan,gender=sex,label=sex", "other.csv: there would be two columns sex"),
        ("path", "columns must be such as path=scan,gender=sex, got 'path'"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as refused:
            load(other, columns=wrong)
        assert "\n" not in str(refused.value)


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


def test_a_cohort_says_that_it_is_synthetic(tmp_path):
    assert not load(write_rows(tmp_path, full_rows())).synthetic
    assert load(write_rows(tmp_path, [row | {"synthetic": "yes"} for row in full_rows()])).synthetic
