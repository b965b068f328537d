"""What lies where: every scan of a folder tree, a file or a CSV of paths, here or at an address for fsspec."""

import logging
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .addresses import file_name, folder_of, is_remote, located, plain_name, shown
from .checks import check_setting
from .dicom.headers import (
    SeriesKey,
    SliceHeader,
    begins_as_dicom,
    is_index,
    looks_like_dicom,
    no_ct_slice,
    read_headers,
    series_key,
)
from .files import (
    DICOM_SUFFIXES,
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    OTHER_SUFFIXES,
    SLICE_SUFFIXES,
    has_suffix,
    visible_entries,
    visible_files,
)
from .remote import entries, fetched, fetched_file, file_at, head, is_part, scan_files, state_of
from .scan import Refusal, ScanSource, as_source
from .tables import TableError, read_table
from .tolerances import MAX_PICTURES_BESIDE

logger = logging.getLogger(__name__)

DICOM_INDEX = "DICOMDIR"
ROOT_NAMED = (".csv", ".tsv")

Item = dict[str, Any]
Ends = dict[str, list[SliceHeader]]


def is_dicom(path: Path) -> bool:
    """Whether a file is taken for DICOM: by its content, or as its name says so; a DICOMDIR is an index, no image.

    One whose name says that it is an image is not opened here.
    """
    named = _named_dicom(path)
    return looks_like_dicom(path) if named is None else named


def _named_dicom(path: Path) -> bool | None:
    """Whether a file's name says that it is DICOM; None where it does not say."""
    if path.name.upper() == DICOM_INDEX or has_suffix(path, OTHER_SUFFIXES):
        return False
    return True if has_suffix(path, DICOM_SUFFIXES) else None


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


def _kind_of_folder(files: Sequence[Path], has_dicom: bool | None = None) -> str | None:
    pictures = sum(has_suffix(file, SLICE_SUFFIXES) for file in files)
    if any(is_dicom(file) and not is_index(file) for file in files) if has_dicom is None else has_dicom:
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
    return [folder, *below] if _is_scan(folder, kind, bool(below)) else below


def _is_scan(folder: str | Path, kind: str | None, scans_below: bool) -> bool:
    """Whether a folder of this kind is a scan; of its pictures, which are taken for a preview, the log is told."""
    if kind == "slices" and scans_below:
        logger.warning("%s: the pictures in it are not taken for a scan, as there are scans below it", folder)
        return False
    return kind is not None


def _walk_remote(folder: str) -> list[ScanSource]:
    """As :func:`_walk` below an address; a folder in it that cannot be listed becomes a scan that says so."""
    below: list[ScanSource] = []
    files = []
    for entry in entries(folder):
        if not entry.is_folder:
            files.append(entry)
            below += [ScanSource(entry.address)] if is_volume(Path(entry.name)) else []
        else:
            try:
                below += _walk_remote(entry.address)
            except Refusal as error:
                below.append(ScanSource(entry.address, problem=str(error)))
    names = [Path(file.name) for file in files]
    said = [_named_dicom(name) for name in names]
    unsaid = (file for file, is_said in zip(files, said, strict=True) if is_said is None)
    kind = _kind_of_folder(names, True in said or any(begins_as_dicom(head(file.address)) for file in unsaid))
    if not _is_scan(shown(folder), kind, bool(below)):
        return below
    return [ScanSource(folder, listed=(state_of(file for file in files if is_part(file.name)),)), *below]


def find_scans(
    roots: str | os.PathLike[str] | Sequence[tuple[str, str, str]], all_series: bool = False,
    one_per_study: bool = False,
) -> list[Item]:  # fmt: skip
    """Every scan at or below a path (:func:`scans_below`), in natural order.

    Pictures in a folder that has scans below it are taken for a preview, with a warning. A DICOM series that goes on in
    further folders is one scan, named by the first. CTs of a study in several folders have the warning ``same_study``.

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
        one_per_study: the DICOM folders of a study are one scan, named by the first. Not with ``all_series``.

    Returns:
        ``{"image": path or ScanSource, "scan": name}`` a scan; names are paths relative to the root.

    Raises:
        FileNotFoundError: a root does not exist, or no scan is found in any.
        ValueError: both ``all_series`` and ``one_per_study``.
    """
    check_setting("one_per_study", one_per_study, not (one_per_study and all_series), "false with all_series")
    several = [("", os.fspath(roots), "")] if isinstance(roots, (str, os.PathLike)) else roots
    found: list[Item] = []
    named: set[str] = set()  # paths that a CSV names: what they hold is meant
    for prefix, path, problem in several:
        if problem:
            found.append({"image": ScanSource(path, problem=problem), "scan": prefix})
            continue
        root = path if is_remote(path) else Path(path).expanduser()
        if isinstance(root, Path) and not root.exists():
            raise FileNotFoundError(f"--scans: {root} does not exist")
        try:
            listed = has_suffix(Path(shown(path)), ROOT_NAMED) and (is_remote(path) or os.path.isfile(root))
            items = _listed(root) if listed else _found(root)
        except Refusal as error:
            raise ValueError(f"--scans: {shown(path)}: {error}") from None
        named |= {os.fspath(item["image"]) for item in items if listed}
        if prefix:
            items = [item | {"scan": _below(prefix, root, item)} for item in items]
            items = items or [{"image": ScanSource(path, problem="holds no scan", expected=True), "scan": prefix}]
        found += items
    if not found:
        kinds = ", ".join((*SLICE_SUFFIXES, *NIFTI_SUFFIXES, *ITK_SUFFIXES))
        looked = ", ".join(shown(path) for _, path, _ in several)
        raise FileNotFoundError(f"--scans: no scan found in {looked} (looked for DICOM by content, and {kinds})")
    ends: Ends = {}
    found = _continued(found, ends)
    found = _by_study(found, ends, one_per_study) if not all_series else [s for item in found for s in _series(item)]
    if ends:
        _mark_aside(found, {*ends, *named})
    return found


def _found(root: Path | str) -> list[Item]:
    """The scans at or below a root; Refusal where an address cannot be listed."""
    if not isinstance(root, Path):
        if (file := file_at(root)) is None:
            start = len(root.rstrip("/")) + 1
            names = ((scan, plain_name(scan.path[start:], root)) for scan in _walk_remote(root))
            return [{"image": scan, "scan": name or file_name(root)} for scan, name in names]
        named = is_volume(Path(file.name)) or _named_dicom(Path(file.name))
        is_scan = begins_as_dicom(head(root)) if named is None else named
        return [{"image": ScanSource(root), "scan": file_name(root)}] if is_scan else []
    return [
        {"image": str(path), "scan": path.name if path == root else path.relative_to(root).as_posix()}
        for path in scans_below(root)
    ]


def _below(prefix: str, root: Path | str, item: Item) -> str:
    """A scan's name below a prefix; the prefix itself where the scan is the whole root."""
    return prefix if str(item["image"]) == str(root) else f"{prefix}/{item['scan']}"


def _listed(file: Path | str) -> list[Item]:
    """The scans that a CSV names; a path without a scan becomes an item that says so."""
    folder = os.path.dirname(file) if isinstance(file, Path) else folder_of(file)
    shown_file = shown(os.fspath(file))
    try:
        with fetched_file(file) as local:
            table = read_table(local)
    except TableError as error:
        raise ValueError(f"--scans: {shown_file}: {error}") from error
    if "scan" not in table.header:
        raise ValueError(f"--scans: {shown_file} has no column 'scan' with a path a row")
    items: list[Item] = []
    column, first = table.header.index("scan"), dict[str, int]()
    lines: dict[str, int] = {}
    for line, row in table.rows:
        named = row[column].strip()
        if not named or first.setdefault(named, line) != line:
            what = f"the scan of line {first[named]}" if named else "no scan"
            logger.warning("%s: line %d names %s", shown_file, line, what)
            continue
        name = shown(named)
        if lines.setdefault(name, line) != line:  # addresses that differ in what is not shown
            name = f"{name} (line {line})"
        path = located(folder, os.path.expanduser(named))
        said, below = "", list[Item]()
        try:
            # os.path.exists: unlike Path.exists, also of a name that is too long
            exists = is_remote(path) or os.path.exists(path)
            below = _found(path if is_remote(path) else Path(path)) if exists else []
            said = "holds no scan" if exists else "does not exist"
        except Refusal as error:
            said = str(error)
        if not below:
            items.append({"image": ScanSource(path, problem=said), "scan": name})
        elif len(below) == 1:
            items.append(below[0] | {"scan": name})
        else:
            items += [item | {"scan": f"{name}/{item['scan']}"} for item in below]
    return items


def _folder(item: Item) -> str | None:
    """The DICOM folder that an item is, or a remote one that may be; None of anything else."""
    source = item["image"]
    try:
        if isinstance(source, ScanSource):
            return source.path if source.listed else None
        if os.path.isdir(source):
            return str(source) if scan_kind(Path(source)) == "dicom" else None
    except OSError:  # reading it will say so
        pass
    return None


def _dicom_of(folder: str) -> list[str]:
    """The DICOM files of a folder, of a remote one those that may be, in natural order."""
    if not is_remote(folder):
        return list(map(str, dicom_files(Path(folder))))
    return [file.address for file in scan_files(folder) if _named_dicom(Path(file.name)) is not False]


def _headers(files: Iterable[str]) -> Iterator[SliceHeader]:
    for file in files:
        with fetched_file(file) as path:
            try:
                headers = read_headers(path)
            except Refusal:
                continue
        yield from headers


def _ends(folder: str) -> list[SliceHeader]:
    """Headers of a folder's first and last readable file; only their series can go on in another folder."""
    files = _dicom_of(folder)
    ends = (next(_headers(order), None) for order in (files, reversed(files)))
    return [header for header in ends if header is not None]


def _places(folder: str) -> set[Hashable]:
    """Instances of a folder, and where the slices of each of its series lie."""
    found: set[Hashable] = set()
    for header in _headers(_dicom_of(folder)):
        found |= {(series_key(header), header.position), header.instance or header.path}
    return found


def _continued(items: list[Item], ends: Ends) -> list[Item]:
    """Join the folders over which one DICOM series is spread; copies of a series stay scans of their own.

    ``ends`` gets the :func:`_ends` of each DICOM folder, by its path.
    """
    whole: list[Item] = []
    by_series: dict[SeriesKey, Item] = {}  # the scan to which a folder that begins or ends with it is added
    places: dict[str, set[Hashable]] = {}
    for item in items:
        folder = _folder(item)
        try:
            if folder is not None and ((found := _ends(folder)) or not is_remote(folder)):
                ends[folder] = found
            keys = {series_key(header) for header in ends.get(folder or "", ()) if header.series}
            known = next((by_series[key] for key in sorted(keys) if key in by_series), None)
            if folder is not None and known is not None:
                here = _places(folder)
                name = known["scan"]
                if name not in places:
                    places[name] = _places(os.fspath(known["image"]))
                if not places[name] & here:
                    places[name] |= here
                    known["image"] = _joined(as_source(known["image"]), as_source(item["image"]))
                    by_series |= dict.fromkeys(keys, known)
                    continue
        except Refusal as error:  # a remote folder: whether it goes on elsewhere cannot be known
            item["image"], keys = replace(as_source(item["image"]), problem=str(error)), set()
        whole.append(item)
        by_series |= {key: item for key in keys if key not in by_series}
    return whole


def _joined(scan: ScanSource, other: ScanSource) -> ScanSource:
    """A scan that goes on in the folders of another one."""
    return replace(scan, more=(*scan.more, other.path, *other.more), listed=(*scan.listed, *other.listed))


def _mark_aside(items: list[Item], meant: set[str]) -> None:
    """Say of the folders of pictures among DICOM scans that nobody named them."""
    for item in items:
        source = as_source(item["image"])
        plain = isinstance(item["image"], str) and os.path.isdir(source.path)
        if source.path not in meant and (plain or (source.listed and not source.problem)):
            item["image"] = replace(source, aside=True)


def _by_study(items: list[Item], ends: Ends, join: bool) -> list[Item]:
    """Join the DICOM folders of each study, or tell of those of its CTs that lie in folders of their own."""
    folders: dict[SeriesKey, list[Item]] = {}  # by patient and study: an anonymizer may give all studies the same UID
    for item in items:
        headers = [each for each in ends.get(os.fspath(item["image"]), ()) if join or not no_ct_slice(each)]
        for key in {(each.patient, each.study, "") for each in headers if each.study}:
            folders.setdefault(key, []).append(item)
    gone: set[int] = set()
    for several in folders.values():
        several = [item for item in several if id(item) not in gone]
        for item in several if len(several) > 1 else ():
            source, whole = as_source(item["image"]), as_source(several[0]["image"])
            if not join:
                text = f"same_study: one of {len(several)} CTs of a study, in folders of their own; each is answered"
                item["image"] = replace(source, told=(*source.told, text))
            elif item is not several[0]:
                several[0]["image"] = _joined(whole, source)
                gone.add(id(item))
    return [item for item in items if id(item) not in gone]


def parts_of_scans(paths: Iterable[Path]) -> set[Path]:
    """The DICOM folders among scans that hold only a part of a series."""
    found = _continued([{"image": str(path), "scan": str(path)} for path in paths], {})
    sources = [item["image"] for item in found if isinstance(item["image"], ScanSource)]
    return {Path(part) for source in sources for part in (source.path, *source.more)}


def source_files(source: ScanSource) -> list[Path]:
    """The DICOM files of a source."""
    path = Path(source.path)
    if not path.is_dir():
        return [path]
    return [file for folder in (path, *map(Path, source.more)) for file in dicom_files(folder)]


def _series(item: Item) -> list[Item]:
    source = as_source(item["image"])
    if source.problem or (is_remote(source.path) and not (source.listed and _dicom_of(source.path))):
        return [item]
    from .dicom.choice import read_folder

    try:
        with fetched(source) as (local, _):
            if not os.path.isdir(local.path) or scan_kind(Path(local.path)) != "dicom":
                return [item]
            series, _ = read_folder(source_files(local))
    except Refusal as error:
        return [item | {"image": replace(source, problem=str(error))}]
    if len(series) < 2:
        return [item]
    return [{"image": replace(source, series=each.number), "scan": f"{item['scan']}#{each.number}"} for each in series]
