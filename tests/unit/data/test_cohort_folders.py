"""A cohort file built from a folder tree is the same whatever the file system's order."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from cohort_files import CLASSES, SEXES, load

from fairlung.pipeline.data.cohort_checks import CohortError
from fairlung.pipeline.data.cohort_folders import build_cohort, write_cohort


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
