"""The UCI thyroid table (thyroid0387) as classes, sexes and inputs of a small network, and patient-safe folds of it.

Classes are the groups of diagnoses that the data set's own description names as its most frequent ones: hyperthyroid
(A-D), hypothyroid (E-H), binding protein (I, J), general health (K), replacement therapy (L-N), discordant results (R),
and no condition ("-"). Antithyroid treatment (O-Q), elevated TBG (S) and elevated hormones (T) are left out: two men
each at most. Of several letters the first counts (AK: hyperthyroid, with another illness); ``X|Y`` means "consistent
with X, but more likely Y" and counts as Y. With a known sex these are 8,748 records of 9,172.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from fairlung.pipeline.common.errors import UserError
from fairlung.pipeline.common.names import SEXES

CODES = {
    "hyperthyroid": "ABCD",
    "hypothyroid": "EFGH",
    "binding protein": "IJ",
    "general health": "K",
    "replacement therapy": "LMN",
    "discordant results": "R",
    "no condition": "-",
}
CLASSES = tuple(CODES)
LEFT_OUT = "OPQST"
LABORATORY = ("TSH", "T3", "TT4", "T4U", "FTI", "TBG")
FLAGS = (
    "on_thyroxine", "query_on_thyroxine", "on_antithyroid_meds", "sick", "pregnant", "thyroid_surgery",
    "I131_treatment", "query_hypothyroid", "query_hyperthyroid", "lithium", "goitre", "tumor", "hypopituitary", "psych",
)  # fmt: skip
SOURCES = ("SVHC", "SVI", "STMW", "SVHD", "WEST")  # of a referral; any other has zeros
OLDEST = 110  # years; the table holds ages up to 65526

Ints = NDArray[np.int64]


class TableError(UserError):
    """The table is not the UCI thyroid table; the message says what is wrong."""


class Table(NamedTuple):
    """Patients with a known sex and one of the 7 classes."""

    inputs: Tensor  # [N, F] float32, missing values are NaN in the first NUMBERS columns, the rest is 0 or 1
    label: Tensor  # [N] index into CLASSES
    group: Tensor  # [N] index into SEXES
    patient: Ints  # [N], the same for records that must stay together


NUMBERS = 1 + len(LABORATORY)  # age and laboratory values, the columns that are standardised


def diagnosis(code: str) -> int | None:
    """Class of a diagnosis in UCI's letters, None for one that is left out.

    Example:
        >>> CLASSES[diagnosis("GKJ")], CLASSES[diagnosis("C|I")], diagnosis("S")
        ('hypothyroid', 'binding protein', None)
    """
    letter = code.split("|")[-1][:1]
    for index, letters in enumerate(CODES.values()):
        if letter and letter in letters:
            return index
    if letter and letter in LEFT_OUT:
        return None
    raise TableError(f"target: no diagnosis {code!r} in the letters of UCI's thyroid0387")


def read_table(path: Path) -> Table:
    """Read the table; sex, the identifier and whether a value was measured (known from its absence) are no inputs."""
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read as a CSV table: {error}") from error
    missing = [name for name in ("age", "sex", "target", "patient_id", *LABORATORY, *FLAGS) if name not in rows]
    if missing:
        raise TableError(f"{path}: no column {', '.join(missing)}")
    of_row = [diagnosis(str(code)) for code in rows["target"]]
    kept = np.array([of is not None for of in of_row]) & rows["sex"].isin(["M", "F"]).to_numpy()
    label = np.array([of for of, keep in zip(of_row, kept, strict=True) if keep], dtype=np.int64)
    rows = rows[kept].reset_index(drop=True)
    numbers = rows[["age", *LABORATORY]].astype(float)
    numbers["age"] = numbers["age"].where(numbers["age"] <= OLDEST)
    numbers[list(LABORATORY)] = np.log1p(numbers[list(LABORATORY)])  # concentrations, skewed over decades
    zero_one = [numbers.isna(), rows[list(FLAGS)] == "t"]
    zero_one += [rows["referral_source"] == source for source in SOURCES]
    inputs = np.column_stack([numbers, *zero_one]).astype(np.float32)
    # an identifier is a record's; records alike in all else may be one person's and stay together as well
    alike = rows.drop(columns="patient_id").groupby(rows.columns.drop("patient_id").tolist(), dropna=False).ngroup()
    patient = _together(rows["patient_id"].factorize()[0], alike.to_numpy())
    group = rows["sex"].map({"M": SEXES.index("male"), "F": SEXES.index("female")}).to_numpy()
    return Table(torch.from_numpy(inputs), torch.from_numpy(label), torch.tensor(group), patient)


def _together(first: Ints, second: Ints) -> Ints:
    """[N] ids that rows share when they share an id in either list, through any chain of such rows."""
    links = coo_array((np.ones(len(first)), (first, first.max() + 1 + second)))
    side = links.shape[1]
    square = coo_array((links.data, (links.row, links.col)), shape=(side, side))
    return connected_components(square, directed=False)[1][first].astype(np.int64)


def fold_of(table: Table, folds: int, seed: int) -> Ints:
    """[N] fold of each record: stratified by class and sex, a patient's records in one fold."""
    cell = (table.label * len(SEXES) + table.group).numpy()
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(cell), dtype=np.int64)
    for index, (_, test) in enumerate(splitter.split(cell, cell, table.patient)):
        fold[test] = index
    return fold


def standardised(inputs: Tensor, training: Tensor) -> Tensor:
    """Inputs [N, F], age and laboratory values at mean 0 and deviation 1 on the training rows, missing ones at 0."""
    numbers, rest = inputs[:, :NUMBERS], inputs[:, NUMBERS:]
    seen = numbers[training]
    mean = seen.nanmean(0)
    deviation = ((seen - mean) ** 2).nanmean(0).sqrt()
    # a value that nobody of the training rows has carries nothing
    scaled = torch.nan_to_num((numbers - mean) / deviation.clamp(min=1e-6), nan=0.0)
    return torch.cat([scaled, rest], 1)
