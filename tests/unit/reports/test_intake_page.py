"""The check of scans before inference: what is written says what was found, and a look at a scan shows the scan."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from intake_examples import EMPTY, EVIL, RECORDS, record
from PIL import Image

from fairlung.pipeline.common.volumes import PADDING
from fairlung.pipeline.phantoms.cohort import Preset, write_phantom_scans
from fairlung.pipeline.reports.intake_page import GAP, PANEL, IntakeCollector, middle_slices

RNG = np.random.default_rng(11)


def batch(records: Sequence[dict[str, Any]], size: int = 32) -> dict[str, Any]:
    """What the loader gives: scans without a volume have zeros."""
    image = torch.zeros(len(records), 1, 16, size, size)
    for i, each in enumerate(records):
        if each["status"] == "ok":
            image[i] = torch.as_tensor(RNG.random((1, 16, size, size)))
    return {
        "image": image,
        "scan": [each["scan"] for each in records],
        "reason": [each["reason"] for each in records],
        "intake": [{name: value for name, value in each.items() if name != "scan"} for each in records],
    }


# ---- a look at a scan ------------------------------------------------------------------------------------------------
def panels(volume: np.ndarray, each: dict[str, Any]) -> list[np.ndarray]:
    """Axial, coronal and sagittal slice out of a picture, by the sizes that the geometry says."""
    picture = np.asarray(middle_slices(volume, each))
    dz, dy, dx = each["spacing"]
    body = ((each["indices"][-1] - each["indices"][0] + 1) * dz, each["shape"][1] * dy, each["shape"][2] * dx)
    depth, height, width = (round(PANEL * length / max(body)) for length in body)
    found, left = [], 0
    for rows, columns in ((height, width), (depth, width), (depth, height)):
        found.append(picture[:rows, left : left + columns])
        assert found[-1].shape == (rows, columns)
        assert (picture[rows:, left : left + columns] == 255).all()
        left += columns + GAP
    assert picture.shape[1] == left - GAP
    return found


@pytest.mark.parametrize(
    "geometry",
    [
        {},  # 200 x 358 x 358 mm
        {"spacing": [5.0, 0.7, 0.7]},
        {"shape": [80, 256, 512], "spacing": [2.5, 1.0, 0.7]},
        {"indices": list(range(8, 72, 4)), "spacing": [10.0, 0.5, 0.6]},
    ],
    ids=str,
)
def test_a_look_has_the_proportions_of_the_body(geometry: dict[str, Any]) -> None:
    """A bright octant is where it must be in each of the three slices, whatever the voxels' shape."""
    volume = np.zeros((16, 64, 64))
    volume[:9, :33, :33] = 1  # inferior, anterior, right, and the middle slices are in it
    axial, coronal, sagittal = panels(volume, record("s", **geometry))
    for panel, up in ((axial, True), (coronal, False), (sagittal, False)):
        rows, columns = (np.arange(size) + 0.5 for size in panel.shape)
        bright = panel > 127
        middle = np.argwhere(bright).mean(axis=0) + 0.5
        assert abs(middle[1] / len(columns) - 0.25) < 0.06
        assert abs(middle[0] / len(rows) - (0.25 if up else 0.75)) < 0.06
        assert abs(bright.mean() - 0.27) < 0.05


def test_a_look_at_what_has_no_geometry_is_as_high_as_the_slice() -> None:
    picture = middle_slices(RNG.random((16, 64, 64)), record("s", spacing=None, affine=None, shape=[80, 512, 512]))
    assert picture.size == (3 * PANEL + 2 * GAP, PANEL)
    assert middle_slices(RNG.random((16, 64, 48)), record("s", spacing=None, shape=None)).size[1] == PANEL


def test_a_look_is_small() -> None:
    content = io.BytesIO()
    noise = RNG.random((64, 256, 256))  # the worst that there can be to compress
    middle_slices(noise, record("s")).save(content, "PNG", optimize=True)
    assert len(content.getvalue()) < 60_000


# ---- the collector and its page --------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Tags, text, pictures and table rows of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[bytes] = []
        self.captions: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "img":
            self.pictures.append(base64.b64decode(str(dict(attrs)["src"]).partition("base64,")[2]))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "figcaption" and data.strip():
            self.captions.append(data)
        if self.tags and self.tags[-1] in ("th", "td", "strong") and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
        if data.strip():
            self.texts.append(data.strip())


def check(folder: Path, records: Sequence[dict[str, Any]], **settings: Any) -> Page:
    collector = IntakeCollector(folder, **settings)
    for first in range(0, len(records), 2):
        collector.add(batch(records[first : first + 2]))
    assert collector.write() == folder / "index.html"
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_a_check_leaves_tables_a_page_and_a_picture_of_each_scan_that_can_be_read(tmp_path: Path) -> None:
    page = check(tmp_path, RECORDS)
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"fine.png", "doubtful.png", "folder.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "intake.csv", "intake.json", "pictures"}
    assert pd.read_csv(tmp_path / "intake.csv")["status"].tolist() == ["ok", "ok", "refused", "skipped", "ok"]
    # the doubtful ones first, and each caption stands below its own picture
    assert [caption.split(":")[0] for caption in page.captions] == ["doubtful", "folder", "fine"]
    for caption, content in zip(page.captions, page.pictures, strict=True):
        assert content == (tmp_path / "pictures" / f"{caption.split(':')[0]}.png").read_bytes()
    assert page.captions[0] == (
        "doubtful: dicom, 16 of 80 slices, 2.5 x 0.7 x 0.7 mm. missing_slices: 2 of 80. few_slices: 24 slices"
    )
    assert "not to scale" in page.captions[1]
    text = "\n".join(page.texts)
    for said in ("not a\nDICOM file", "a localizer", "missing_slices", "Fine", "With warnings"):
        assert said.replace("\n", " ") in text.replace("\n", " ")
    assert "Doe_John" not in text


def test_the_page_lists_every_scan_once_refused_ones_first(tmp_path: Path) -> None:
    rows = [row for row in check(tmp_path, RECORDS).rows if len(row) == 6]
    assert [row[0] for row in rows] == ["scan", "broken", "doubtful", "folder", "fine", "localizer"]
    assert [row[1] for row in rows[1:]] == ["refused", "with warnings", "with warnings", "fine", "skipped"]
    assert [row[3] for row in rows[1:]] == ["-", "16/80", "16/80", "16/80", "-"]
    assert [row[5].split("\n")[0] for row in rows[1:3]] == ["not a DICOM file", "missing_slices: 2 of 80"]


def test_names_and_reasons_cannot_become_markup(tmp_path: Path) -> None:
    evil = [
        record(EVIL, warnings=[f"x: {EVIL}"], series=EVIL),
        record(f"{EVIL}2", status="refused", reason=EVIL, **EMPTY),
    ]
    page = check(tmp_path, evil)
    assert "script" not in page.tags
    assert EVIL in page.texts
    assert len(page.pictures) == 1
    files = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "pictures").rglob("*.png")]
    assert len(files) == 1 and not re.search(r"[<>]", files[0])


def test_a_page_of_many_scans_holds_some_pictures_and_says_where_the_others_are(tmp_path: Path) -> None:
    many = [record(f"{i:03d}", warnings=["few_slices: 24"] if i in (5, 7, 30) else []) for i in range(40)]
    page = check(tmp_path, many, page_pictures=5)
    assert [caption[:3] for caption in page.captions] == ["005", "007", "030", "000", "001"]
    assert any(text.endswith("35 more are in the folder pictures.") for text in page.texts)
    assert len(list((tmp_path / "pictures").iterdir())) == 40
    assert check(tmp_path / "none", many[:4], page_pictures=0).pictures == []


def test_a_picture_of_an_earlier_check_does_not_stay(tmp_path: Path) -> None:
    check(tmp_path, [record("s")])
    assert (tmp_path / "pictures" / "s.png").exists()
    page = check(tmp_path, [record("s", status="refused", reason="gone", **EMPTY)])
    assert not (tmp_path / "pictures" / "s.png").exists() and page.pictures == []


def test_a_picture_that_fails_is_a_warning_and_costs_no_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = record("odd", indices=[])
    with caplog.at_level(logging.WARNING, "fairlung.pipeline.reports.intake_page"):
        page = check(tmp_path, [odd, record("fine")])
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("odd: no picture: ValueError: ")
    table = pd.read_csv(tmp_path / "intake.csv", keep_default_na=False)
    assert table["scan"].tolist() == ["odd", "fine"]
    assert table["warnings"][0].startswith("no_picture: ") and not table["warnings"][1]
    assert [caption.split(":")[0] for caption in page.captions] == ["fine"]


def test_a_scan_that_was_read_and_failed_later_is_refused(tmp_path: Path) -> None:
    given = batch([record("s")])
    given["reason"] = ["preprocessing gave (1, 3)"]
    collector = IntakeCollector(tmp_path)
    collector.add(given)
    collector.write()
    row = pd.read_csv(tmp_path / "intake.csv").iloc[0]
    assert (row["status"], row["reason"]) == ("refused", "preprocessing gave (1, 3)")
    assert not (tmp_path / "pictures").exists()


def test_padding_is_not_shown(tmp_path: Path) -> None:
    given = batch([record("s", indices=list(range(8)))])
    collector = IntakeCollector(tmp_path)
    given["image"][:, :, :8] = 1.0
    given["image"][:, :, 8:] = PADDING
    collector.add(given)
    shown = np.asarray(Image.open(tmp_path / "pictures" / "s.png"))
    assert (shown == 255).all()


@pytest.mark.parametrize("count", [-1, 2.5, True])
def test_a_limit_that_is_no_number_is_refused(count: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"page_pictures must be a whole number of at least 0, got {count!r}"):
        IntakeCollector(tmp_path, page_pictures=count)


def test_scans_on_disk_are_checked_from_files_to_page(tmp_path: Path) -> None:
    """Phantoms of three formats, read by SimpleITK, nibabel and Pillow here: the sizes of a chest come out right."""
    import nibabel as nib
    import SimpleITK as sitk

    preset = Preset({}, size=48, slices=(20, 24))
    made = write_phantom_scans(
        tmp_path / "scans", [("normal", "male"), ("covid19", "female")], preset=preset, fmt="nifti"
    )
    made += write_phantom_scans(tmp_path / "more", [("normal", "female")], preset=preset, fmt="nrrd")
    records, volumes = [], []
    for path in made:
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
        volume = sitk.GetArrayFromImage(image)
        records.append(
            record(
                path.name,
                shape=list(volume.shape),
                spacing=list(image.GetSpacing()[::-1]),
                indices=list(range(len(volume))),
            )
        )
        volumes.append(np.clip((volume + 1350) / 1500, 0, 1))
    assert sorted(nib.load(made[0]).header.get_zooms()) == pytest.approx(sorted(records[0]["spacing"]), rel=1e-3)
    for each, volume in zip(records, volumes, strict=True):
        axial, coronal, sagittal = panels(volume, each)
        middle = [size // 2 for size in volume.shape]
        for panel, plane in (
            (axial, volume[middle[0]]),
            (coronal, volume[::-1, middle[1]]),
            (sagittal, volume[::-1, :, middle[2]]),
        ):
            # nearest neighbour: no resampling that could share a mistake
            rows = ((np.arange(panel.shape[0]) + 0.5) * plane.shape[0] / panel.shape[0]).astype(int)
            columns = ((np.arange(panel.shape[1]) + 0.5) * plane.shape[1] / panel.shape[1]).astype(int)
            assert np.corrcoef(panel.ravel(), plane[np.ix_(rows, columns)].ravel())[0, 1] > 0.9
