"""Whose scans a table holds: its column of patients, and names that look as if patients had several scans."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..common.names import UNKNOWN_GROUP
from ..common.text import named, quoted, spelling, spelling_key
from ..data.groups import NO_VALUE, stands_for_none
from ..data.pseudonyms import DIGITS

logger = logging.getLogger(__name__)

PATIENT = "patient"  # column: whose scan it is, in a table of predictions a keyed digest
DIGEST = f"([0-9a-f]{{{DIGITS}}})?"  # what such a column of ours holds
LISTED = 3  # patients, and names, that a message shows
LAST_PART = re.compile(r"(?P<stem>.*\d)(?:[_. -]t?\d{1,2}|[_. -]?[a-z])", re.IGNORECASE)  # p01_a, p01b, p01-2, p01_t1
SUFFIX = re.compile(r"(\.[a-z][a-z\d]{1,4}){1,2}$", re.IGNORECASE)  # of a file
MOST_OF_ONE = 10  # scans of one patient; a stem that more have is a year, a site or a fold


def patient_ids(values: pd.Series, shown: pd.Series, faults: list[str]) -> NDArray[np.int64]:
    """[N] a number a patient, of a column of ids; who has none is a patient of his own, with a warning.

    A word for no value, which would make one patient of all who have it, goes to ``faults`` with its scan's name.
    """
    ids = values.map(spelling)
    none = ids.map(stands_for_none)
    said = zip(shown[none], ids[none], strict=True)
    faults += [f"{scan}: patient {quoted(word)} {NO_VALUE}: leave it empty" for scan, word in said]
    if empty := int((ids == "").sum()):
        logger.warning("%d of %d scans have no patient: each is taken for a patient of its own", empty, len(ids))
    one_each = ids[ids != ""].drop_duplicates()
    keys = one_each.map(spelling_key)
    if (twice := keys.duplicated()).any():
        where = keys.index[keys == keys[twice].iloc[0]][:2]
        logger.warning(
            "patients of scans such as %s and %s have ids that differ only in case or zeros: they are taken for two",
            *shown[where],
        )
    own = [f" {row}" for row in range(len(ids))]  # no id begins with a space
    return pd.factorize(ids.where(ids != "", own))[0].astype(np.int64)


def site_ids(values: pd.Series, shown: pd.Series, faults: list[str]) -> NDArray[np.int64]:
    """[N] a number a site, of a column of names; a scan without one goes to ``faults``."""
    names = values.map(spelling)
    none = names.map(stands_for_none) | (names == "")
    faults += [f"{scan}: it has no site, and sites are to be told apart" for scan in shown[none]]
    return pd.factorize(names)[0].astype(np.int64)


def of_several_groups(
    patient: NDArray[np.int64], group: NDArray[np.int64], scans: Sequence[str], group_names: Sequence[str]
) -> str:
    """The patients of more than one known group, in words, by their scans (an id may be a name); "" without any."""
    known = group != UNKNOWN_GROUP
    found = []
    for _, rows in pd.Series(np.flatnonzero(known)).groupby(patient[known], sort=False):
        first = rows.groupby(group[rows], sort=False).first()
        if len(first) > 1:
            found.append(" and ".join(f"{scans[row]} ({group_names[g]})" for g, row in first.items()))
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    one = "1 patient is" if len(found) == 1 else f"{len(found)} patients are"
    return f"{one} of several groups: {'; '.join(found[:LISTED])}{more}" if found else ""


def seem_repeated(scans: Sequence[str]) -> tuple[str, str] | None:
    """Two names that look as if they were of one patient (``p01_a``, ``p01_b``), where a table has many such.

    At least two stems that end in a digit, and a tenth of the scans, must have several; no stem may have more than
    :data:`MOST_OF_ONE`, as those of 2021_01 to 2021_99 are no patient's.
    """
    parts = [(name, LAST_PART.fullmatch(SUFFIX.sub("", name))) for name in scans]
    names = pd.DataFrame([(found["stem"], name) for name, found in parts if found], columns=["stem", "name"])
    of_stem = names.groupby("stem")["name"].agg(list)
    several = of_stem[of_stem.map(len) > 1]
    sizes = several.map(len)
    if len(several) < 2 or sizes.sum() < len(scans) / 10 or sizes.max() > MOST_OF_ONE:
        return None
    return several.iloc[0][0], several.iloc[0][1]


def warn_of_repeated(scans: Sequence[str]) -> None:
    """One warning, of a table that does not say whose its scans are, if their names look as if patients had several."""
    if alike := seem_repeated(scans):
        logger.warning(
            "names such as %s and %s look like scans of one patient, and no column says whose they are: intervals are "
            "too narrow and p too small where patients have several; a column %r says it (--patient-column)",
            *map(named, alike), PATIENT,
        )  # fmt: skip
