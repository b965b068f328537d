"""Tables as data frames of text, and as CSV that no spreadsheet program runs."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fairlung.transforms.tables import guarded, read_table, unguarded

from .files import encoded


def read_frame(path: str | Path) -> pd.DataFrame:
    """A table as text, "" where there is no value; FileNotFoundError, and TableError where it is none."""
    header, rows = read_table(path)
    return pd.DataFrame([row for _, row in rows], columns=header, dtype=str)


def text_frame(table: pd.DataFrame) -> pd.DataFrame:
    """A data frame of any types as :func:`read_frame` would give it, with rows 0..n-1.

    Whole numbers of a column are written without ".0": pandas makes 1.0 of a 1 that stands beside a missing value.
    """

    def as_text(column: pd.Series) -> pd.Series:
        numbers = pd.api.types.infer_dtype(column, skipna=True) in ("floating", "mixed-integer-float")
        numbers = numbers and bool((column.dropna() % 1 == 0).all())
        written = (lambda cell: str(int(cell))) if numbers else str
        cells = zip(column.astype(object), column.isna(), strict=True)
        return pd.Series(["" if missing else written(cell) for cell, missing in cells], dtype=str)

    columns = [as_text(table.iloc[:, place]) for place in range(table.shape[1])]
    found = pd.concat(columns, axis=1) if columns else table.copy()
    return found.set_axis(map(str, table.columns), axis=1)


def csv_bytes(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV, in which text that looks like a formula is :func:`guarded`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([guarded(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return encoded(text.getvalue())


def csv_rows(content: bytes) -> list[list[str]]:
    """The rows of :func:`csv_bytes`, without empty ones."""
    text = content.decode("utf-8-sig")  # a spreadsheet program may have saved it
    return [list(map(unguarded, row)) for row in csv.reader(io.StringIO(text, newline="")) if row]


def frame_csv(table: pd.DataFrame) -> str:
    """A data frame as CSV with line feeds, in which text that looks like a formula is :func:`guarded`."""
    safe = table.map(lambda cell: guarded(cell) if isinstance(cell, str) else cell).rename(columns=guarded)
    # beside other line ends the csv module takes a carriage return for a letter that needs no quotes
    returns = any("\r" in cell for cell in [*safe, *safe.to_numpy().flat] if isinstance(cell, str))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return safe.to_csv(index=False, lineterminator="\n", quoting=quoting)


def write_frame(table: pd.DataFrame, path: str | Path) -> None:
    """Write a data frame as a table that :func:`read_frame` gives back."""
    Path(path).write_bytes(encoded(frame_csv(table)))
