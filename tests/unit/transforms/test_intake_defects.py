"""Every defect of the table is answered as the table says, and no patient is named in what is said of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import planted_defects as planted
import pytest
from planted_defects import DEFECTS, PAIRS, REFUSED, SKIPPED, TREES, Defect, Tree

from fairlung.transforms import LoadScan, ScanError, find_scans
from fairlung.transforms.dicom import stack
from fairlung.transforms.dicom.headers import SliceHeader
from fairlung.transforms.dicom.stack import judged
from fairlung.transforms.load_scan import LUNG_WINDOW

NO_SERIES = ("NIfTI, NRRD, MetaImage", "Folders of JPEG or PNG slices")  # groups that start from nothing
ROWS = [(group, defect) for group, defects in DEFECTS.items() for defect in defects]
ROW_OF = {defect.what: defect for _, defect in ROWS}
LOAD = LoadScan(size=planted.PNG_SIZE)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean series. Shared and read-only."""
    return planted.write_clean(tmp_path_factory.mktemp("clean") / "series")


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Callable[[], Path]:
    return lambda: Path(shutil.copytree(clean, tmp_path / "scan"))


def answer(path: Any) -> tuple[np.ndarray | None, dict[str, Any], str]:
    """Volume [D, H, W] or None, record, and every text that could reach a user."""
    try:
        volume, record = LOAD.read(path)
    except ScanError as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        return None, dict(error.record or {}), " ".join([*map(str, chain), json.dumps(error.record)])
    return volume[0].numpy(), record, json.dumps(record)


def codes(record: dict[str, Any]) -> list[str]:
    return sorted(warning.split(":")[0] for warning in record["warnings"])


def expected(record: dict[str, Any], *defects: Defect) -> np.ndarray:
    hu = planted.clean_volume()[0]
    if record["kind"] == "slices":
        return (defects[0].volume or planted.grey_volume)(hu) / 255.0
    for defect in defects:
        hu = hu if defect.volume is None else defect.volume(hu)
    low, high = LUNG_WINDOW
    return np.clip((hu - low) / (high - low), 0, 1)


def check(path: Path, *defects: Defect, beside: str = "") -> str:
    """One defect or several: what is said of all, the volume changed by each; what refuses one refuses all.

    ``beside`` is the code of a warning that comes from the other scans around it.
    """
    volume, record, said = answer(path)
    no = [defect for defect in defects if defect.outcome in (REFUSED, SKIPPED)]
    if no:
        assert record["status"] in {defect.outcome for defect in no}, record
        assert any(defect.says[0] in record["reason"] for defect in no), record["reason"]
        return said
    assert record["status"] == "ok", record["reason"]
    told = [code for code in codes(record) if code != beside]
    assert told == sorted({code for defect in defects for code in defect.says}), record
    wanted = expected(record, *defects)
    assert volume is not None and volume.shape == wanted.shape
    compared = np.isfinite(wanted)
    np.testing.assert_allclose(volume[compared], wanted[compared], rtol=0, atol=1e-4)
    return said


def check_privacy(*texts: str) -> None:
    for text in texts:
        assert [secret for secret in planted.SECRETS if secret in text] == []


def test_the_clean_chest_draws_no_warning(clean: Path) -> None:
    """Else a defect could hide behind it."""
    check(clean, Defect("nothing", lambda folder: None, "unchanged"))


def with_fault(group: str, defect: Defect) -> Any:
    marks = []
    if defect.fault is not None:
        what, before, now = defect.fault
        marks = [pytest.mark.fault("wrong", what, before=before, now=now)]
    return pytest.param(group, defect, id=f"{group[:5]}-{defect.what}", marks=marks)


@pytest.mark.parametrize(("group", "defect"), [with_fault(*row) for row in ROWS])
def test_a_defect(
    group: str,
    defect: Defect,
    copy: Callable[[], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    folder = tmp_path if group in NO_SERIES else copy()
    path = defect.plant(folder) or folder
    said = check(path, defect)
    check_privacy(said, caplog.text, *capfd.readouterr())


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_two_defects(pair: tuple[str, str], copy: Callable[[], Path]) -> None:
    defects = [ROW_OF[what] for what in pair]
    folder = copy()
    for defect in defects:
        defect.plant(folder)
    check_privacy(check(folder, *defects))


def test_rows_are_of_different_kinds() -> None:
    assert len({defect.what for _, defect in ROWS}) == len(ROWS)
    assert len(ROWS) >= 45


def test_every_warning_is_drawn_and_documented() -> None:
    root = Path(__file__).parents[3]
    told = {
        code for file in (root / "transforms").rglob("*.py") for code in re.findall(r'f?"([a-z_]+): ', file.read_text())
    }
    assert "missing_slices" in told
    drawn = {code for _, defect in ROWS for code in defect.says}
    drawn |= {code for tree in TREES for says in tree.scans.values() for code in says}
    assert told - drawn == set()
    assert [code for code in sorted(told) if f"`{code}`" not in (root / "docs" / "intake.md").read_text()] == []


def test_the_documentation_has_this_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "intake.md").read_text()
    begin, end = "<!-- python tests/helpers/planted_defects.py -->\n", "<!-- end -->"
    assert text.split(begin)[1].split(end)[0].strip() == planted.table().strip()


# --- times -----------------------------------------------------------------------------------------------------------


def headers_at(places: np.ndarray, times: np.ndarray) -> list[SliceHeader]:
    """Slices of a series, at heights in mm and acquired at times, as headers alone."""
    return [
        SliceHeader(
            Path(f"{k}.dcm"), instance=str(k), modality="CT", position=(0.0, 0.0, float(z)), rows=64, columns=64,
            orientation=(1, 0, 0, 0, 1, 0), pixel_spacing=(1.0, 1.0), times=(float(t), None, None),
        )
        for k, (z, t) in enumerate(zip(places, times, strict=True))
    ]  # fmt: skip


def test_times_of_one_acquisition_never_split_it() -> None:
    """Slices that are made in any order, at once, by rows of a detector, or some of them after a breath."""
    generator = np.random.default_rng(0)
    places = np.arange(40) * 2.0
    along = np.arange(40) * 0.4
    drawn = [generator.uniform(0, 60, 40) for _ in range(150)]
    drawn += [along + 30 * (places > at) for at in generator.uniform(10, 70, 5)]
    for times in (
        *drawn, generator.permutation(along), along, along[::-1], np.repeat(along[:10], 4), np.zeros(40),
        along + 30 * (places == 20), along + generator.exponential(1, 40),
    ):  # fmt: skip
        series = judged(headers_at(places, times))
        assert series.problem is None and series.warnings == []
        assert len(series.slices) == 40


@pytest.mark.parametrize("phases", [2, 3, 4])
@pytest.mark.parametrize("between", [False, True])
def test_phases_are_split_at_the_breaks(phases: int, between: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "same_pixels", lambda *_: False)
    generator = np.random.default_rng(phases)
    of = np.repeat(np.arange(phases), 40)
    places = np.tile(np.arange(40) * 4.0, phases) + between * of * 4.0 / phases
    times = np.tile(np.arange(40) * 0.4, phases) + np.cumsum(generator.uniform(40, 300, phases))[of]
    headers = headers_at(places, times)
    series = judged([headers[k] for k in generator.permutation(len(headers))])
    assert series.problem is None
    assert [warning.split(":")[0] for warning in series.warnings] == ["acquisitions"]
    assert [header.path for header in series.slices] == [Path(f"{k}.dcm") for k in range(40)]


# --- trees -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES, ids=[tree.what for tree in TREES])
def test_a_tree(tree: Tree, clean: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree.plant(tmp_path, clean)
    found = find_scans(tmp_path)
    assert [item["scan"] for item in found] == list(tree.scans)
    for item in found:
        volume, record, said = answer(item["image"])
        assert codes(record) == sorted(tree.scans[item["scan"]])
        assert volume is not None and len(volume) == 40
        np.testing.assert_allclose(volume, expected(record), rtol=0, atol=1e-4)
        check_privacy(said, caplog.text)


MESSY = [
    "thick slices of it", "a coronal reformat alone", "localizers alone", "a dose report alone", "localizers",
    "a CT of another patient", "text, PDF, system files", "hidden `._` files", "a preview picture", "ten pictures",
    "no suffix, UIDs as names", "names in no order", "no preamble, no suffix", "a file cut within its pixels",
    "garbage in all files", "one missing", "a gap of three slices", "a single slice", "gantry tilt of 35 degrees",
    "no rescale", "colour", "JPEG-LS", "Enhanced CT, frames in no order", "NIfTI, compressed", "NIfTI of two volumes",
    "NIfTI, compressed, a bit flipped", "NRRD, header and voxels apart", "NRRD, its voxels not there", "MHD and raw",
    "MHA, compressed", "names slice_3.png", "numbers twice", "a JPEG cut short", "all black",
]  # fmt: skip


def test_a_messy_tree(clean: Path, tmp_path: Path) -> None:
    """Every scan is found and answered exactly once, whatever lies around it."""
    wanted: dict[str, Defect] = {}
    for number, what in enumerate(MESSY):
        if what == "JPEG-LS" and find_spec("jpeg_ls") is None:
            continue  # nothing encodes it with Python 3.14
        group = next(group for group, defect in ROWS if defect.what == what)
        folder = tmp_path / f"site {number % 3}" / f"{number:02d}"
        if group in NO_SERIES:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(clean, folder)
        path = ROW_OF[what].plant(folder) or folder
        wanted[path.relative_to(tmp_path).as_posix()] = ROW_OF[what]
    (tmp_path / "empty" / "nested").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list.csv").write_text("name\nnobody\n")
    (tmp_path / "README.txt").write_text("no scan")
    (tmp_path / "site 0" / "export.zip").write_bytes(b"PK no scan")
    shutil.copytree(clean, tmp_path / ".trash")
    (tmp_path / "site 1" / "again").symlink_to(tmp_path, target_is_directory=True)

    found = find_scans(tmp_path)
    assert len(found) == len(wanted) >= 30
    assert {item["scan"] for item in found} == set(wanted)
    for item in found:
        check_privacy(check(item["image"], wanted[item["scan"]], beside="same_study"))


def test_a_folder_that_nobody_may_list(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(clean, tmp_path / "a")
    (tmp_path / "locked").mkdir()
    listed = os.scandir

    def scandir(folder: Any = ".") -> Any:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_scans(tmp_path)
    assert [item["scan"] for item in found] == ["a", "locked"]
    assert answer(found[0]["image"])[0] is not None
    assert "Permission denied" in answer(found[1]["image"])[1]["reason"]


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b"):
        volume, record, _ = answer(tmp_path / name)
        assert volume is None and record["status"] == "refused"
