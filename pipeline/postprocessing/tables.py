"""Tables of predictions that post-processing reads and writes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..common.tables import write_frame
from ..common.text import named, quoted, spelling
from ..data.groups import stands_for_none
from ..evaluation.patient_column import DIGEST, PATIENT
from ..evaluation.predictions import (
    LISTED,
    POSTPROCESS,
    PROBABILITY,
    SYNTHETIC,
    Predictions,
    columns_text,
    load_predictions,
    read_probabilities,
    read_table,
)
from .fitted import Method, PostprocessError, UnlabelledPredictions, given_probabilities


def refuse_overwriting(inputs: Iterable[Path], outputs: Sequence[Path]) -> None:
    """PostprocessError where an output is an input or another output, by whatever path: it would be written over."""
    taken = [(path, "is read") for path in inputs]
    for output in outputs:
        for other, why in taken:
            same = output.resolve() == other.resolve()
            if same or (output.exists() and other.exists() and output.samefile(other)):
                raise PostprocessError(f"{output} {why} as well; write to another file")
        taken.append((output, "is written"))


def load_table(path: str | Path, group_by: Iterable[str] | None = None) -> Predictions:
    """Labelled predictions with probabilities, as :func:`~.load_predictions` reads them and with its PredictionsError.

    PostprocessError: there is no column ``scan`` (nobody could tell whether a scan was fitted on), or the table was
    post-processed before.
    """
    _raw(Path(path))
    return load_predictions(path, group_by=tuple(group_by) if group_by else None)


def load_unlabelled(path: str | Path) -> UnlabelledPredictions:
    """Probabilities of scans without labels, such as inference's predictions.csv; failed scans are left out.

    Errors are those of :func:`load_table`, and PostprocessError where there is no column or row of probabilities.
    """
    path = Path(path)
    table = _raw(path)
    names = tuple(column[len(PROBABILITY) :] for column in map(str, table.columns) if column.startswith(PROBABILITY))
    if not names:
        raise PostprocessError(f"{path}: no {PROBABILITY}<class> columns; it has {columns_text(table)}")
    answered = table[[PROBABILITY + name for name in names]].ne("").any(axis=1)
    table = table[answered].reset_index(drop=True)
    if table.empty:
        raise PostprocessError(f"{path}: no scan has probabilities")
    scan = table["scan"]
    faults = [f"{quoted(name)} is there twice" for name in scan[scan.duplicated()].unique()]
    probabilities = read_probabilities(path, table, scan.map(named), names, faults)
    if faults or probabilities is None:
        raise PostprocessError(f"{path}:\n  " + "\n  ".join(faults[:LISTED]))
    return UnlabelledPredictions(scan.to_numpy(dtype=str), probabilities, names)


def refuse_shared_patients(fit_on: Path, judged: Path) -> None:
    """PostprocessError where a patient has scans in both tables; digests of different keys have none in common."""
    rows = []
    for path in (fit_on, judged):
        table = read_table(path)
        ids = table[PATIENT].map(spelling) if PATIENT in table else pd.Series("", index=table.index)
        rows.append(table["scan"].groupby(ids.where(~ids.map(stands_for_none), "")).first().drop("", errors="ignore"))
    fitted, others = rows
    if len(both := fitted.index.intersection(others.index)):
        text = f"{len(both)} patients have" if len(both) > 1 else "1 patient has"
        example = f"{quoted(fitted[both[0]])} of {fit_on} and {quoted(others[both[0]])} of {judged}"
        raise PostprocessError(
            f"{text} scans in both tables, such as {example}: fit on other patients than those judged"
        )


def write_table(path: str | Path, original: str | Path, predictions: Predictions, method: Method) -> None:
    """Write post-processed predictions: scan, label, groups, prediction, prob_<class>, postprocess, synthetic, patient.

    ``original`` is the CSV that the predictions come from, with the same scans in the same order; of its other columns
    ``patient`` alone is copied, where it holds our digests. The column ``postprocess`` says the method: nobody takes
    the table for the model's own.
    """
    probabilities = given_probabilities(predictions)
    given = _raw(Path(original))
    table = given[["scan", "label", *predictions.group_by]].copy()
    table["prediction"] = np.array(predictions.class_names)[predictions.prediction]
    for c, name in enumerate(predictions.class_names):
        table[PROBABILITY + name] = [f"{value:.8g}" for value in probabilities[:, c]]
    table[POSTPROCESS] = method
    if predictions.synthetic:
        table[SYNTHETIC] = "yes"
    if PATIENT in given and given[PATIENT].str.fullmatch(DIGEST).all():  # ids of others stay where they are
        table[PATIENT] = given[PATIENT]
    write_frame(table, path)


def _raw(path: Path) -> pd.DataFrame:
    table = read_table(path)
    if "scan" not in table:
        text = "no column 'scan'; without names nobody can tell whether a scan was fitted on and judged as well"
        raise PostprocessError(f"{path}: {text}")
    if POSTPROCESS in table:
        done = ", ".join(sorted(set(table[POSTPROCESS]))) or "?"
        raise PostprocessError(f"{path} was post-processed before ({done}); give the model's own predictions")
    return table
