"""The records of how scans were read, as tables."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.files import encoded, replace_durably
from ..common.tables import csv_bytes


def failure_reason(error: BaseException) -> str:
    """One line that says why a transform failed: the innermost cause, without MONAI's wrapping."""
    while error.__cause__ is not None and "applying transform" in str(error):
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0]}"


def record_of(error: BaseException | None) -> Mapping[str, Any] | None:
    """The intake record that an exception, or one it was raised from, carries as its attribute ``record``."""
    while error is not None:
        record = getattr(error, "record", None)
        if isinstance(record, Mapping):
            return record
        error = error.__cause__ or error.__context__
    return None


COLUMNS = (
    "scan", "kind", "status", "reason", "warnings", "series", "slices_found", "slices_used", "depth", "height", "width",
    "spacing_z", "spacing_y", "spacing_x", "orientation", "value_low", "value_high", "tilt_degrees", "decoder",
)  # fmt: skip
LENGTHS = {"shape": ("depth", "height", "width"), "spacing": ("spacing_z", "spacing_y", "spacing_x")}
SEPARATOR = "; "  # between the warnings of a scan in the table
# what is said of a scan, the most urgent first
GROUPS = {"refused": "Refused", "warnings": "With warnings", "fine": "Fine", "skipped": "Skipped"}


def group_of(record: Mapping[str, Any]) -> str:
    """Key of :data:`GROUPS` for a record."""
    return str(record["status"]) if record["status"] != "ok" else "warnings" if record["warnings"] else "fine"


def group_counts(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Scans of each of :data:`GROUPS`, in that order, 0 included."""
    counts = Counter(map(group_of, records))
    return {group: counts[group] for group in GROUPS}


def warning_counts(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Scans that each kind of warning (its code) was given to, the most frequent first."""
    codes = (code for record in records for code in {warning.partition(":")[0] for warning in record["warnings"]})
    return dict(sorted(Counter(codes).items(), key=lambda item: (-item[1], item[0])))


def write_intake(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write intake records with their ``scan`` as a table, and in full as a JSON list beside it (``.json``).

    The columns are :data:`COLUMNS`, empty where nothing is known. Lengths are mm, values HU or grey levels of slices.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{name: value for name, value in record.items() if name != "files"} for record in records]
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in kept)
    replace_durably(path, csv_bytes([COLUMNS, *map(_row, records)]))
    replace_durably(path.with_suffix(".json"), encoded(f"[\n{lines}\n]\n"))


def _row(record: Mapping[str, Any]) -> list[Any]:
    values = dict(record)
    values["reason"] = " ".join(record["reason"].split())
    values["warnings"] = SEPARATOR.join(" ".join(warning.split()) for warning in record["warnings"])
    for key, names in (*LENGTHS.items(), ("value_range", ("value_low", "value_high"))):
        values |= dict.fromkeys(names) if record[key] is None else dict(zip(names, record[key], strict=True))
    return [values[name] for name in COLUMNS]  # csv writes None as an empty cell


def scan_facts(intake: Mapping[str, Any]) -> str:
    """Kind, slices and voxel size in words: ``dicom, 64 of 80 slices, 1.25 x 0.7 x 0.7 mm``; what is unknown is out."""
    facts = [str(intake["kind"])] if intake.get("kind") else []
    used, found = intake.get("slices_used"), intake.get("slices_found")
    if used is not None and found is not None:
        facts.append(f"{used} of {found} slices")
    if intake.get("spacing"):
        facts.append(f"{spacing_text(intake['spacing'])} mm")
    return ", ".join(facts)


def spacing_text(spacing: Sequence[float]) -> str:
    """Millimetres along D, H and W: ``1.25 x 0.703 x 0.703``."""
    return " x ".join(f"{length:.3g}" for length in spacing)
