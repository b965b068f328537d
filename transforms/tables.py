"""Tables of text, read by one rule wherever they come from: scan lists, cohorts, predictions, results.

A table is UTF-8, or UTF-16 with its byte order mark, and separated by commas, semicolons or tabs, whichever gives its
first line most columns. Only line feeds and carriage returns outside quotes end a row.
"""

import codecs
import csv
import io
import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

DELIMITERS = ",;\t"
KNOWN_COLUMNS = ("scan", "label", "sex", "split", "patient", "site", "age", "prediction")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
FORMULA = re.compile(r"'*\s*[=+\-@].", re.DOTALL)  # the beginning of what a spreadsheet program may run


class TableError(ValueError):
    """A file is no table; the message says why, and leaves it to the caller to name the file."""


class Table(NamedTuple):
    header: list[str]  # without space at the ends, all different
    rows: list[tuple[int, list[str]]]  # the line on which each starts, and its values as they stand

    def misfits(self) -> dict[int, str]:
        """What is wrong with the number of values in a row, by its line; values may be a patient's and stay unsaid."""
        columns = len(self.header)
        said = f"values, but the header has {columns}"
        return {line: f"{len(row)} {said}" for line, row in self.rows if len(row) != columns}


def guarded(cell: str) -> str:
    """A value that no spreadsheet program runs: an apostrophe goes before what looks like a formula.

    Numbers stay as they are. :func:`read_table` takes the apostrophe off again.

    Example:
        >>> [guarded(cell) for cell in ("=1+1", "-0.5", "scan", "'=x")]
        ["'=1+1", '-0.5', 'scan', "''=x"]
    """
    if not FORMULA.match(cell):
        return cell
    with suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}"


def unguarded(cell: str) -> str:
    """The value that :func:`guarded` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell, 1) else cell


def read_table(path: str | os.PathLike[str], *, misfits: bool = False) -> Table:
    """The rows of a table that are not blank.

    Args:
        misfits: give rows of another number of values than the header has, too; else they are an error.

    Raises:
        FileNotFoundError: there is no such file.
        TableError: no text, a column that is named twice, an unclosed quote, a misfit.
    """
    text = _text(Path(path))
    records: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, Path(path).suffix), strict=True)
    line = 1
    try:
        for record in reader:
            if any(cell.strip() for cell in record) or len(record) > 1:
                records.append((line, [unguarded(cell) for cell in record]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"not a CSV file: line {line}: {error}") from None
    if not records:
        raise TableError("the file is empty")
    (_, header), *rows = records
    header = [name.strip() for name in header]
    while header and not header[-1]:  # spreadsheet programs leave columns without a name or a value
        header.pop()
        rows = [(line, row[:-1] if len(row) > len(header) and not row[-1].strip() else row) for line, row in rows]
    for name, count in Counter(header).items():
        if count > 1:
            # the line may be no header but a row of patients: only names of ours are shown
            places = " and ".join(str(i + 1) for i, other in enumerate(header) if other == name)
            raise TableError(f"columns named twice: {f'{name!r} ' if name in KNOWN_COLUMNS else ''}(columns {places})")
    table = Table(header, rows)
    if not misfits and (wrong := table.misfits()):
        line = min(wrong)
        raise TableError(f"line {line}: {wrong[line]}; a value that holds the separator needs quotes")
    return table


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        raise TableError(why) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TableError(f"cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise TableError("not a CSV file (it holds binary data)")
    return text


def _delimiter(text: str, suffix: str) -> str:
    """The separator that gives the first line most columns; of equals the comma, in a .tsv the tab."""

    def columns(delimiter: str) -> int:
        with suppress(csv.Error):
            return len(next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), []))
        return 0

    order = DELIMITERS[::-1] if suffix.lower() == ".tsv" else DELIMITERS
    return max(order, key=columns)
