"""Finding scans: one rule of what a scan is, for inference and for the cohort file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from planted_defects import media_directory
from small_scans import PERSON, loader, save_grey

from fairlung.pipeline.data.cohort_folders import PART, build_cohort
from fairlung.pipeline.phantoms.writers import write_dicom_series, write_nifti, write_nrrd_or_mha
from fairlung.transforms import ScanError, find_scans
from fairlung.transforms.dicom.headers import MAGIC
from fairlung.transforms.discovery import scan_kind


@pytest.fixture
def tree(odd_hu: tuple[np.ndarray, Sequence[float]], tmp_path: Path) -> Path:
    hu, spacing = odd_hu
    root = tmp_path / "tree"
    save_grey(root / "a/patient10", ["0.jpg", "1.jpg"])
    save_grey(root / "a/patient2", ["0.png", "1.png"])
    write_dicom_series(root / "b/series", hu, spacing, **PERSON)
    write_nifti(root / "b/scan.nii.gz", hu, spacing)
    write_nrrd_or_mha(root / "c.mha", hu, spacing)
    save_grey(root / ".cache/patient", ["0.jpg"])
    save_grey(root / "a/.thumbnails", ["0.jpg"])
    (root / "b/._scan.nii.gz").write_bytes(b"resource fork of a Mac")
    (root / "empty").mkdir()
    (root / "readme.txt").write_text("")
    return root


def test_scans_of_a_mixed_tree(tree: Path) -> None:
    names = ["a/patient2", "a/patient10", "b/scan.nii.gz", "b/series", "c.mha"]
    found = find_scans(tree)
    assert found == [{"image": str(tree / name), "scan": name} for name in names]
    for scan in found:
        assert loader()(scan["image"]).ndim == 4
    assert find_scans(str(tree / "b")) == [
        {"image": str(tree / "b" / name), "scan": name} for name in ("scan.nii.gz", "series")
    ]


@pytest.mark.parametrize("name", ["a/patient2", "b/series", "b/scan.nii.gz", "c.mha"])
def test_a_root_that_is_one_scan(name: str, tree: Path) -> None:
    assert find_scans(tree / name) == [{"image": str(tree / name), "scan": Path(name).name}]


def test_nothing_found(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--scans: .*none does not exist"):
        find_scans(tree / "none")
    with pytest.raises(FileNotFoundError, match=r"--scans: no scan found in .*empty \(looked for DICOM .*\.jpg.*\.nii"):
        find_scans(tree / "empty")


@pytest.mark.fault(
    "wrong",
    "a DICOMDIR of another name",
    before="an unreadable file, or a scan that is refused",
    now="left out",
)
@pytest.mark.parametrize("name", ["DIRFILE", "DICOMDIR.dcm"])
def test_a_dicomdir_of_any_name_is_no_scan(name: str, tmp_path: Path, data_dir: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(data_dir / "chest_ct_dicom", study / "series")
    for folder in (study, study / "series"):
        media_directory(name)(folder)
    assert [scan["scan"] for scan in find_scans(tmp_path)] == ["study/series"]
    assert scan_kind(study / name) is None
    _, record = loader().read(study / "series")
    assert record["warnings"] == []


def test_a_stray_picture_changes_no_answer(tmp_path: Path, data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(data_dir / "chest_ct_dicom", tmp_path / "tree" / "a" / "ct")
    picture = data_dir / "golden" / "jpg_scan" / "0.jpg"
    for folder in (tmp_path / "tree", tmp_path / "tree" / "a"):
        shutil.copy(picture, folder / "preview.jpg")
    assert [scan["scan"] for scan in find_scans(tmp_path / "tree")] == ["a/ct"]
    assert caplog.text.count("not taken for a scan") == 2
    shutil.copy(picture, tmp_path / "tree" / "a" / "ct" / "preview.jpg")
    (scan,) = find_scans(tmp_path / "tree")
    assert scan["scan"] == "a/ct"
    volume, record = loader().read(scan["image"])
    assert record["warnings"] == ["pictures: 1 pictures beside the DICOM files are not used"]
    assert torch.equal(volume, loader()(data_dir / "chest_ct_dicom"))
    for number in range(10):
        shutil.copy(picture, tmp_path / "tree" / "a" / "ct" / f"{number}.jpg")
    with pytest.raises(ScanError, match="many pictures beside DICOM files"):
        loader()(scan["image"])


def write_every_kind(root: Path, series: Path, odd_hu: tuple[np.ndarray, Sequence[float]]) -> dict[str, str | None]:
    """A folder with scans of every kind and what lies about beside them: path -> its kind, None of what is no scan."""
    kinds: dict[str, str | None] = {}
    slices = sorted(series.iterdir())
    for name, file_name in {
        "dcm": "{}.dcm", "dicom": "{}.dicom", "ima": "{}.IMA", "img": "IM-{}.img", "uid": "1.2.840.{}", "bare": "I{}",
        "mixed": "{}.dcm", "preview": "{}.dcm",
    }.items():  # fmt: skip
        (root / name).mkdir(parents=True)
        for i, file in enumerate(slices):
            shutil.copy(file, root / name / file_name.format(i))
        kinds[name] = "mixed" if name == "mixed" else "dicom"
    (root / "no_preamble").mkdir()
    for file in slices:
        dataset = pydicom.dcmread(file)
        plain = pydicom.Dataset({element.tag: element for element in dataset})
        pydicom.dcmwrite(root / "no_preamble" / f"{file.stem}.img", plain, implicit_vr=True, little_endian=True)
        assert MAGIC not in (root / "no_preamble" / f"{file.stem}.img").read_bytes()[:200]
    kinds["no_preamble"] = "dicom"
    save_grey(root / "mixed", [f"{i}.jpg" for i in range(12)])
    save_grey(root / "preview", ["preview.png"])
    for name, suffix in {"jpg": ".jpg", "jpeg": ".JPEG", "png": ".png"}.items():
        save_grey(root / name, [f"{i}{suffix}" for i in range(3)])
        kinds[name] = "slices"
    for suffix in (".nii", ".nii.gz"):
        write_nifti(root / f"scan{suffix}", *odd_hu)
        kinds[f"scan{suffix}"] = "nifti"
    for suffix in (".nrrd", ".mha"):
        write_nrrd_or_mha(root / f"scan{suffix}", *odd_hu)
        kinds[f"scan{suffix}"] = "itk"
    write_nifti(save_grey(root / "own_folder", ["preview.jpg"]) / "scan.nii.gz", *odd_hu)
    kinds["own_folder/scan.nii.gz"] = "nifti"
    save_grey(root.parents[3] / "elsewhere", ["0.jpg", "1.jpg"])
    (root / "linked").symlink_to(root.parents[3] / "elsewhere")
    (root / "linked.nii.gz").symlink_to(root / "scan.nii.gz")
    kinds |= {"linked": "slices", "linked.nii.gz": "nifti"}
    (root / "gone").symlink_to(root / "nowhere")
    (root / "up").symlink_to(root.parent)
    save_grey(root / ".thumbnails", ["0.jpg"])
    (root / "hidden_alone").mkdir()
    for name in ("._scan.nii.gz", "hidden_alone/._0.jpg", "readme.txt", "table.csv"):
        (root / name).write_text("no scan")
    shutil.copy(slices[0], root / "hidden_alone" / "DICOMDIR")
    return kinds | dict.fromkeys(("gone", "hidden_alone", "readme.txt", "table.csv"))


def test_inference_and_the_cohort_agree_on_what_a_scan_is(
    tmp_path: Path, data_dir: Path, odd_hu: tuple[np.ndarray, Sequence[float]]
) -> None:
    data = tmp_path / "data"
    root = data / "train" / "normal" / "male"
    kinds = write_every_kind(root, data_dir / "chest_ct_dicom", odd_hu)
    scans = {name for name, kind in kinds.items() if kind}
    built = build_cohort(data)
    prefix = "train/normal/male/"
    assert {scan.removeprefix(prefix) for scan in built.table["scan"]} == scans
    assert [item["scan"] for item in find_scans(data)] == list(built.table["scan"])
    assert {entry.path.removeprefix(prefix) for entry in built.skipped} == {"gone", "hidden_alone", "up"}
    assert {name: scan_kind(root / name) for name in kinds} == kinds


def test_a_single_dicom_file_is_a_scan_whatever_it_is_called(tmp_path: Path, data_dir: Path) -> None:
    slice_ = next((data_dir / "chest_ct_dicom").iterdir())
    root = tmp_path / "train" / "normal" / "male"
    root.mkdir(parents=True)
    for name in ("a.dcm", "b.dicom", "c.img", "d"):
        shutil.copy(slice_, root / name)
        assert [item["scan"] for item in find_scans(root / name)] == [name]
    assert [Path(scan).name for scan in build_cohort(tmp_path).table["scan"]] == ["a.dcm", "b.dicom", "c.img", "d"]


def test_a_series_in_two_folders_is_one_scan_to_inference_and_no_row_of_a_cohort(
    tmp_path: Path, data_dir: Path
) -> None:
    root = tmp_path / "train" / "normal" / "male"
    for i, slice_ in enumerate(sorted((data_dir / "chest_ct_dicom").iterdir())):
        folder = root / ("first" if i < 3 else "second")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(slice_, folder)
    save_grey(root / "whole", ["0.jpg"])
    assert [item["scan"].rpartition("/")[2] for item in find_scans(tmp_path)] == ["first", "whole"]
    built = build_cohort(tmp_path)
    assert list(built.table["scan"]) == ["train/normal/male/whole"]
    assert {(Path(entry.path).name, entry.reason) for entry in built.skipped} == {("first", PART), ("second", PART)}


def test_pictures_above_scans_are_a_scan_to_neither(tmp_path: Path) -> None:
    root = tmp_path / "train" / "normal" / "male"
    save_grey(root / "good", ["0.jpg"])
    save_grey(save_grey(root / "ct", ["preview.jpg"]) / "series", ["0.jpg"])
    built = build_cohort(tmp_path)
    assert list(built.table["scan"]) == ["train/normal/male/good"]
    assert [entry.reason for entry in built.skipped] == [
        "pictures with scans in folders below them; which one is the scan?"
    ]
    assert "train/normal/male/ct" not in [item["scan"] for item in find_scans(tmp_path)]


def test_listing_scans_and_reading_a_cohort_load_nothing_that_they_do_not_need(tmp_path: Path, data_dir: Path) -> None:
    """In processes of their own: what is imported stays imported."""
    root = tmp_path / "train" / "normal" / "male"
    save_grey(root / "ct", ["0.jpg"])
    (tmp_path / "cohort.csv").write_text("scan,label,sex\ntrain/normal/male/ct,normal,male\n")
    heavy = "{'torch', 'monai', 'nibabel', 'SimpleITK', 'scipy', 'sklearn', 'matplotlib', 'rich'}"
    for said in (
        f"from fairlung.transforms import find_scans; find_scans({str(data_dir)!r})",
        "from fairlung.pipeline import load_cohort; "
        f"load_cohort({str(tmp_path / 'cohort.csv')!r}, class_names=['normal'], allow_empty_cells=True)",
        f"from fairlung.pipeline.data.cohort_folders import build_cohort; build_cohort({str(tmp_path)!r})",
    ):
        code = f"import sys; {said}; print(*sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "", said
