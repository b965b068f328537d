"""Which series of a DICOM folder is the chest CT."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..scan import Refusal, Skipped
from ..tolerances import MIN_EXTENT_MM
from .headers import (
    CHEST_PARTS,
    SeriesKey,
    SliceHeader,
    is_original,
    is_reformat,
    plain_code,
    read_headers,
    series_key,
    series_order,
)
from .stack import Series, judged


def read_folder(files: Iterable[Path]) -> tuple[list[Series], list[str]]:
    """The series among DICOM files, each laid out and judged, in the order of their SeriesNumber.

    Returns:
        series, and a warning where files could not be read.
    """
    headers: list[SliceHeader] = []
    unreadable: Counter[str] = Counter()
    for file in files:
        try:
            headers += read_headers(file)
        except Refusal as error:
            unreadable[str(error)] += 1
    by_series: dict[SeriesKey, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        by_series[series_key(header)].append(header)
    # not by UID, which is random: by number, then by what lies first in the folder
    ordered = sorted(by_series.values(), key=lambda found: (series_order(found[0].series_number), str(found[0].path)))
    series = [judged(found) for found in ordered]
    for number, each in enumerate(series, start=1):
        each.number = number
    told = [f"{count} files: {reason}" for reason, count in sorted(unreadable.items())]
    return series, [f"unreadable_files: {'; '.join(told)}"] if told else []


def choose(series: Sequence[Series], min_slices: int, told: Sequence[str] = ()) -> Series:
    """The chest CT among the series of a folder.

    Of the series that can be answered the first by these rules, in turn: the body part is the chest or not stated; as
    long as a chest; original rather than derived, and that rather than reformatted; more slices; the lower number.

    Args:
        told: what :func:`read_folder` warned of.

    Raises:
        Refusal: none can be answered; says why of each. Or those of several patients can.
    """
    for each in series:
        if each.problem is None and len(each.slices) < min_slices:
            each.problem = too_few(len(each.slices), min_slices)
    answerable = [each for each in series if each.problem is None]
    if answerable:
        best = min(answerable, key=_rank)
        alike = [each.first for each in answerable if _rank(each)[:2] == _rank(best)[:2]]
        patients, studies = ({getattr(first, what) for first in alike} for what in ("patient", "study"))
        if len(patients) > 1:
            raise Refusal(
                f"holds CTs of {len(patients)} patients: which is meant cannot be known; give each a folder of its "
                "own, or have every series answered"
            )
        if len(studies) > 1:
            best.warnings.append(f"several_studies: CTs of {len(studies)} studies, of which one is answered")
        return best
    if not series:
        raise Refusal("; ".join(["holds no readable DICOM image", *told]))
    kind: Callable[[str], Refusal] = Skipped if all(isinstance(s.problem, Skipped) for s in series) else Refusal
    if len(series) == 1:
        raise kind(str(series[0].problem))
    raise kind("; ".join(f"series {each.number}: {each.problem}" for each in series))


def too_few(found: int, min_slices: int) -> Refusal:
    return Refusal(f"{found} slice{'s' * (found != 1)}, at least {min_slices} are needed")


def _rank(series: Series) -> tuple[Any, ...]:
    first = series.first
    elsewhere = bool(first.body_part) and first.body_part not in CHEST_PARTS
    origin = 0 if is_original(first) else 2 if is_reformat(first) else 1
    return elsewhere, series.extent_mm < MIN_EXTENT_MM, origin, -len(series.slices), series.number


def choice(chosen: Series, series: Sequence[Series]) -> str:
    """What was chosen and why not the others, for the record; "" where there was one series."""
    if len(series) == 1:
        return ""
    others = "; ".join(f"{each.number}: {each.problem or _what(each)}" for each in series if each is not chosen)
    return f"{chosen.number} of {len(series)} ({_what(chosen)}); not {others}"


def _what(series: Series) -> str:
    first = series.first
    origin = "original" if is_original(first) else "reformatted" if is_reformat(first) else "derived"
    elsewhere = (
        "" if not first.body_part or first.body_part in CHEST_PARTS else f", {plain_code(first.body_part).lower()}"
    )
    return f"{len(series.slices)} slices, {origin}{elsewhere}"
