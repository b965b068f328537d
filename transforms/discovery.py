"""What lies where: every scan of a folder tree, a file or a CSV of paths."""

import contextlib
import logging
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .dicom.headers import SeriesKey, SliceHeader, is_index, looks_like_dicom, read_headers, series_key
from .files import (
    DICOM_SUFFIXES,
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    SLICE_SUFFIXES,
    has_suffix,
    visible_entries,
    visible_files,
)
from .scan import Refusal, ScanSource, as_source
from .tables import TableError, read_table
from .tolerances import MAX_PICTURES_BESIDE

logger = logging.getLogger(__name__)

DICOM_INDEX = "DICOMDIR"
ROOT_NAMED = (".csv", ".tsv")
# never DICOM: files that lie beside scans and need not be opened to know it
OTHER_SUFFIXES = (
    *SLICE_SUFFIXES, *NIFTI_SUFFIXES, *ITK_SUFFIXES, ".raw", ".zraw", ".csv", ".tsv", ".json", ".txt", ".xml", ".pdf",
    ".zip", ".tar", ".gz", ".tgz", ".rar", ".bz2", ".xz", ".7z", ".npy", ".npz", ".py", ".md", ".html", ".log",
)  # fmt: skip

Item = dict[str, Any]


def is_dicom(path: Path) -> bool:
    """Whether a file is taken for DICOM: by its content, or as its name says so; a DICOMDIR is an index, no image.

    One whose name says that it is an image is not opened here.
    """
    if path.name.upper() == DICOM_INDEX or has_suffix(path, OTHER_SUFFIXES):
        return False
    return has_suffix(path, DICOM_SUFFIXES) or looks_like_dicom(path)


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, in natural order."""
    return [path for path in visible_files(folder) if is_dicom(path)]


def is_volume(path: Path) -> bool:
    """Whether a file's name says that it holds a whole volume: NIfTI, NRRD, MetaImage."""
    return has_suffix(path, (*NIFTI_SUFFIXES, *ITK_SUFFIXES))


def scan_kind(path: Path) -> str | None:
    """``slices``, ``dicom``, ``nifti`` or ``itk`` for a path that holds a scan, else None.

    ``mixed`` is a folder with many pictures beside DICOM files: nobody can tell which of them is the scan.
    """
    if path.is_dir():
        return _kind_of_folder(visible_files(path))
    if not path.is_file():
        return None
    if has_suffix(path, NIFTI_SUFFIXES):
        return "nifti"
    if has_suffix(path, ITK_SUFFIXES):
        return "itk"
    return "dicom" if is_dicom(path) and not is_index(path) else None


def _kind_of_folder(files: Sequence[Path]) -> str | None:
    pictures = sum(has_suffix(file, SLICE_SUFFIXES) for file in files)
    if any(is_dicom(file) and not is_index(file) for file in files):
        return "mixed" if pictures > MAX_PICTURES_BESIDE else "dicom"
    return "slices" if pictures else None


def scans_below(path: Path) -> list[Path]:
    """The scans at or below a path, in natural order; every command takes the same files for scans.

    A folder with slices or DICOM files in it is one scan; every NIfTI, NRRD, MHA file is one. Links are followed.
    """
    return _walk(path) if path.is_dir() else [path] if scan_kind(path) else []


def _walk(folder: Path, above: frozenset[str] = frozenset()) -> list[Path]:
    try:
        here = os.path.realpath(folder)
        if here in above:  # a link that leads back up
            return []
        below: list[Path] = []
        files: list[Path] = []
        for entry in visible_entries(folder):
            path = folder / entry.name
            if entry.is_dir():
                below += _walk(path, above | {here})
            elif entry.is_file():
                files.append(path)
                below += [path] if is_volume(path) else []
        kind = _kind_of_folder(files)
    except OSError:  # such as a folder that nobody may list; reading it will say so
        return [folder]
    if kind == "slices" and below:
        logger.warning("%s: the pictures in it are not taken for a scan, as there are scans below it", folder)
        return below
    return [folder, *below] if kind else below


def find_scans(roots: str | os.PathLike[str] | Sequence[tuple[str, str, str]], all_series: bool = False) -> list[Item]:
    """Every scan at or below a path (:func:`scans_below`), in natural order.

    Pictures in a folder that has scans below it are taken for a preview, with a warning. A DICOM series that goes on in
    further folders is one scan, named by the first.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for name in ("patient10/0.jpg", "patient2/0.jpg", "ct.nii.gz"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> [item["scan"] for item in find_scans(folder)]
        ['ct.nii.gz', 'patient2', 'patient10']

    Args:
        roots: a folder tree, one scan, or a CSV with a column ``scan`` of paths, absolute or relative to the CSV. Or
            several roots as (prefix of the names, path, problem); a root with a problem becomes an item that tells it.
        all_series: list every series of a DICOM folder, named ``folder#1``, ``folder#2``; else the chest CT among
            them is chosen when the folder is read.

    Returns:
        ``{"image": path or ScanSource, "scan": name}`` a scan; names are paths relative to the root.

    Raises:
        FileNotFoundError: a root does not exist, or no scan is found in any.
    """
    several = [("", os.fspath(roots), "")] if isinstance(roots, (str, os.PathLike)) else roots
    found: list[Item] = []
    for prefix, path, problem in several:
        if problem:
            found.append({"image": ScanSource(path, problem=problem), "scan": prefix})
            continue
        root = Path(path).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"--scans: {root} does not exist")
        items = _listed(root) if root.is_file() and has_suffix(root, ROOT_NAMED) else _found(root)
        if prefix:
            items = [item | {"scan": _below(prefix, root, item)} for item in items]
            items = items or [{"image": ScanSource(path, problem="holds no scan", expected=True), "scan": prefix}]
        found += items
    if not found:
        kinds = ", ".join((*SLICE_SUFFIXES, *NIFTI_SUFFIXES, *ITK_SUFFIXES))
        looked = ", ".join(path for _, path, _ in several)
        raise FileNotFoundError(f"--scans: no scan found in {looked} (looked for DICOM by content, and {kinds})")
    found = _continued(found)
    return [each for item in found for each in _series(item)] if all_series else found


def _found(root: Path) -> list[Item]:
    return [
        {"image": str(path), "scan": path.name if path == root else path.relative_to(root).as_posix()}
        for path in scans_below(root)
    ]


def _below(prefix: str, root: Path, item: Item) -> str:
    """A scan's name below a prefix; the prefix itself where the scan is the whole root."""
    return prefix if str(item["image"]) == str(root) else f"{prefix}/{item['scan']}"


def _listed(file: Path) -> list[Item]:
    """The scans that a CSV names; a path without a scan becomes an item that says so."""
    try:
        table = read_table(file)
    except TableError as error:
        raise ValueError(f"--scans: {file}: {error}") from error
    if "scan" not in table.header:
        raise ValueError(f"--scans: {file} has no column 'scan' with a path a row")
    items: list[Item] = []
    column, first = table.header.index("scan"), dict[str, int]()
    for line, row in table.rows:
        name = row[column].strip()
        if not name or first.setdefault(name, line) != line:
            logger.warning("%s: line %d names %s", file, line, f"the scan of line {first[name]}" if name else "no scan")
            continue
        path = file.parent / os.path.expanduser(name)
        exists = os.path.exists(path)  # unlike Path.exists, also of a name that is too long
        below = _found(path) if exists else []
        if not below:
            said = "holds no scan" if exists else "does not exist"
            items.append({"image": ScanSource(str(path), problem=said), "scan": name})
        elif len(below) == 1:
            items.append(below[0] | {"scan": name})
        else:
            items += [item | {"scan": f"{name}/{item['scan']}"} for item in below]
    return items


def _folder(item: Item) -> Path | None:
    """The DICOM folder that an item is, None of anything else."""
    try:
        if not isinstance(item["image"], ScanSource) and os.path.isdir(item["image"]):
            folder = Path(item["image"])
            return folder if scan_kind(folder) == "dicom" else None
    except OSError:  # reading it will say so
        pass
    return None


def _headers(files: Iterable[Path]) -> Iterator[SliceHeader]:
    for file in files:
        with contextlib.suppress(Refusal):
            yield from read_headers(file)


def _end_series(folder: Path) -> set[SeriesKey]:
    """The series of a folder's first and last readable file; only these can go on in another folder."""
    files = dicom_files(folder)
    ends = (next(_headers(order), None) for order in (files, reversed(files)))
    return {series_key(header) for header in ends if header is not None and header.series}


def _places(folder: Path) -> set[Hashable]:
    """Instances of a folder, and where the slices of each of its series lie."""
    found: set[Hashable] = set()
    for header in _headers(dicom_files(folder)):
        found |= {(series_key(header), header.position), header.instance or header.path}
    return found


def _continued(items: list[Item]) -> list[Item]:
    """Join the folders over which one DICOM series is spread; copies of a series stay scans of their own."""
    whole: list[Item] = []
    by_series: dict[SeriesKey, Item] = {}  # the scan to which a folder that begins or ends with it is added
    places: dict[str, set[Hashable]] = {}
    for item in items:
        folder = _folder(item)
        keys = set() if folder is None else _end_series(folder)
        known = next((by_series[key] for key in sorted(keys) if key in by_series), None)
        if folder is not None and known is not None:
            here = _places(folder)
            name = known["scan"]
            if name not in places:
                places[name] = _places(Path(known["image"]))
            if not places[name] & here:
                places[name] |= here
                source = as_source(known["image"])
                known["image"] = replace(source, more=(*source.more, str(folder)))
                by_series |= dict.fromkeys(keys, known)
                continue
        whole.append(item)
        by_series |= {key: item for key in keys if key not in by_series}
    return whole


def parts_of_scans(paths: Iterable[Path]) -> set[Path]:
    """The DICOM folders among scans that hold only a part of a series."""
    found = _continued([{"image": str(path), "scan": str(path)} for path in paths])
    sources = [item["image"] for item in found if isinstance(item["image"], ScanSource)]
    return {Path(part) for source in sources for part in (source.path, *source.more)}


def source_files(source: ScanSource) -> list[Path]:
    """The DICOM files of a source."""
    path = Path(source.path)
    if not path.is_dir():
        return [path]
    return [file for folder in (path, *map(Path, source.more)) for file in dicom_files(folder)]


def _series(item: Item) -> list[Item]:
    source = item["image"] if isinstance(item["image"], ScanSource) else ScanSource(item["image"])
    if source.problem or not os.path.isdir(source.path) or scan_kind(Path(source.path)) != "dicom":
        return [item]
    from .dicom.choice import read_folder

    series, _ = read_folder(source_files(source))
    if len(series) < 2:
        return [item]
    return [
        {"image": ScanSource(source.path, source.more, each.number), "scan": f"{item['scan']}#{each.number}"}
        for each in series
    ]
