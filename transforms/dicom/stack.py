"""The slices of a DICOM series as one stack: which belong to it, in which order, where they lie.

Slices belong together by orientation, matrix and pixel spacing; they are ordered by position along their normal.
Headers say so; pixels are compared only where several slices lie at one position.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..geometry import RAS_OF_LPS
from ..scan import Refusal, Skipped
from ..tolerances import (
    DRIFT_MM,
    GAP_STEPS,
    MAX_DRIFT_MM,
    MAX_GAP_MM,
    MAX_MISSING,
    MAX_OBLIQUE_DEGREES,
    MAX_STEP_RATIO,
    MAX_TILT_DEGREES,
    MIN_SLICES,
    OBLIQUE_DEGREES,
    SAME_DIRECTION,
    SAME_PIXEL_SPACING,
    SAME_POSITION_MM,
    STRAY_SLICES,
    TILT_DEGREES,
    UNEVEN_STEP,
    UNIT_VECTORS,
)
from .headers import Acquisition, SliceHeader, no_ct_slice, series_order
from .pixels import same_pixels

PHASES = (2, 3, 4)  # of one series whose slices lie between each other, as far as times alone tell them apart


@dataclass
class Series:
    """The slices of a series that make one stack.

    Args:
        slices: along D, from inferior to superior, once :func:`lay_out` has been called.
        problem: why it cannot be answered; None = it can.
        affine: stored voxel (column, row, slice) -> RAS mm.
    """

    slices: list[SliceHeader]
    number: int = 0
    found: int = 0
    problem: Refusal | None = None
    warnings: list[str] = field(default_factory=list)
    affine: np.ndarray | None = None
    tilt_degrees: float | None = None

    @property
    def first(self) -> SliceHeader:
        return self.slices[0]

    @property
    def extent_mm(self) -> float:
        """From end to end; 0 of a single slice without geometry."""
        return 0.0 if self.affine is None else len(self.slices) * float(np.linalg.norm(self.affine[:3, 2]))


def judged(headers: list[SliceHeader]) -> Series:
    """A series from the headers of its files: what it is, its largest stack, where that stack's slices lie."""
    found = len(headers)
    reasons = list(map(no_ct_slice, headers))
    skipped = Counter(filter(None, reasons))
    kept = [header for header, reason in zip(headers, reasons, strict=True) if not reason]
    if not kept:
        return Series(headers, found=found, problem=Skipped(skipped.most_common(1)[0][0]))
    series = Series(kept, found=found)
    if skipped:
        strays = ", ".join(f"{count} {what}" for what, count in skipped.most_common())
        series.warnings.append(f"other_images: in the series are also {strays}, left out")
    try:
        lay_out(series)
    except Refusal as error:
        series.problem = error
    return series


def lay_out(series: Series) -> None:
    """Order the slices of a series from inferior to superior, and check where they lie.

    Raises:
        Refusal: they do not make one axial stack within the tolerances.
    """
    _check_parts(series.slices)
    _keep_one_stack(series)
    _drop_copies(series)
    first = series.first
    if first.orientation is None or any(header.position is None for header in series.slices):
        if len(series.slices) == 1 and first.frame is None:
            return  # one slice has no order; it is taken as it lies
        raise Refusal("slices without ImagePositionPatient or ImageOrientationPatient: their order cannot be known")
    if first.pixel_spacing is None:
        raise Refusal("slices without PixelSpacing")
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > UNIT_VECTORS or abs(row @ column) > UNIT_VECTORS:
        raise Refusal("ImageOrientationPatient holds no two unit vectors at a right angle")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    _check_plane(series, normal)
    series.slices.sort(key=lambda header: float(normal @ np.array(header.position)) * np.sign(normal[2]))
    _split_acquisitions(series, normal)
    _check_numbers(series)
    positions = np.array([header.position for header in series.slices])
    step = _check_steps(series, _steps(series.slices, normal))
    direction = _check_line(series, positions, normal * np.sign(normal[2]), step)
    rows_mm, columns_mm = first.pixel_spacing
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * columns_mm, column * rows_mm, direction
    lps[:3, 3] = series.first.position
    series.affine = RAS_OF_LPS @ lps


def _check_parts(slices: Sequence[SliceHeader]) -> None:
    """Refusal where parts of a concatenation are missing, as far as those that are there say how many there are."""
    numbers: dict[str, set[int]] = defaultdict(set)
    last: dict[str, int] = defaultdict(int)
    for uid, number, total in {header.part for header in slices if header.part is not None}:
        numbers[uid].add(number)
        last[uid] = max(last[uid], number, total)
    for uid, found in numbers.items():
        if len(found) < last[uid]:
            raise Refusal(f"{last[uid] - len(found)} of the {last[uid]} files of its concatenation are missing")


def _keep_one_stack(series: Series) -> None:
    """Keep the largest group of slices with one orientation, matrix and pixel spacing."""
    stacks: list[list[SliceHeader]] = []
    for header in series.slices:
        for stack in stacks:
            if _same_stack(stack[0], header):
                stack.append(header)
                break
        else:
            stacks.append([header])
    largest = max(stacks, key=len)
    strays = len(series.slices) - len(largest)
    if strays > STRAY_SLICES * len(series.slices):
        sizes = ", ".join(str(len(stack)) for stack in sorted(stacks, key=len, reverse=True)[:5])
        raise Refusal(
            f"its {len(series.slices)} slices differ in orientation, matrix or pixel spacing ({len(stacks)} stacks of "
            f"{sizes})"
        )
    if strays:
        series.warnings.append(f"mixed_stack: {strays} slices of another orientation, matrix or spacing are left out")
        series.slices = largest


def _same_stack(one: SliceHeader, other: SliceHeader) -> bool:
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    return _close(one.orientation, other.orientation, SAME_DIRECTION, 0) and _close(
        one.pixel_spacing, other.pixel_spacing, 0, SAME_PIXEL_SPACING
    )


def _close(one: Sequence[float] | None, other: Sequence[float] | None, absolute: float, relative: float) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, atol=absolute, rtol=relative))


def _drop_copies(series: Series) -> None:
    """Keep one of several files with one SOP instance UID, unless they lie at different places."""
    unique = {
        (header.instance or str(header.path), header.frame, header.position): header
        for header in reversed(series.slices)
    }
    copies = len(series.slices) - len(unique)
    if copies:
        series.warnings.append(f"copied_files: {copies} files are copies of others and left out")
        series.slices = list(unique.values())[::-1]


def _check_plane(series: Series, normal: np.ndarray) -> None:
    angle = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    if angle > MAX_OBLIQUE_DEGREES:
        plane = {0: "sagittal", 1: "coronal", 2: "oblique"}[int(np.abs(normal).argmax())]
        raise Refusal(f"{plane} slices ({angle:.0f} degrees from axial)")
    if angle > OBLIQUE_DEGREES:
        series.warnings.append(f"oblique: slices are {angle:.0f} degrees from axial")


def _split_acquisitions(series: Series, normal: np.ndarray) -> None:
    """Where several slices lie at one position, keep one acquisition, or one of several equal slices.

    Acquisitions are told apart by what they call themselves, or by times that split the slices into whole stacks.
    """
    places = _places(series.slices, normal)
    alone = len(places) == len(series.slices)
    named = [header.acquisition for header in series.slices]
    mixed = not alone or _interleaved(named)
    if mixed and _keep_acquisition(series, named, places, normal):
        return
    doubled = [place for place in places if len(place) > 1]
    if doubled and all(same_pixels(place[0], other) for place in doubled for other in place[1:]):
        series.warnings.append(f"duplicate_slices: {len(series.slices) - len(places)} slices lie twice in the series")
        series.slices = [place[0] for place in places]
        return
    if any(_keep_acquisition(series, times, places, normal) for times in _by_times(series.slices, places, normal)):
        return
    if alone and mixed:
        raise Refusal(f"slices of {len(set(named))} acquisitions lie between each other, and none covers the scan")
    if doubled:
        at = float(normal @ np.array(doubled[0][0].position))
        raise Refusal(
            f"{len(doubled)} positions hold several slices that differ (the first at {at:.1f} mm): which of them "
            "belong together cannot be told"
        )


def _keep_acquisition(series: Series, of: Sequence[Acquisition], places: Sequence[Any], normal: np.ndarray) -> bool:
    """Keep the largest acquisition where it covers the scan, or all where the others lie in its gaps.

    Args:
        of: the acquisition of each slice.
    """
    acquisitions: dict[Acquisition, list[SliceHeader]] = defaultdict(list)
    for header, acquisition in zip(series.slices, of, strict=True):
        acquisitions[acquisition].append(header)
    # of equal ones the one acquired first, not the one that files happen to name first
    largest = max((acquisitions[each] for each in sorted(acquisitions, key=_acquired)), key=len)
    alone = len(places) == len(series.slices)
    if alone and _steps(series.slices, normal).min() > np.median(_steps(largest, normal)) / GAP_STEPS:
        others = len(series.slices) - len(largest)
        series.warnings.append(f"acquisitions: {others} slices of another acquisition lie where the others have gaps")
        return True
    if len(acquisitions) < 2 or not _covers(largest, series.slices, places, normal):
        return False
    series.warnings.append(
        f"acquisitions: {len(acquisitions)} acquisitions of the same region, one of {len(largest)} slices is taken"
    )
    series.slices = largest
    return True


def _by_times(
    slices: Sequence[SliceHeader], places: Sequence[Sequence[Any]], normal: np.ndarray
) -> Iterator[list[Acquisition]]:
    """The acquisition of each slice, by each of its times that split the slices into whole stacks.

    Times are cut at their longest breaks. Slices of one acquisition have times of their own too, in any order, so a cut
    counts only where its break is longer than those within the parts, and every part is an even stack; parts that lie
    between each other must each be from end to end.
    """
    most = max(map(len, places))
    for times in zip(*(header.times for header in slices), strict=True):
        if None in times:
            continue
        order = np.argsort(times, kind="stable")
        breaks = np.diff(np.array(times)[order])
        for count in [most] if most > 1 else PHASES:
            longest = np.sort(breaks)[::-1][:count]
            if len(longest) < count or longest[count - 2] <= longest[count - 1]:
                continue
            part = np.empty(len(slices), dtype=int)
            part[order] = np.concatenate([[0], np.cumsum(breaks > longest[count - 1])])
            stacks = [[header for header, its in zip(slices, part, strict=True) if its == k] for k in range(count)]
            if all(
                _is_even(stack, normal) and (most > 1 or _covers(stack, slices, places, normal)) for stack in stacks
            ):
                yield [(None, int(k), "") for k in part]


def _is_even(stack: Sequence[SliceHeader], normal: np.ndarray) -> bool:
    """Whether slices in order lie at places of their own, and at one distance but for what may be missing."""
    steps = _steps(stack, normal)
    if not len(steps):
        return True
    return bool(steps.min() > SAME_POSITION_MM and (steps > GAP_STEPS * np.median(steps)).mean() <= MAX_MISSING)


def _interleaved(of: Sequence[Acquisition]) -> bool:
    """Whether slices in order leave an acquisition and come back to it: two phases, and not two blocks of one scan."""
    return sum(one != other for one, other in pairwise(of)) >= len(set(of))


def _steps(slices: Sequence[SliceHeader], normal: np.ndarray) -> np.ndarray:
    """Distances in mm between slices in order."""
    return np.abs(np.diff([float(normal @ np.array(header.position)) for header in slices]))


def _acquired(acquisition: Acquisition) -> tuple[Any, ...]:
    number, time, stack = acquisition
    return series_order(number), series_order(time), stack


def _check_numbers(series: Series) -> None:
    """Warn where every second slice counts on by itself: two acquisitions that nothing else tells apart."""
    numbers = [header.number for header in series.slices if header.number is not None]
    if len(numbers) < len(series.slices) or len(numbers) < MIN_SLICES or _counts(numbers):
        return
    if _counts(numbers[::2]) and _counts(numbers[1::2]):
        series.warnings.append("interleaved: by their numbers every second slice is of another acquisition")


def _counts(numbers: Sequence[int]) -> bool:
    steps = np.diff(numbers)
    return bool((steps > 0).all() or (steps < 0).all())


def _covers(
    some: Sequence[SliceHeader], slices: Sequence[SliceHeader], places: Sequence[Any], normal: np.ndarray
) -> bool:
    """Whether some of the slices are a stack of their own that reaches from end to end of all of them."""
    if len(_places(some, normal)) < len(some):
        return False
    if len(places) < len(slices):
        return len(some) >= len(places) * (1 - MAX_MISSING)
    ends, all_ends = (np.array([found[-1].position, found[0].position]) @ normal for found in (some, slices))
    return bool(abs(ends[0] - ends[1]) >= abs(all_ends[0] - all_ends[1]) * (1 - MAX_MISSING))


def _places(slices: Sequence[SliceHeader], normal: np.ndarray) -> list[list[SliceHeader]]:
    """Slices in order, those at one position together."""
    places: list[list[SliceHeader]] = []
    last = None
    for header in slices:
        at = float(normal @ np.array(header.position))
        if last is not None and abs(at - last) < SAME_POSITION_MM:
            places[-1].append(header)
        else:
            places.append([header])
            last = at
    return places


def _check_steps(series: Series, steps: np.ndarray) -> float:
    """The mean step from slice to slice in mm; 1 for a single slice.

    Raises:
        Refusal: too much is missing, or the step changes within the stack.
    """
    if not len(steps):
        return 1.0
    step = float(np.median(steps))
    low, high = np.percentile(steps, [10, 90])
    if high > MAX_STEP_RATIO * low:
        raise Refusal(f"steps between slices change from {low:.2f} to {high:.2f} mm")
    gaps = steps[steps > GAP_STEPS * step]
    missing = int(sum(round(gap / step) - 1 for gap in gaps))
    total = len(steps) + 1 + missing
    if missing:
        said = f"{missing} of {total} slices are missing, the largest gap is {gaps.max():.1f} mm"
        if missing > MAX_MISSING * total or gaps.max() - step > MAX_GAP_MM:
            raise Refusal(said)
        series.warnings.append(f"missing_slices: {said}")
    whole = np.maximum(1, np.round(steps / step))
    off = np.abs(steps / step - whole)
    if off.max() > UNEVEN_STEP:
        series.warnings.append(
            f"uneven_spacing: steps between slices are {steps.min():.2f} to {steps.max():.2f} mm, mostly {step:.2f}"
        )
    return float(steps.sum() / (len(steps) + missing))


def _check_line(series: Series, positions: np.ndarray, normal: np.ndarray, step: float) -> np.ndarray:
    """The step from slice to slice as a vector, LPS mm.

    Raises:
        Refusal: slices are sheared or shifted against each other beyond the tolerances.
    """
    along = (positions - positions[0]) @ normal
    across = positions - positions[0] - along[:, None] * normal
    slope = np.zeros(3) if along[-1] == 0 else (along @ across) / (along @ along)
    shear = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    stated = max((abs(header.tilt_degrees or 0.0) for header in series.slices), default=0.0)
    tilt = max(shear, stated)
    series.tilt_degrees = round(tilt, 2)
    if tilt > MAX_TILT_DEGREES:
        raise Refusal(f"gantry tilt of {tilt:.1f} degrees")
    if tilt > TILT_DEGREES:
        series.warnings.append(f"gantry_tilt: {tilt:.1f} degrees; the stack is sheared, not resampled")
    drift = float(np.linalg.norm(across - along[:, None] * slope, axis=1).max())
    if drift > MAX_DRIFT_MM:
        raise Refusal(f"slices are shifted against each other by up to {drift:.0f} mm")
    if drift > DRIFT_MM:
        series.warnings.append(f"shifted_slices: slices are shifted against each other by up to {drift:.1f} mm")
    return (normal + slope) * step
