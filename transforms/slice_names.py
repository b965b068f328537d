"""The order of a folder's slices by the numbers in their names, which pictures are none, and which numbers lack."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .tolerances import GAP_STEPS, MAX_PICTURES_BESIDE

WHOLE = re.compile(r"\d+")
DECIMAL = re.compile(r"[-+]?\d+(?:[.,]\d+)?(?=\D*$)")  # the last in a name
HEXADECIMAL = re.compile(r"(?:0x)?([0-9a-f]+)$")

Numbers = list[float | None]  # a name each; None of one that has no such number


def in_order(files: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Slices in the order of their numbers, and warnings.

    Numbers are signed, decimal or hexadecimal where the names speak for it; else whole ones, of which a name may hold
    several, and the order stays as it is. A few pictures without a number beside numbered ones are left out.

    Args:
        files: in natural order.
    """
    names = [file.stem.lower() for file in files]
    for read in (_decimals, _hexadecimals):
        numbers = read(names)
        if numbers and _are_previews(numbers):
            ordered = sorted((number, place) for place, number in enumerate(numbers) if number is not None)
            return [files[place] for _, place in ordered], _told(numbers)
    numbers = [float(found[-1]) if (found := WHOLE.findall(name)) else None for name in names]
    unnumbered = numbers.count(None)
    if unnumbered == len(files):
        return list(files), []
    if not _are_previews(numbers):
        return list(files), [f"unnumbered: {unnumbered} of {len(files)} slices have no number in their names"]
    return [file for file, number in zip(files, numbers, strict=True) if number is not None], _told(numbers)


def _are_previews(numbers: Numbers) -> bool:
    """Whether those without a number are few enough to be no slices."""
    without = numbers.count(None)
    return without <= MAX_PICTURES_BESIDE and 2 * without < len(numbers)


def _decimals(names: Sequence[str]) -> Numbers:
    """The last number of each name where some are signed, or have fractions and make even steps; else nothing."""
    found = _of_one_text(names, DECIMAL)
    matches = [match for match in found if match]
    # behind a letter or a digit of every name, as in IM-0001, it is no sign
    hyphen = all(match[0][0] == "-" and match.string[: match.start()][-1:].isalnum() for match in matches)
    numbers = [match and float(match[0].lstrip("-" if hyphen else "").replace(",", ".")) for match in found]
    signed = not hyphen and any(match[0][0] in "+-" for match in matches)
    fractions = any(not match[0].lstrip("+-").isdecimal() for match in matches)
    return numbers if signed or (fractions and _are_even(numbers)) else []


def _hexadecimals(names: Sequence[str]) -> Numbers:
    """The hexadecimal number that ends each name, where some need letters and they make even steps; else nothing."""
    found = _of_one_text(names, HEXADECIMAL)
    digits = [match[1] for match in found if match]
    # from the first character on that is no letter of all, such as the last of slice9 and slicea
    columns = enumerate(zip(*digits, strict=False))
    begin = next((place for place, column in columns if len(set(column)) > 1 or column[0].isdecimal()), None)
    if begin is None or len({each[-1].isdecimal() for each in digits}) < 2:  # 1a, 1b: a letter behind a number
        return []
    numbers = [match and float(int(match[1][begin:], 16)) for match in found]
    return numbers if _are_even(numbers) else []


def _of_one_text(names: Sequence[str], pattern: re.Pattern[str]) -> list[re.Match[str] | None]:
    """Where the pattern lies in each name; None of names whose other text is not that of most."""
    found = [pattern.search(name) for name in names]
    texts = [match and (match.string[: match.start()], match.string[match.end() :]) for match in found]
    most = Counter(filter(None, texts)).most_common(1)
    return [match if most and text == most[0][0] else None for match, text in zip(found, texts, strict=True)]


def _are_even(numbers: Numbers) -> bool:
    """Whether no number comes twice, and at least half of the places between the first and the last are taken."""
    known = sorted(number for number in numbers if number is not None)
    steps = np.diff(known)
    return len(steps) > 0 and steps.min() > 0 and bool(steps.sum() / np.median(steps) < 2 * len(known))


def _told(numbers: Numbers) -> list[str]:
    """Warnings: pictures left out, numbers left out, and such that come twice."""
    known = [number for number in numbers if number is not None]
    told = []
    if without := numbers.count(None):
        told.append(f"pictures: {without} pictures without the number that the slices have are not used")
    if len(known) < 3:
        return told
    doubled = sum(count - 1 for count in Counter(known).values())
    if doubled:
        told.append(f"doubled_numbers: {doubled} slices have the number of another")
    steps = np.diff(sorted(set(known)))
    if len(steps):
        step = float(np.median(steps))
        missing = int(sum(round(gap / step) - 1 for gap in steps if gap > GAP_STEPS * step))
        if missing:
            told.append(f"missing_slices: by the numbers in the names {missing} slices are missing")
    return told
