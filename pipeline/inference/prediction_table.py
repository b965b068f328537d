"""The bytes of prediction tables: rows of a CSV, objects of the JSON beside it, and how both are read back."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import encoded, finite
from ..postprocessing.fitted import Fitted

SPREAD = "spread_"  # before the class name in the column of the members' standard deviation
AGREEMENT = "agreement"
NOT_UNICODE = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\(udc[89a-f][0-9a-f])")  # what the table's encoding makes of a byte that is not Unicode


class PredictionTableError(UserError, ValueError):
    """A table of predictions that rows cannot be added to; the message says why and what to do."""


def csv_bytes(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return encoded(text.getvalue())


def csv_rows(content: bytes) -> list[list[str]]:
    """Without empty rows."""
    text = content.decode("utf-8-sig")  # a spreadsheet program may have saved it
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row]


def csv_text(cells: Sequence[str | float | None]) -> list[str]:
    """Cells as they stand in the CSV: numbers with six digits, nothing where there is none."""
    return ["" if cell is None else f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells]


def original_name(scan: str) -> str:
    """A scan's name of the CSV with the bytes, not Unicode, that it may have had."""
    return ESCAPED.sub(lambda found: chr(int(found[1][1:], 16)), scan)


def json_line(record: Mapping[str, Any]) -> bytes:
    """An object on one line; what is not Unicode as the table writes it, and what is no number as null."""
    text = json.dumps(finite(record), ensure_ascii=False, allow_nan=False)
    return NOT_UNICODE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text).encode() + b"\n"


def json_list(lines: Iterable[bytes]) -> bytes:
    """The JSON of objects that are given a line each."""
    return b"[\n" + b",\n".join(line.rstrip(b"\n") for line in lines) + b"\n]\n"


def json_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON of ours; of anything else none: the table is what counts."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    records = found if isinstance(found, list) else []
    return [record for record in records if isinstance(record, dict) and "scan" in record]


def stated(correction: Fitted) -> str:
    """A correction in the column ``postprocess``: the method and, of a prior, the class frequencies."""
    target, source = (correction.settings.get(name) or {} for name in ("target", "source"))
    to = [f"{name}={share:.6g}" for name, share in target.items()]
    even = len(set(source.values())) <= 1
    return " ".join([correction.method, *to, *([] if even else ["from", *(f"{n}={s:.6g}" for n, s in source.items())])])
