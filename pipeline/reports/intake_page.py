"""The page of an intake check: what was found when each scan was read, and a look at the scan.

Records are those of the intake (``fairlung.transforms.LoadScand``) with the scan's name beside them. The files that a
scan was read from are left out everywhere: their names may identify a patient.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fairlung.transforms.checks import check_whole

from ..common import run_folder
from ..common.files import ScanPaths, encoded, replace_durably
from ..common.volumes import slice_counts
from ..data.intake_records import (
    GROUPS,
    group_counts,
    group_of,
    not_made,
    scan_facts,
    spacing_text,
    warning_counts,
    write_intake,
)
from .document import Document, Paragraph, Picture, Pictures, Section, Table, render_html

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.pseudonyms import Pseudonyms

logger = logging.getLogger(__name__)

TABLE, PAGE, PICTURES = run_folder.INTAKE, "index.html", "pictures"
PANEL = 160  # pixels of the longest side of a middle slice
GAP = 4
GREYS = 64  # levels in a picture: enough for a look, and a third of the bytes
LOOK = (
    "Middle slices, axial, coronal and sagittal, as the network gets them before they are cropped. The patient's right "
    "is on the left; of slice folders that is not known."
)


def middle_slices(volume: NDArray[np.floating], record: Mapping[str, Any]) -> Image:
    """The middle axial, coronal and sagittal slice of a volume side by side, in the proportions of the body (mode L).

    Anterior is up in the axial and left in the sagittal slice, superior is up in both others, and the patient's right
    is on the left. The slices of the volume are a choice out of the scan's: they are drawn as high as what they span.
    Without a geometry (slice folders) that height is not known and drawn as that of an axial slice; pixels of a slice
    are taken for squares. The longest side of a slice gets :data:`PANEL` pixels.

    ``volume`` [D, H, W] in [0, 1] holds the slices ``indices`` of the intake ``record``, whole (not cropped), of any
    number of pixels.
    """
    from PIL import Image

    depth, height, width = _extents(volume.shape, record)
    scale = PANEL / max(depth, height, width)
    middle = [size // 2 for size in volume.shape]
    axial, coronal, sagittal = volume[middle[0]], volume[::-1, middle[1]], volume[::-1, :, middle[2]]
    panels = []
    for plane, rows, columns in (axial, height, width), (coronal, depth, width), (sagittal, depth, height):
        size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
        grey = Image.fromarray(np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8))
        levels = np.rint(np.asarray(grey.resize(size, Image.Resampling.BILINEAR), dtype=float) * (GREYS - 1) / 255)
        panels.append(Image.fromarray(np.rint(levels * 255 / (GREYS - 1)).astype(np.uint8)))
    picture = Image.new("L", (sum(p.width for p in panels) + 2 * GAP, max(p.height for p in panels)), 255)
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + GAP
    return picture


def _extents(shape: Sequence[int], record: Mapping[str, Any]) -> tuple[float, float, float]:
    """Lengths of a volume along D, H and W: mm, or pixels where these are not known."""
    rows, columns = shape[1:] if record["shape"] is None else record["shape"][1:]
    if record["spacing"] is None:
        return rows, rows, columns
    dz, dy, dx = record["spacing"]
    return (max(record["indices"]) - min(record["indices"]) + 1) * dz, rows * dy, columns * dx


def intake_document(
    records: Sequence[Mapping[str, Any]], pictures: Mapping[str, Path], limit: int, folder: str = PICTURES
) -> Document:
    """The page: how many scans are how, what is said of each, and looks at them, the doubtful ones first.

    ``pictures`` has a PNG by scan (not of those that could not be read); the page shows ``limit`` of them at most.
    """
    ordered = sorted(records, key=lambda record: list(GROUPS).index(group_of(record)))
    counts = group_counts(records)
    facts = (("scans", str(len(records))), *((GROUPS[group].lower(), str(count)) for group, count in counts.items()))
    warnings = tuple((code, str(count)) for code, count in warning_counts(records).items())
    first = (Table("Warnings", ("warning", "scans"), warnings),) if warnings else ()
    sections = [Section("All scans", (*first, scans_table(ordered)))]
    left = limit
    for group in ("warnings", "fine"):  # refused and skipped scans have no volume
        shown = [record for record in ordered if group_of(record) == group and record["scan"] in pictures]
        if not shown:
            continue
        items = tuple(_look(record, pictures[record["scan"]]) for record in shown[:left])
        more = len(shown) - len(items)
        said = Paragraph(LOOK + (f" {more} more are in the folder {folder}." if more else ""))
        left -= len(items)
        sections.append(Section(GROUPS[group], (said, *([Pictures(items, column=300)] if items else []))))
    return Document("Intake check", facts, tuple(sections))


def scans_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """What the intake says of each scan; doubtful ones have their status in bold."""
    columns = ("scan", "status", "kind", "slices", "voxel (mm)", "reason or warnings")
    doubtful = frozenset((i, 1) for i, record in enumerate(records) if group_of(record) in ("refused", "warnings"))
    rows = []
    for record in records:
        slices = f"{record['slices_used']}/{record['slices_found']}" if record["slices_found"] else "-"
        voxel = spacing_text(record["spacing"]) if record["spacing"] else "-"
        notes = [record["reason"], *record["warnings"], record["series"]]
        said = "\n".join(line for note in notes for line in textwrap.wrap(note, 46)) or "-"
        status = GROUPS[group_of(record)].lower()
        rows.append((record["scan"], status, record["kind"] or "-", slices, voxel, said))
    return Table(f"{len(records)} scans, the doubtful first", columns, tuple(rows), doubtful, ends_in_text=True)


def _look(record: Mapping[str, Any], path: Path) -> Picture:
    said = [f"{record['scan']}: {scan_facts(record)}{', not to scale' if record['spacing'] is None else ''}"]
    said += [*record["warnings"], *([record["series"]] if record["series"] else [])]
    return Picture(path.stem, f"middle slices of {record['scan']}", path.read_bytes(), caption=". ".join(said))


class IntakeCollector:
    """Collects the intake records and pictures of new scans, and writes the tables and the page.

    Each scan that can be read gets a picture, ``<output_dir>/pictures/<scan>.png``, when its batch is added; so no
    volume is kept. :meth:`write` then makes ``intake.csv`` and ``intake.json`` (:func:`write_intake`) and
    ``index.html``, one page that holds at most ``page_pictures`` pictures of about 20 kB each in itself.

    Example::

        collector = IntakeCollector("check")
        for batch in loader:
            collector.add(batch)
        page = collector.write()
    """

    def __init__(self, output_dir: str | Path, page_pictures: int = 200, pseudonyms: Pseudonyms | None = None) -> None:
        check_whole("page_pictures", page_pictures, least=0)
        self.output_dir, self.page_pictures = Path(output_dir), page_pictures
        self.pseudonyms = pseudonyms
        self.records: list[dict[str, Any]] = []
        self._name = ScanPaths()
        self._pictures: dict[str, Path] = {}

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take a batch: ``image`` [N, 1, D, H, W] in [0, 1], not cropped; lists ``scan``, ``intake``, ``reason``."""
        parts = (batch[name] for name in ("image", "scan", "reason", "intake"))
        for image, scan, reason, intake in zip(*parts, strict=True):
            record = {"scan": scan, **intake}
            if reason and record["status"] == "ok":
                record |= {"status": "refused", "reason": reason}
            if self.pseudonyms is not None:
                record = self.pseudonyms.record(scan, record)
            self.records.append(record)
            path = self.output_dir / PICTURES / f"{self._name(scan)}.png"
            try:
                path.unlink(missing_ok=True)  # an earlier check may have left one
                if record["status"] == "ok":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    volume = torch.as_tensor(image)[0, : slice_counts(image[None])[0]].float().cpu().numpy()
                    middle_slices(volume, record).save(path, "PNG", optimize=True)
                    self._pictures[scan] = path
            except Exception as error:  # a picture that fails must not cost the record
                record["warnings"] = [*record["warnings"], not_made("picture", error)]
                logger.warning("%s: no picture: %s: %s", scan, type(error).__name__, error)

    def write(self) -> Path:
        write_intake(self.records, self.output_dir / TABLE)
        page = self.output_dir / PAGE
        replace_durably(page, encoded(render_html(intake_document(self.records, self._pictures, self.page_pictures))))
        return page


def collect(loader: Iterable[Mapping[str, Any]], collector: IntakeCollector) -> None:
    """Take all batches of a loader that has a length, with a progress bar; then write the tables and the page."""
    for batch in tqdm(loader, desc="checking", unit="batch", leave=False, disable=None):
        collector.add(batch)
    collector.write()
