"""Tables of labelled predictions, this pipeline's or any other model's, read and checked for judging."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fairlung.transforms.tables import TableError

from ..common import run_folder
from ..common.errors import UserError
from ..common.names import CLASS_NAMES, SEX_SPELLINGS, UNKNOWN_GROUP
from ..common.tables import read_frame, text_frame
from ..common.text import cut, did_you_mean, hint_at, named, printable, quoted, spelling, spelling_key
from ..data.cohort_checks import listed
from ..data.groups import (
    JOIN,
    MISSING,
    NO_VALUE,
    doubtful_values,
    group_ids,
    group_values,
    joined,
    natural_order,
    occurring_groups,
)
from .metrics import group_confusion
from .patient_column import PATIENT, of_several_groups, patient_ids, site_ids

logger = logging.getLogger(__name__)

PROBABILITY = "prob_"  # before the class name in the column of its probability
POSTPROCESS = "postprocess"  # column: what was done to the probabilities
SEX, GROUP = "sex", "group"  # columns that are the groups where none are named
SPLIT = "split"  # column of a cohort
SYNTHETIC = "synthetic"  # column: "yes" of a phantom, as in a cohort
SUM_TOLERANCE = 0.01  # by which a scan's probabilities may miss a sum of 1, as tables round them
PROBABILITY_TIE = 2e-6  # by which a predicted class may fall short of the most probable one: six digits, normalised
NOT_FINITE = ("nan", "inf", "-inf")
LISTED = 5  # faults that a message shows when there are more
Ints = NDArray[np.int64]


class PredictionsError(UserError):
    """A table of predictions that cannot be judged; the message says where and why."""


@dataclass(frozen=True)
class Predictions:
    """Labelled predictions of N scans in C classes and G groups."""

    scan: NDArray[np.str_]  # [N] names, all different
    label: Ints  # [N] true class indices
    prediction: Ints  # [N] predicted class indices
    group: Ints  # [N] group ids; -1 is unknown
    probabilities: NDArray[np.float64] | None  # [N, C], rows summing to 1; None when the table has none
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    group_by: tuple[str, ...]  # the columns that the groups come from
    postprocess: str = ""  # what was done to the probabilities after the network, as far as the table says
    synthetic: bool = False  # whether the table says that some of the scans are phantoms
    patient: Ints | None = None  # [N] a number a patient; None when the table does not say whose the scans are
    site: Ints | None = None  # [N] a number a site, of the column that was asked for

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
        parts = ["scan", "label", "prediction", "group"]
        parts += [name for name in ("probabilities", "patient", "site") if getattr(self, name) is not None]
        changed: dict[str, Any] = {name: getattr(self, name)[rows] for name in parts}
        return replace(self, **changed)

    @property
    def repeated(self) -> bool:
        """Whether some patient has several scans, as far as the table says."""
        return self.n_patients is not None

    @property
    def n_patients(self) -> int | None:
        """Whose the scans are, where some patient has several; else None."""
        n = len(self.scan) if self.patient is None else len(np.unique(self.patient))
        return n if n < len(self.scan) else None

    def known(self) -> Predictions:
        return self.take(self.group != UNKNOWN_GROUP)

    def present_groups(self) -> Predictions:
        """The same scans without the names of groups that have none."""
        present = [g for g in range(len(self.group_names)) if (self.group == g).any()]
        index = np.full(len(self.group_names) + 1, UNKNOWN_GROUP)  # the last entry answers for -1
        index[present] = range(len(present))
        return replace(self, group=index[self.group], group_names=tuple(self.group_names[g] for g in present))

    def not_most_probable(self) -> NDArray[np.bool_]:
        """[N] predictions of another class than the most probable one, by more than tables round; none without them."""
        if self.probabilities is None:
            return np.zeros(len(self.label), dtype=bool)
        said = self.probabilities[np.arange(len(self.label)), self.prediction]
        return said < self.probabilities.max(1) - PROBABILITY_TIE

    def with_probabilities(self, probabilities: NDArray[np.float64]) -> Predictions:
        """The same scans with other probabilities, and the most probable class as prediction."""
        return replace(self, probabilities=probabilities, prediction=probabilities.argmax(1))

    def confusion(self) -> NDArray[np.int64]:
        """Counts [G + 1, C, C], rows true, columns predicted; the last matrix counts scans of unknown group."""
        prediction, label, group = (torch.from_numpy(part) for part in (self.prediction, self.label, self.group))
        return group_confusion(prediction, label, group, len(self.group_names), len(self.class_names)).numpy()


Judged: TypeAlias = (
    Predictions | pd.DataFrame | str | Path
)  # a table of labelled predictions, as audit and compare take it


def load_predictions(
    source: str | Path | pd.DataFrame, class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    group_by: Sequence[str] | None = None, scan_column: str = "scan", label_column: str = "label",
    prediction_column: str = "prediction", with_probabilities: bool = True,
    rename: Mapping[str, Mapping[str, str]] | None = None, patient_column: str | None = None,
    site_column: str | None = None,
) -> Predictions:  # fmt: skip
    """Read a table with a row a scan: true class, group columns, and the predicted class or ``prob_<class>`` columns.

    Args:
        source: a CSV, or a data frame of pandas, whose values are taken as text (0 is the class "0"). Where an
            evaluation of ours wrote a CSV, its metrics.json gives the names that are not given here.
        class_names: classes in order; else those of the probability columns, else those that occur (the benchmark's
            in its order, others sorted).
        group_names: groups in order; else those that occur (male before female, others sorted). With two, the gap is
            the first minus the second.
        group_by: group columns, by default ``sex``, or ``group`` where that is missing; several make a group of each
            combination that occurs. An empty value, or "unknown", is an unknown group: one of its own where
            ``group_names`` has "unknown", else -1.
        scan_column: names the scans; without this column a scan is called by its line, or its row from 0 on.
        prediction_column: the predicted class; without this column it is the most probable one.
        with_probabilities: read the probabilities too; else whatever numbers they hold are no error. A scan whose
            probabilities are not finite has no prediction, whatever its row says: an error either way.
        rename: of a column, what its values stand for: ``{"label": {"0": "covid"}}``; the label's are the prediction's.
        patient_column: says whose a scan is, by default ``patient`` where there is one.
        site_column: says where a scan was made; by default nothing is asked of sites.

    PredictionsError: no such file, column or class, a value that is none, or a scan given twice.

    Example:
        >>> from pathlib import Path
        >>> import pandas as pd
        >>> from fairlung.pipeline import load_predictions
        >>> rows = "scan,label,sex,prediction\\ns1,covid,male,covid\\ns2,normal,female,covid\\ns3,normal,male,normal\\n"
        >>> _ = Path("predictions.csv").write_text(rows)
        >>> table = load_predictions("predictions.csv")
        >>> table.class_names, table.group_names
        (('covid', 'normal'), ('male', 'female'))
        >>> table.confusion()[1].tolist()  # of the women: one normal scan, called covid
        [[0, 0], [1, 0]]
        >>> load_predictions(pd.read_csv("predictions.csv")).group_names
        ('male', 'female')
    """
    framed = isinstance(source, pd.DataFrame)
    path = Path("the data frame" if framed else source)  # as messages call it
    table = _of_frame(source) if framed else read_table(path)
    rename = dict(rename or {})
    if label_column in rename and prediction_column in table:
        rename.setdefault(prediction_column, rename[label_column])
    beside = {} if framed or (class_names and group_by) else _evaluation_names(path, list(table.columns))
    class_names = class_names or beside.get("class_names")
    if not group_by:
        group_names = group_names or beside.get("group_names")
    usual = GROUP if GROUP in table and SEX not in table else SEX
    group_by = tuple(group_by or beside.get("group_by") or (usual,))
    has = f"it has {columns_text(table)}"
    for column in (label_column, *group_by, *rename, *filter(None, [patient_column, site_column])):
        if column not in table:
            raise PredictionsError(f"{path}: no column {column!r}{did_you_mean(column, table)}; {has}")
    for column, names in rename.items():
        table[column] = table[column].replace(names)
    scan = table[scan_column] if scan_column in table else pd.Series(_places(len(table), framed))
    faults = [f"{quoted(name)} is there twice" for name in scan[scan.map(spelling).duplicated()].unique()]
    classes = tuple(class_names) if class_names else _classes(path, table, label_column, prediction_column)
    shown = scan.map(named)
    faults += [f"{name}: the network's output was not finite, so that it has no answer" for name in shown[_lost(table)]]
    probabilities = read_probabilities(path, table, shown, classes, faults) if with_probabilities else None
    label = _index(table[label_column], classes, shown, f"column {label_column!r}", faults)
    if prediction_column in table:
        prediction = _index(table[prediction_column], classes, shown, f"column {prediction_column!r}", faults)
    elif probabilities is not None:
        prediction = probabilities.argmax(1)
    else:
        wanted = f"neither a column {prediction_column!r} nor {PROBABILITY}<class> columns"
        raise PredictionsError(f"{path}: {wanted}; {has}")
    group, groups = _groups(path, table, shown, group_by, group_names, faults)
    of = patient_column or PATIENT
    patient = patient_ids(table[of], shown, faults) if of in table else None
    site = site_ids(table[site_column], shown, faults) if site_column else None
    if patient is not None and (several := of_several_groups(patient, group, shown, groups)):
        faults.append(several)
    if faults:
        more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise PredictionsError(f"{path} cannot be judged:\n  " + "\n  ".join(faults[:LISTED]) + more)
    postprocess = ", ".join(sorted(set(table.get(POSTPROCESS, ())) - {""}))
    synthetic = "yes" in set(table.get(SYNTHETIC, ()))
    if len(splits := sorted(set(table.get(SPLIT, ())) - {""})) > 1:
        said = "judge each by itself, as a model looks better, and fairer, on the scans that it was trained on"
        logger.warning("%s has scans of several splits (%s): %s", path, cut(", ".join(splits)), said)
    names, about = scan.to_numpy(dtype=str), (classes, groups, group_by, postprocess, synthetic, patient, site)
    return Predictions(names, label, prediction, group, probabilities, *about)


def as_predictions(table: Judged) -> Predictions:
    """Predictions as they are; a data frame or a CSV by :func:`load_predictions`."""
    return table if isinstance(table, Predictions) else load_predictions(table)


def _places(n: int, framed: bool) -> list[str]:
    """What scans without a name are called: rows of a data frame, lines of a file below its header."""
    return [f"row {i}" if framed else f"line {i + 2}" for i in range(n)]


def _of_frame(frame: pd.DataFrame) -> pd.DataFrame:
    table = text_frame(frame)
    if table.empty:
        raise PredictionsError("the data frame is no table of predictions: no prediction in it")
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise PredictionsError(f"the data frame is no table of predictions: it has two columns {twice!r}")
    for column in table:  # text is cut there by NumPy and by pandas 3.0, so that two names would be one
        if (rows := table[column].str.contains("\0", regex=False)).any():
            where = f"row {int(rows.argmax())}, column {column!r}"
            raise PredictionsError(f"the data frame is no table of predictions: {where} holds a NUL character")
    return table


def _lost(table: pd.DataFrame) -> NDArray[np.bool_]:
    """[N] scans with a probability that is written as infinite or as no number."""
    columns = table[[column for column in table.columns if str(column).startswith(PROBABILITY)]]
    return columns.apply(lambda column: column.str.strip().str.lower().isin(NOT_FINITE)).any(axis=1).to_numpy(bool)


def _evaluation_names(path: Path, columns: list[str]) -> dict[str, list[str]]:
    """The names (and so the sign of the gap) of a table that an evaluation of ours wrote; nothing of others."""
    try:
        metrics = json.loads(path.with_name(run_folder.METRICS).read_text())
        group_by = columns[columns.index("label") + 1 : columns.index("prediction")]
        return {"class_names": metrics["class_names"], "group_names": metrics["group_names"], "group_by": group_by}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_table(path: Path) -> pd.DataFrame:
    try:
        table = read_frame(path)
    except FileNotFoundError:
        raise PredictionsError(f"{path}: no such file") from None
    except TableError as error:
        raise PredictionsError(f"{path} is no table of predictions: {error}") from error
    if table.empty:
        raise PredictionsError(f"{path} is no table of predictions: no prediction in it")
    return table


def columns_text(table: pd.DataFrame) -> str:
    return listed([cut(printable(column)) for column in table.columns])


def _classes(path: Path, table: pd.DataFrame, label_column: str, prediction_column: str) -> tuple[str, ...]:
    named = [str(column)[len(PROBABILITY) :] for column in table.columns if str(column).startswith(PROBABILITY)]
    occurring = pd.concat([table[column] for column in (label_column, prediction_column) if column in table])
    present = set(occurring) - {""}
    for value, text, other in doubtful_values((pd.Series(named) if named else occurring).rename("class")):
        if other:
            raise PredictionsError(f"{path}: {text}")
        if not named:  # a class may be called none, but not by the way
            raise PredictionsError(f"{path}: class {quoted(value)} {NO_VALUE}: name the classes if it is one")
    if named:
        return tuple(named)
    if len(present) < 2:
        raise PredictionsError(f"{path}: only one class occurs ({next(iter(present), 'none')}); name them all")
    if prediction_column in table:
        true, said = (sorted(set(table[of]) - {""}, key=natural_order) for of in (label_column, prediction_column))
        if min(len(true), len(said)) > 1 and not set(true) & set(said):
            text = f"no prediction ({cut(', '.join(said))}) is one of the labels ({cut(', '.join(true))})"
            raise PredictionsError(f"{path}: {text}: write both in one way, or name the classes")
    return CLASS_NAMES if present <= set(CLASS_NAMES) else tuple(sorted(present, key=natural_order))


def _index(values: pd.Series, names: Sequence[str], scan: pd.Series, where: str, faults: list[str]) -> Ints:
    found = pd.Index(names).get_indexer(pd.Index(values))
    for name, value in zip(scan[found < 0], values[found < 0], strict=True):
        faults.append(f"{name}: {where} {_none_of(value, names) if value else 'is empty'}")
    return found.astype(np.int64)


def _none_of(value: str, names: Sequence[str]) -> str:
    """What is said of a value that is none of the names: which one it may be, or that it is a word for no value."""
    alike = [name for name in names if spelling_key(name) == spelling_key(value)]
    if alike and alike[0].casefold() != value.casefold():  # they look the same
        return f"holds {cut(value)!a}, and the name is {cut(alike[0])!a}"
    missing = value.casefold() in MISSING
    hint = f", and {NO_VALUE}" if missing else hint_at(alike) or did_you_mean(value, names)
    return f"holds {quoted(value)}, which is none of {', '.join(names)}{hint}"


def read_probabilities(
    path: Path, table: pd.DataFrame, scan: pd.Series, classes: Sequence[str], faults: list[str]
) -> NDArray[np.float64] | None:
    columns = [PROBABILITY + name for name in classes]
    missing = [column for column in columns if column not in table]
    if len(missing) == len(columns):
        return None
    if missing:
        raise PredictionsError(f"{path}: no column {missing[0]!r}")
    # spreadsheet programs of many countries write 0,5
    values = table[columns].apply(lambda v: pd.to_numeric(v.str.replace(",", "."), errors="coerce")).to_numpy(float)
    good = np.isfinite(values).all(1) & (values >= 0).all(1) & (np.abs(values.sum(1) - 1) <= SUM_TOLERANCE)
    faults += [f"{name}: the probabilities are not numbers in [0, 1] that add up to 1" for name in scan[~good]]
    return values / np.where(good, values.sum(1), 1)[:, None]


def _groups(
    path: Path, table: pd.DataFrame, scan: pd.Series, group_by: Sequence[str], group_names: Sequence[str] | None,
    faults: list[str],
) -> tuple[Ints, tuple[str, ...]]:  # fmt: skip
    values = group_values(table, group_by)
    for column in group_by if len(group_by) > 1 else ():
        inside = scan[values[column].str.contains(JOIN, regex=False)]
        faults += [f"{name}: column {column!r} holds {JOIN!r}, which joins the names of groups" for name in inside]
    if not group_names:
        faults += [text for column in group_by for _, text, _ in doubtful_values(values[column])]
        for column in group_by:  # m and w are groups, but not beside male
            meant = {value: SEX_SPELLINGS.get(value.casefold(), "") for value in values[column].unique()}
            twice = [(value, sex) for value, sex in meant.items() if sex and sex in meant]
            faults += [f"{column} {quoted(value)} is written {quoted(sex)}" for value, sex in twice]
    names = tuple(group_names) if group_names else occurring_groups(values)
    if not names:
        raise PredictionsError(f"{path}: no scan has a group in column {', '.join(group_by)}")
    rows = joined(values)
    group, none_of_them = group_ids(rows, names)
    where = f"column {', '.join(repr(column) for column in group_by)}"
    wrong = zip(scan[none_of_them], rows[none_of_them], strict=True)
    faults += [f"{name}: {where} {_none_of(value, names)}" for name, value in wrong]
    return group, names
